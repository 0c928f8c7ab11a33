"""Corrections by operators: quotas and gauges that disagree with the ledger or the documents, and forfeited
units.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound, Unavailable
from ximler.database import Database
from ximler.metering.ledger import changes, recorded, rows, settlement
from ximler.metering.quota import gauges
from ximler.schema.gauge import Gauge
from ximler.schema.quota import QUOTAS, Quota
from ximler.schema.usage import ResourceType, Usage

__all__ = ["Drift", "forgive", "rebuild", "rebuild_all"]

_log = structlog.get_logger("ximler.metering")
_MAX_REASON = 500
_ATTEMPTS = 20
_LONGEST = timedelta(days=31)  # of a period


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A number that differed from its expected value."""

    user_id: ObjectId
    of: str  # a quota's id, "gauge", or "ledger" (the ledger's value of a gauge)
    what: str
    was: int
    now: int


async def rebuild(database: Database, actor: Actor, user_id: ObjectId, *, dry_run: bool = False) -> list[Drift]:
    """Reconcile the user's quotas with the ledger and their gauge with the documents; returns every
    difference found.

    Ledger rows of other applications count from then on. Forfeited units stay forfeited, because no row
    records them. A running settlement of recorded events is completed first. Operators only; corrections are
    audited. Raises Unauthenticated, Forbidden, NotFound, and Unavailable if settlements follow each other
    without a pause.
    """
    actor.require_operator()
    if await database.users.find_one({"_id": user_id}, deleted=True) is None:
        raise NotFound(f"No user {user_id}")
    found: list[Drift] = []
    for quota in await database[QUOTAS].find({"userId": user_id}, sort=[("resource", 1), ("periodStart", 1)]):
        found += await _correct(database, actor, quota.id, dry_run=dry_run)
    return found + await _recount(database, actor, user_id, dry_run=dry_run)


async def rebuild_all(database: Database, actor: Actor, *, dry_run: bool = False) -> AsyncIterator[list[Drift]]:
    """`rebuild` every user, one after the other. Users that cannot be read or corrected are logged and
    skipped.
    """
    actor.require_operator()
    async for user in database.users.stream({}, deleted=True):
        try:
            yield await rebuild(database, actor, user.id, dry_run=dry_run)
        except (Conflict, Invalid, NotFound) as problem:
            _log.error("user not rebuilt", user=str(user.id), reason=problem.message)


async def forgive(database: Database, actor: Actor, user_id: ObjectId, *, reason: str, units: int | None = None) -> int:
    """Return forfeited units of the current period to the user, all or `units` of them; returns how many.

    A process may have used them before it died without reporting, so they may be used twice. Operators only;
    audited. Raises Invalid, NotFound if there is no quota, Conflict if fewer are forfeited.
    """
    actor.require_operator()
    reason = reason.strip()
    if not 0 < len(reason) <= _MAX_REASON:
        raise Invalid.field("reason", f"is required, and at most {_MAX_REASON} characters long")
    if units is not None and not (type(units) is int and units > 0):
        raise Invalid.field("units", f"{units!r} is not a whole number above zero")

    async def write(transaction: Database) -> int:
        now = transaction.clock.now()
        current = {"userId": user_id, "resource": "apiCalls", "periodStart": {"$lte": now}, "periodEnd": {"$gt": now}}
        quota = await transaction[QUOTAS].find_one({**current, "superseded": False}, sort=[("periodStart", -1)])
        if quota is None:
            raise NotFound("The user has used nothing in this period")
        back = quota.forfeited if units is None else units
        if back > quota.forfeited:
            raise Conflict(f"Only {quota.forfeited:,} units are forfeited in this period")
        if back:
            await transaction[QUOTAS].patch(
                {"_id": quota.id}, {"$inc": {"steps": 1, "forfeited": -back, "granted": -back}}
            )
            await records.write(
                transaction,
                actor,
                Action.USAGE_FORGIVEN,
                resource="quotas",
                resource_id=quota.id,
                user_id=user_id,
                before={"forfeited": quota.forfeited},
                after={"forfeited": quota.forfeited - back},
                reason=reason,
            )
        return back

    return await database.transaction(write)


async def _correct(database: Database, actor: Actor, quota_id: str, *, dry_run: bool) -> list[Drift]:
    resource: ResourceType = "apiCalls"

    async def write(transaction: Database) -> list[Drift]:
        nonlocal resource
        quota = await transaction[QUOTAS].find_one({"_id": quota_id})
        if quota is None:
            return []
        if await settlement.is_under_way(transaction, quota):
            resource = quota.resource
            raise _UnderWay
        found = await _rows(transaction, quota)
        hours = {
            key: max(rows.whole(quota.units_by_hour.get(key)), found.leased.get(key, 0))
            for key in {*quota.units_by_hour, *found.leased}
        }
        settled = sum(hours.values())
        right = {
            "settled": settled,
            "granted": settled + quota.forfeited + quota.open,
            "ingested": found.recorded,
            "foreign": quota.foreign if quota.superseded else found.foreign,
        }
        drifts = [
            Drift(user_id=quota.user_id, of=quota.id, what=name, was=getattr(quota, name), now=value)
            for name, value in right.items()
            if getattr(quota, name) != value
        ]
        behind = [key for key, units in hours.items() if found.leased.get(key, 0) < units]
        if found.short or (behind and not quota.open_leases):  # with open leases the difference may be in flight
            was = sum(found.leased.values()) - found.missing
            drifts.append(Drift(user_id=quota.user_id, of=quota.id, what="ledger", was=was, now=settled))
        if dry_run:
            return drifts
        whose = {"userId": quota.user_id, "resourceType": quota.resource}
        await transaction.usage.patch_each(
            ({"_id": row, **whose, "periodStart": start}, {"$set": {"amount": units}})
            for (row, start), units in found.short.items()
        )
        if behind:
            await rows.write(transaction, [msgspec.structs.replace(quota, hours={key: hours[key] for key in behind})])
        if drifts:
            gained = {f"hours.{key}": units for key, units in hours.items() if quota.units_by_hour.get(key) != units}
            await transaction[QUOTAS].patch({"_id": quota.id}, {"$set": {**right, **gained}, "$inc": {"steps": 1}})
            await _tell(transaction, actor, "quotas", quota.id, quota.user_id, drifts)
        return drifts

    for attempt in range(_ATTEMPTS):
        try:
            return await database.transaction(write)
        except _UnderWay:
            await settlement.finish(database, resource)
            await asyncio.sleep(attempt * 0.01)  # a settlement without majority commit cannot be completed yet
    raise Unavailable("Recorded events are settled without a pause: try again in a moment")


class _UnderWay(Exception):
    """Usage is in flight to the ledger, so quota and ledger cannot be compared."""


class _Rows(msgspec.Struct):
    """The ledger's sums for a quota's period."""

    leased: dict[str, int] = {}  # leased units, by the quota's hours
    recorded: int = 0  # of events that count against this quota
    foreign: int = 0  # of other applications, in their own rows or on top of ours
    # Rows, by id and hour, whose amount is less than their parts: the right amount.
    short: dict[tuple[ObjectId, datetime], int] = {}
    missing: int = 0  # the sum of those differences


async def _rows(transaction: Database, quota: Quota) -> _Rows:
    found = _Rows()
    day = rows.day_of(quota.period_start)
    # A period shortened by a moved anniversary may have counted usage after its new end.
    end = max(quota.period_end, quota.period_start + _LONGEST)
    where = {"userId": quota.user_id, "resourceType": quota.resource}
    for row in await transaction.usage.find({**where, "periodStart": {"$gte": quota.period_start, "$lt": end}}):
        amount, hour = rows.whole(row.amount), rows.hour_key_of(row.period_start)
        leased, events = _parts(row, quota, amount)
        if day in leased:
            found.leased[hour] = max(found.leased.get(hour, 0), leased[day])
        found.recorded += events.get(day, 0)
        ours = sum(leased.values()) + sum(events.values())
        if amount < ours:
            found.short[row.id, row.period_start] = ours
            found.missing += ours - amount
        elif row.period_start < quota.period_end:
            found.foreign += amount - ours
    return found


def _parts(row: Usage, quota: Quota, amount: int) -> tuple[dict[str, int], dict[str, int]]:
    """The leased and the recorded units of a row, by the first day of the quota's period."""
    day = rows.day_of(quota.period_start)
    match row.metadata.get("source") if isinstance(row.metadata, dict) else None:  # in rows written before 0.1.0
        case "leases":
            return {day if row.metadata.get("quota") == quota.id else "": amount}, {}
        case "events":
            return {}, {day if row.period_start < quota.period_end else "": amount}
    return rows.leased(row.metadata), recorded.by_period(row.metadata)


async def _recount(database: Database, actor: Actor, user_id: ObjectId, *, dry_run: bool) -> list[Drift]:
    drifts: list[Drift] = []

    async def write(transaction: Database) -> None:
        was, now = await gauges.recount(transaction, user_id)
        ledger = await _in_ledger(transaction, was)
        drifts[:] = [
            Drift(user_id=user_id, of=of, what=name, was=getattr(said, name), now=getattr(now, name))
            for of, said in (("gauge", was), ("ledger", ledger))
            for name in ("projects", "storage_bytes")
            if getattr(said, name) != getattr(now, name)
        ]
        if dry_run or not drifts:
            raise _NothingToDo
        # The gauge's own error is recorded already; its difference from the ledger is not.
        await gauges.note(
            transaction,
            user_id,
            projects=was.projects - ledger.projects,
            storage_bytes=was.storage_bytes - ledger.storage_bytes,
        )
        await _tell(transaction, actor, "gauges", str(user_id), user_id, drifts)

    await changes.settle(database, user_id=user_id)
    with contextlib.suppress(_NothingToDo):
        await database.transaction(write)
        await changes.settle(database, user_id=user_id)
    return drifts


async def _in_ledger(transaction: Database, gauge: Gauge) -> Gauge:
    """The user's projects and bytes according to the ledger, after all changes of the gauge were settled."""
    is_ahead = {"$gt": ["$metadata.changed.through", gauge.number]}  # the row has earlier readings of these changes
    found = await transaction.usage.aggregate(
        [
            {"$match": {"userId": gauge.id, "resourceType": {"$in": list(changes.RESOURCES)}}},
            {
                "$group": {
                    "_id": "$resourceType",
                    "amount": {"$sum": rows.WHOLE_AMOUNT},
                    "ahead": {"$sum": {"$cond": [is_ahead, "$metadata.changed.units", 0]}},
                }
            },
        ]
    )
    amounts = Counter({row["_id"]: int(row["amount"]) - int(row["ahead"]) for row in found})
    for resource, _, units in changes.pending(gauge):
        amounts[resource] += units
    return Gauge(id=gauge.id, projects=amounts["projects"], storage_bytes=amounts["storage"])


class _NothingToDo(Exception):
    """Aborts a transaction without changes."""


async def _tell(
    transaction: Database, actor: Actor, resource: str, resource_id: str, user_id: ObjectId, drifts: list[Drift]
) -> None:
    names = [f"ledger {drift.what}" if drift.of == "ledger" else drift.what for drift in drifts]
    before: dict[str, Any] = {name: drift.was for name, drift in zip(names, drifts, strict=True)}
    after: dict[str, Any] = {name: drift.now for name, drift in zip(names, drifts, strict=True)}
    await records.write(
        transaction,
        actor,
        Action.USAGE_REBUILT,
        resource=resource,
        resource_id=resource_id,
        user_id=user_id,
        before=before,
        after=after,
    )
