"""Heartbeats: one document per process, renewed for all its leases together.

A lease is valid while the heartbeat of its process is. A process renews it before it takes a lease, and a
third of the way to its expiry. Expiry is decided by the server's clock alone.
"""

import asyncio
import secrets
import time
from collections.abc import Iterable
from datetime import timedelta

from ximler.database import Database
from ximler.schema.meter import METERS

__all__ = ["VALID_FOR", "Heartbeat", "alive"]

VALID_FOR = timedelta(seconds=30)
_MS = timedelta(milliseconds=1)


class Heartbeat:
    """The heartbeat of this process. `process` is the beginning of its lease ids."""

    def __init__(self, database: Database, *, valid_for: timedelta = VALID_FOR) -> None:
        self.process = secrets.token_hex(6)
        self._database = database
        self._valid_for = valid_for
        self._renewed_at: float | None = None  # when the latest successful renewal was sent
        self._renewing = asyncio.Lock()

    @property
    def late(self) -> bool:
        """Whether it may expire soon, by this process's own clock."""
        return self._age() > self._valid_for.total_seconds() * 2 / 3

    async def renew(self) -> None:
        """Renew it when a third of its time has passed.
        Mostly no command, otherwise one. Raises Unavailable."""
        due = self._valid_for.total_seconds() / 3
        if self._age() < due:
            return
        async with self._renewing:
            if self._age() < due:
                return
            sent_at = time.monotonic()
            expires_at = {"$add": ["$$NOW", self._valid_for // _MS]}
            await self._database[METERS].recompute_each(
                [({"_id": self.process}, [{"$set": {"expiresAt": expires_at}}])], upsert=True
            )
            self._renewed_at = sent_at

    def _age(self) -> float:
        return float("inf") if self._renewed_at is None else time.monotonic() - self._renewed_at


async def alive(database: Database, processes: Iterable[str]) -> set[str]:
    """Those of the processes whose heartbeat is valid. One command."""
    valid = {"_id": {"$in": list(processes)}, "$expr": {"$gt": ["$expiresAt", "$$NOW"]}}
    return {found.id for found in await database[METERS].find(valid)}
