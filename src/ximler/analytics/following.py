"""Marks the buckets of cash whose payments or refunds change after they were rolled up, by the change feed.

Changes of the last days need no mark. Those that the feed has missed are found by the nightly check, and
those of the last forty days when the feed begins again. Late usage is marked by a job of the settlement that
adds it.
"""

import asyncio
from datetime import date, datetime, timedelta
from typing import Any

import structlog
from bson import ObjectId

from ximler.analytics import buckets, cash, customers
from ximler.billing import refunds
from ximler.core.errors import Unavailable
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.metering.ledger import settlement
from ximler.runtime import Part, background
from ximler.schema.payment import PAYMENTS

__all__ = ["Follower"]

_RECENT = timedelta(days=1)
_MISSED = timedelta(days=40)
_GATHER_S = 1.0
_AGAIN_S = 5.0
_log = structlog.get_logger("ximler.analytics")


@background
def _follower(*, database: Database, feed: Feed) -> Part:
    return Part("analytics.follower", Follower(database, feed).run)


@settlement.late
async def usage_was_late(late: settlement.Late, *, database: Database) -> None:
    """Late usage was added to the ledger: its days are computed again."""
    for report in (customers.USED, customers.LARGEST):
        await buckets.mark(database, report, [moment.date() for moment in late.days])


class Follower:
    """Runs in every process with the feed: marks are rare, and may be repeated."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._payments: set[ObjectId] = set()
        self._refunds: set[str] = set()
        self._missed = False
        self._changed = asyncio.Event()
        feed.subscribe([PAYMENTS.name, refunds.COLLECTION], self._heard)
        feed.on_gap(self._miss)

    async def run(self, stop: asyncio.Event) -> None:
        """Mark changed days until `stop` is set."""
        while not await pause(stop, None, self._changed):
            await pause(stop, _GATHER_S)
            self._changed.clear()
            try:
                await self.mark()
            except Unavailable as error:
                _log.warning("changed payments not marked yet", reason=error.message)
                self._miss()
                await pause(stop, _AGAIN_S)

    async def mark(self) -> None:
        """Mark the days of the changes delivered so far. No command for changes of the last day."""
        payments, made, missed = self._payments, self._refunds, self._missed
        self._payments, self._refunds, self._missed = set(), set(), False
        now = self._database.clock.now()
        if missed:
            await buckets.mark_since(self._database, cash.BUCKETS, (now - _MISSED).date())
        moments: set[datetime | None] = set()
        if payments:
            for each in await self._database.payments.find({"_id": {"$in": list(payments)}}):
                moments |= {each.paid_at, each.created_at}
        if made:
            moments |= set(await refunds.made_at(self._database, made))
        days: set[date] = {each.date() for each in moments if each is not None and each < now - _RECENT}
        if days:
            await buckets.mark(self._database, cash.BUCKETS, days)

    def _heard(self, change: Change) -> None:
        if change.operation == "insert" and self._is_recent(change.document or {}):
            return
        if change.operation == "delete":
            self._missed = True
        elif change.collection == PAYMENTS.name:
            self._payments.add(change.id)
        else:
            self._refunds.add(change.id)
        self._changed.set()

    def _is_recent(self, document: dict[str, Any]) -> bool:
        since = self._database.clock.now().replace(tzinfo=None) - _RECENT
        moments = [document.get("createdAt"), document.get("paidAt") or document.get("createdAt")]
        return all(isinstance(each, datetime) and each > since for each in moments)

    def _miss(self) -> None:
        self._missed = True
        self._changed.set()
