"""Settlement: recorded events reach the ledger and the quotas, each exactly once, within about a second.

`ledger.events` stores sums; a settlement takes all pending sums, in any process. It is first stored under the
next number, then applied: added to each row of the ledger and to each quota that lacks a settlement of this
number. A process that finds an unfinished settlement applies it again, so processes may die or be late at any
point; of two that store one concurrently, one fails.

It uses no transaction, because that would conflict without end with the leases, which update the quotas all
the time; and if its process were killed it would block everyone until the server aborts it, a minute later
(docs/decisions/0015).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import Any

import structlog
from bson import ObjectId
from msgspec import field

from ximler.core.clock import from_ms
from ximler.core.errors import Unavailable
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.database import Database, outbox
from ximler.database.changes import Change, Feed
from ximler.database.failures import DocumentExists, RefusedChanges
from ximler.database.monitoring import first_time
from ximler.metering.ledger import recorded
from ximler.metering.ledger.recorded import Sums
from ximler.metering.limits import entitlements, periods
from ximler.metering.reports import alerts
from ximler.runtime import Part, background
from ximler.schema.document import Document
from ximler.schema.entitlement import ENTITLEMENTS
from ximler.schema.quota import QUOTAS, Quota, period_start_of, quota_id
from ximler.schema.usage import ResourceType
from ximler.schema.usage_batch import USAGE_BATCHES, USAGE_SETTLEMENTS, UsageBatch, UsageSettlement

__all__ = ["Late", "Settler", "finish", "is_under_way", "late", "settle"]

_MOST_ROWS = 20_000  # per settlement
_LOOK_EVERY_S = 2.0
_PATIENCE = timedelta(seconds=5)  # before an unfinished settlement of another process is taken over
_TOGETHER_S = 0.2
_ON_TIME = timedelta(days=1)
_HOUR_MS = 3_600_000
_RESOURCES: tuple[ResourceType, ...] = ("apiCalls",)
_log = structlog.get_logger("ximler.metering")


class Late(Document, kw_only=True):
    """Days to whose rows usage was added long after they were over."""

    days: list[datetime]


late = outbox.job("analytics.usage_was_late", Late)

_Addition = tuple[dict[str, Any], dict[str, dict[str, int]]]


class _Anchor(Document, kw_only=True):
    id: ObjectId = field(name="_id")
    anchor_day: int = periods.CALENDAR_MONTH


class _Level(Document, kw_only=True):
    """The fields of a quota that decide about alerts."""

    id: str = field(name="_id")
    limit: int
    settled: int = 0
    ingested: int = 0
    foreign: int = 0


@background
def _settler(*, database: Database, feed: Feed, settings: Settings) -> Part:
    return Part("metering.settler", Settler(database, feed, thresholds=settings.usage_alerts).run, lease=True)


class Settler:
    """`run` it in at least one process. The feed notifies it of recorded events of any process."""

    def __init__(
        self, database: Database, feed: Feed | None = None, *, thresholds: Sequence[int] = alerts.THRESHOLDS
    ) -> None:
        self._database = database
        self._thresholds = thresholds
        self._wake = asyncio.Event()
        if feed is not None:
            feed.subscribe([USAGE_BATCHES.name], self._heard)
            feed.on_gap(self._wake.set)

    async def run(self, stop: asyncio.Event) -> None:
        """Settle recorded events of all processes until stopped."""
        while not stop.is_set():
            began = time.monotonic()
            self._wake.clear()
            try:
                for resource in _RESOURCES:
                    await _settle(self._database, resource, self._thresholds, all_of_it=False)
            except Unavailable as error:
                _log.warning("usage waits to be settled", reason=error.message)
            took = time.monotonic() - began
            await pause(stop, _LOOK_EVERY_S, self._wake)
            # Batches that arrive meanwhile are settled together, which bounds the load to a fifth of the
            # time; the jitter lets processes that were woken together take turns.
            await pause(stop, min(max(_TOGETHER_S, 4 * took), 2.0) * random.uniform(0.7, 1.3))  # noqa: S311 (jitter)

    def _heard(self, change: Change) -> None:
        if change.operation == "insert":
            self._wake.set()


async def settle(database: Database, *, thresholds: Sequence[int] = alerts.THRESHOLDS) -> int:
    """Settle everything recorded so far; returns the number of batches that this process settled.

    Two round trips if there is nothing to do. Safe to race and to kill.
    """
    return sum([await _settle(database, resource, thresholds, all_of_it=True) for resource in _RESOURCES])


async def is_under_way(transaction: Database, quota: Quota) -> bool:
    """Whether a stored settlement may be missing in the quota or its ledger rows, as seen by the transaction.
    Otherwise they agree. One command.
    """
    return await transaction[USAGE_SETTLEMENTS].count({"_id": quota.resource, "quotas": quota.id}) > 0


async def finish(database: Database, resource: ResourceType, *, thresholds: Sequence[int] = alerts.THRESHOLDS) -> None:
    """Complete the unfinished settlement, if there is one, without waiting for its process."""
    latest = await database[USAGE_SETTLEMENTS].committed.find_one({"_id": resource})
    if latest is not None and latest.batches:
        await _finish(database, latest, thresholds)


async def _settle(database: Database, resource: ResourceType, thresholds: Sequence[int], *, all_of_it: bool) -> int:
    """Settle until nothing is pending, or until less than a full settlement is, which is left for the next
    round.
    """
    settled = 0
    while True:
        settlements = database[USAGE_SETTLEMENTS].committed
        latest = await settlements.find_one({"_id": resource}) or await _first(database, resource)
        if latest.batches:
            begun_at = latest.begun_at
            if not all_of_it and begun_at is not None and database.clock.now() - begun_at < _PATIENCE:
                return settled  # another process is applying it
            await _finish(database, latest, thresholds)
        batches = await _waiting(database, resource)
        if not batches:
            return settled
        sums = _sums(batches)
        following = await _following(database, latest, batches, sums)
        if not await _write_down(database, following):
            return settled
        await _carry_out(database, following, sums, thresholds)
        settled += len(batches)
        if not all_of_it and sum(len(batch.amounts) for batch in batches) < _MOST_ROWS:
            return settled


async def _finish(database: Database, latest: UsageSettlement, thresholds: Sequence[int]) -> None:
    begun = await database[USAGE_BATCHES].committed.find({"_id": {"$in": latest.batches}})
    await _carry_out(database, latest, _sums(begun), thresholds)


async def _first(database: Database, resource: ResourceType) -> UsageSettlement:
    with contextlib.suppress(DocumentExists):
        return await database[USAGE_SETTLEMENTS].insert(UsageSettlement(id=resource))
    return await database[USAGE_SETTLEMENTS].committed.get({"_id": resource})


async def _waiting(database: Database, resource: ResourceType) -> list[UsageBatch]:
    """The oldest batches, as many as one settlement takes."""
    batches, rows = [], 0
    # Committed, because a failover may roll back a batch, which its sender then repeats.
    found = database[USAGE_BATCHES].committed.stream({"resource": resource}, sort=[("_id", 1)], batch=20)
    async for batch in found:
        if len({len(batch.users), len(batch.hours), len(batch.sources), len(batch.amounts)}) > 1:
            if first_time(USAGE_BATCHES.name, batch.id):
                _log.warning("batch left out", id=str(batch.id), reason="its columns differ in length")
            continue
        batches.append(batch)
        rows += len(batch.amounts)
        if rows >= _MOST_ROWS:
            break
    return batches


def _sums(batches: list[UsageBatch]) -> Sums:
    sums: dict[tuple[ObjectId, int], dict[str, int]] = {}
    for batch in batches:
        for user, hour, source, amount in zip(batch.users, batch.hours, batch.sources, batch.amounts, strict=True):
            by_source = sums.setdefault((user, hour), {})
            by_source[source] = by_source.get(source, 0) + amount
    return sums


async def _following(
    database: Database, latest: UsageSettlement, batches: list[UsageBatch], sums: Sums
) -> UsageSettlement:
    """The next settlement, with the amount for each quota."""
    users, found = list(dict.fromkeys(user for user, _ in sums)), database[ENTITLEMENTS].committed
    anchors = {e.id: e.anchor_day for e in await found.find({"_id": {"$in": users}}, into=_Anchor)}
    if strangers := [user for user in users if user not in anchors]:
        resolved = await entitlements.resolve(database, strangers)
        anchors |= {user: entitlement.anchor_day for user, entitlement in resolved.items()}
    due: dict[str, tuple[ObjectId, int]] = {}
    for (user, hour), by_source in sums.items():
        start, _ = periods.around(anchors.get(user, periods.CALENDAR_MONTH), from_ms(hour * _HOUR_MS))
        quota = quota_id(user, latest.id, start)
        _, amount = due.get(quota, (user, 0))
        due[quota] = user, amount + sum(by_source.values())
    return UsageSettlement(
        id=latest.id,
        number=latest.number + 1,
        begun_at=database.clock.now(),
        batches=[batch.id for batch in batches],
        quotas=list(due),
        users=[user for user, _ in due.values()],
        amounts=[amount for _, amount in due.values()],
    )


async def _write_down(database: Database, settlement: UsageSettlement) -> bool:
    """Store the settlement. False if another process was faster."""
    free: dict[str, Any] = {"_id": settlement.id, "number": settlement.number - 1, "batches": []}
    return await database[USAGE_SETTLEMENTS].patch(free, {"$set": _values(settlement)})


async def _carry_out(database: Database, settlement: UsageSettlement, sums: Sums, thresholds: Sequence[int]) -> None:
    """Apply the settlement to ledger and quotas. Idempotent: the batches are removed only when everything is
    applied.
    """
    await recorded.add(database, settlement.id, sums, number=settlement.number, periods=_periods(settlement, sums))
    past = {from_ms(hour * _HOUR_MS).date() for _, hour in sums}
    if days := sorted(day for day in past if day < (database.clock.now() - _ON_TIME).date()):
        await late.enqueue(database, Late(days=[datetime.combine(day, time_of_day(), UTC) for day in days]))
    await _pay(database, settlement, thresholds)
    await database[USAGE_BATCHES].delete_many({"_id": {"$in": settlement.batches}})
    await _close(database, settlement)


def _periods(settlement: UsageSettlement, sums: Sums) -> dict[tuple[ObjectId, int], datetime]:
    """The start of the period in which each user's hour counts, as stored in the settlement.

    All of a user's periods in one settlement have the same anchor, so an hour belongs to the latest period
    that began before it.
    """
    starts: dict[ObjectId, list[datetime]] = {}
    for quota, user in zip(settlement.quotas, settlement.users, strict=True):
        starts.setdefault(user, []).append(period_start_of(quota))
    return {
        (user, hour): max(start for start in starts[user] if start <= from_ms(hour * _HOUR_MS)) for user, hour in sums
    }


async def _close(database: Database, settlement: UsageSettlement) -> None:
    done = _values(UsageSettlement(id=settlement.id, number=settlement.number))
    await database[USAGE_SETTLEMENTS].patch({"_id": settlement.id, "number": settlement.number}, {"$set": done})


def _values(settlement: UsageSettlement) -> dict[str, Any]:
    stored = {name: getattr(settlement, name) for name in ("number", "batches", "quotas", "users", "amounts")}
    return {**stored, "begunAt": settlement.begun_at}


async def _pay(database: Database, settlement: UsageSettlement, thresholds: Sequence[int]) -> None:
    due = dict(zip(settlement.quotas, settlement.amounts, strict=True))
    await _add(database, {quota: _addition(quota, amount, settlement.number) for quota, amount in due.items()})
    found = await database[QUOTAS].find({"_id": {"$in": list(due)}}, into=_Level)
    if missing := due.keys() - {quota.id for quota in found}:
        made = await _make(database, settlement, missing)
        found += await database[QUOTAS].find({"_id": {"$in": made}}, into=_Level)
    for quota in found:
        used = quota.settled + quota.ingested + quota.foreign
        await alerts.look(
            database, quota.id, before=used - due[quota.id], after=used, limit=quota.limit, thresholds=thresholds
        )


def _addition(quota: str, amount: int, number: int) -> _Addition:
    return (
        {"_id": quota, "ingestedThrough": {"$not": {"$gte": number}}},
        {"$inc": {"ingested": amount, "steps": 1}, "$set": {"ingestedThrough": number}},
    )


async def _make(database: Database, settlement: UsageSettlement, missing: AbstractSet[str]) -> list[str]:
    """Create the missing quotas of the current or next period, without opening them for leases; returns their
    ids.

    Late events of an earlier period without a quota are only in the ledger.
    """
    now = database.clock.now()
    moments = {max(now, period_start_of(quota)) for quota in missing}
    due = dict(zip(settlement.quotas, settlement.amounts, strict=True))
    users = [user for quota, user in zip(settlement.quotas, settlement.users, strict=True) if quota in missing]
    resolved = await entitlements.resolve(database, users)
    fresh = [entitlements.quota_of(entitlement, at, now=now) for entitlement in resolved.values() for at in moments]
    made = [quota for quota in fresh if quota.id in missing]
    additions = {quota.id: _addition(quota.id, due[quota.id], settlement.number) for quota in made}
    try:
        await database[QUOTAS].upsert_each((*additions[quota.id], quota) for quota in made)
    except DocumentExists:  # created by another process concurrently
        await _add(database, additions)
    except RefusedChanges:  # an unreadable quota, which has been logged
        pass
    return list(additions)


async def _add(database: Database, additions: dict[str, _Addition]) -> None:
    """Add to the quotas. A quota that rejects its addition is logged and skipped; `usage rebuild` counts its
    events later.
    """
    try:
        await database[QUOTAS].patch_each(additions.values())
    except RefusedChanges as problem:
        for position, reason in problem.reasons.items():
            _log.error("quota left out", id=list(additions)[position], reason=reason)
