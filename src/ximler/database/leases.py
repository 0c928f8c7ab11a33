"""Leases: work for one process at a time.

    async with leases.hold(database, "metering.settlement", stop=stop) as lease:
        while lease is not None and not await pause(lease.ended, 2):
            await settle(database)

A lease is one document, `leases.<name>`, that expires by the server's clock. `hold` waits for it and renews
it. A process that was frozen past the expiry learns that it lost the lease from its own clock, before the
server is asked: `ended.is_set()` is true from that moment.

A check cannot cover the time between the check and the write that follows. Work that must never overlap
therefore writes in transactions that call `guard`, or carries `fence`, which grows by one with each new
holder, in the filters of its updates. Work that is safe to race needs neither.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pymongo
import structlog
from pymongo import ReturnDocument
from pymongo.write_concern import WriteConcern

from ximler.core.errors import Conflict, Unavailable
from ximler.core.stopping import end, pause
from ximler.database.connection import Database
from ximler.database.failures import DRIVER_ERRORS, DocumentExists, translated
from ximler.schema.lease import LEASES

__all__ = ["TTL", "Lease", "LeaseLost", "acquire", "hold"]

TTL = timedelta(seconds=15)
_MARGIN = 0.9  # fraction of the ttl after which the holder stops by its own clock
_MAJORITY = WriteConcern("majority")
_log = structlog.get_logger("ximler.database")


class LeaseLost(Conflict):
    """Another process holds the lease, or this one let it expire."""

    code = "LEASE_LOST"


class Lease:
    """A lease that this process was granted. `ended` is set when it is lost, or when its work is to stop."""

    def __init__(
        self,
        database: Database,
        name: str,
        holder: str,
        fence: int,
        *,
        before: datetime,
        ttl: timedelta,
        asked_at: float,
    ) -> None:
        """`before`: when the previous lease was released or expired, by the server's clock; for the first
        lease, when it was granted."""
        self.name = name
        self.holder = holder
        self.fence = fence
        self.before = before
        self.ended: asyncio.Event = _Ended(self)
        self._database = database
        self._ttl = ttl
        self._until = asked_at + ttl.total_seconds() * _MARGIN

    @property
    def held(self) -> bool:
        """Whether no other process can hold it now, by this process's own clock: without a round trip."""
        return _now() < self._until

    async def renew(self) -> bool:
        """Renew it for another `ttl`; False when it is lost. Raises Unavailable. One command."""
        asked_at = _now()
        if asked_at >= self._until:
            return False  # work may have been abandoned already, on the assumption that it was lost
        if not await self._update({"until": _in(self._ttl)}):
            self._until = asked_at
            return False
        self._until = asked_at + self._ttl.total_seconds() * _MARGIN
        return True

    async def release(self) -> None:
        """Release it, so that another process need not wait until it expires. Raises Unavailable. One
        command.
        """
        self._until = _now()
        await self._update({"until": "$$NOW"})

    async def guard(self, transaction: Database) -> None:
        """Let the transaction commit only if the lease has not changed hands by then. Raises LeaseLost. One
        command.

        It writes to the lease's document, so a process that takes the lease meanwhile makes the transaction
        conflict.
        """
        mine = {"_id": self.name, "holder": self.holder, "fence": self.fence}
        if not self.held or not await transaction[LEASES].patch(mine, {"$inc": {"writes": 1}}):
            raise LeaseLost(f"The lease {self.name} is no longer held: another process may have taken it")

    async def _update(self, changes: dict[str, Any]) -> bool:
        mine = {"_id": self.name, "holder": self.holder, "fence": self.fence}
        return await _send(self._database, mine, changes, ttl=self._ttl) is not None


class _Ended(asyncio.Event):
    """Counts as set from the moment the lease expires, also before a task was able to set it."""

    def __init__(self, lease: Lease) -> None:
        super().__init__()
        self._lease = lease

    def is_set(self) -> bool:
        return super().is_set() or not self._lease.held


async def acquire(database: Database, name: str, *, holder: str, ttl: timedelta = TTL) -> Lease | None:
    """The lease, or None while another holder has it. Raises Unavailable. One command.

    A holder that repeats the request after a lost answer gets the lease that it already has.
    """
    asked_at = _now()
    free = {"$or": [{"$lte": [{"$ifNull": ["$until", "$$NOW"]}, "$$NOW"]}, {"$eq": ["$holder", holder]}]}
    new = {"$and": [free, {"$ne": ["$holder", holder]}]}
    found = await _send(
        database,
        {"_id": name},
        {
            "holder": {"$cond": [free, holder, "$holder"]},
            "until": {"$cond": [free, _in(ttl), "$until"]},
            "before": {"$cond": [new, {"$ifNull": ["$until", "$$NOW"]}, "$before"]},
            "fence": {"$add": [{"$ifNull": ["$fence", 0]}, {"$cond": [new, 1, 0]}]},
        },
        ttl=ttl,
        upsert=True,
    )
    if found is None or found["holder"] != holder:
        return None
    fence = int(found["fence"])
    return Lease(database, name, holder, fence, before=found["before"], ttl=ttl, asked_at=asked_at)


@contextlib.asynccontextmanager
async def hold(
    database: Database, name: str, *, stop: asyncio.Event, ttl: timedelta = TTL
) -> AsyncIterator[Lease | None]:
    """Wait for the lease, and renew it for as long as the block lasts; None where `stop` is set before it is
    granted.

    `lease.ended` is set with `stop`; the lease is kept while the block finishes, then released. While the
    database does not answer, it retries. Other errors of the renewal are raised after the block.
    """
    holder = secrets.token_hex(8)
    lease = None
    unreachable = False
    while lease is None and not stop.is_set():
        try:
            lease = await acquire(database, name, holder=holder, ttl=ttl)
            unreachable = False
        except Unavailable as error:
            if not unreachable:
                _log.warning("lease unavailable", lease=name, reason=error.message)
            unreachable = True
        if lease is None and await pause(stop, ttl.total_seconds() / 5):
            break
    if lease is None:
        yield None
        return
    done = asyncio.Event()
    renewing = asyncio.ensure_future(_keep_renewed(lease, ttl, stop, done))
    try:
        yield lease
    finally:
        done.set()
        await end([renewing])
        if lease.held:
            with contextlib.suppress(Unavailable):
                await lease.release()
    if not renewing.cancelled() and (problem := renewing.exception()):
        raise problem


async def _keep_renewed(lease: Lease, ttl: timedelta, stop: asyncio.Event, done: asyncio.Event) -> None:
    wait_s = ttl.total_seconds() / 3
    wake: tuple[asyncio.Event, ...] = (stop,)
    try:
        while not await pause(done, wait_s, *wake):
            if stop.is_set():
                lease.ended.set()
                wake = ()
            try:
                if not await lease.renew():
                    _log.warning("lease lost", lease=lease.name)
                    return
                wait_s = ttl.total_seconds() / 3
            except Unavailable:
                wait_s = ttl.total_seconds() / 20
    finally:
        lease.ended.set()


async def _send(
    database: Database, where: dict[str, Any], changes: dict[str, Any], *, ttl: timedelta, upsert: bool = False
) -> dict[str, Any] | None:
    """The lease's document after the change, None where there is no match. The change survives a lost
    primary.
    """
    leases = database.raw[LEASES.name].with_options(write_concern=_MAJORITY)
    try:
        with pymongo.timeout(ttl.total_seconds() / 3):
            return await leases.find_one_and_update(
                where, [{"$set": changes}], upsert=upsert, return_document=ReturnDocument.AFTER
            )
    except DRIVER_ERRORS as error:
        final = translated(error, LEASES.name)
        if isinstance(final, DocumentExists):
            return None  # another process inserted it at the same moment
        if final is error:
            raise
        raise final from error


def _in(ttl: timedelta) -> dict[str, Any]:
    return {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": ttl // timedelta(milliseconds=1)}}


def _now() -> float:
    """Seconds of a clock that also counts while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
