"""What an operator puts right: quotas and gauges that are not what the ledger and the documents say, and forfeited units."""

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from bson import ObjectId

from ximler.audit import records
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.database import Database
from ximler.metering import gauges, ledger
from ximler.schema.document import Number
from ximler.schema.quota import QUOTAS, Quota

__all__ = ["Drift", "forgive", "rebuild", "rebuild_all"]

_MAX_REASON = 500


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One number that was not what it should be."""

    user_id: ObjectId
    of: str  # a quota's id, or "gauge"
    what: str
    was: int
    now: int


async def rebuild(database: Database, actor: Actor, user_id: ObjectId, *, dry_run: bool = False) -> list[Drift]:
    """Make the user's quotas what the ledger says and their gauge what exists; returns every difference that there was.

    Rows of the ledger that other applications wrote count from then on. What is forfeited stays so: no row tells of it.
    Operators only; a correction is audited. Raises Unauthenticated, Forbidden, NotFound.
    """
    actor.require_operator()
    if await database.users.find_one({"_id": user_id}, deleted=True) is None:
        raise NotFound(f"No user {user_id}")
    found: list[Drift] = []
    for quota in await database[QUOTAS].find({"userId": user_id}, sort=[("resource", 1), ("periodStart", 1)]):
        found += await _correct(database, actor, quota.id, dry_run=dry_run)
    return found + await _recount(database, actor, user_id, dry_run=dry_run)


async def rebuild_all(database: Database, actor: Actor, *, dry_run: bool = False) -> AsyncIterator[list[Drift]]:
    """`rebuild` for everybody, one after the other."""
    actor.require_operator()
    async for user in database.users.stream({}, deleted=True):
        yield await rebuild(database, actor, user.id, dry_run=dry_run)


async def forgive(database: Database, actor: Actor, user_id: ObjectId, *, reason: str, units: int | None = None) -> int:
    """Give back units that were forfeited in the current period, all of them unless `units` says how many; returns how many.

    They may have been used, by a process that died before it said so: giving them back may serve them twice. Operators only;
    audited. Raises Invalid, NotFound when there is no quota, Conflict when fewer are forfeited.
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
            raise NotFound(f"The user {user_id} has used nothing in this period")
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
                "metering.usage.forgiven",
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
    async def write(transaction: Database) -> list[Drift]:
        quota = await transaction[QUOTAS].find_one({"_id": quota_id})
        if quota is None:
            return []
        rows, foreign = await _rows(transaction, quota)
        hours = {key: max(int(quota.hours.get(key, 0)), rows.get(key, 0)) for key in {*quota.hours, *rows}}
        settled = sum(hours.values())
        right = {
            "settled": settled,
            "granted": settled + quota.forfeited + quota.open,
            "foreign": quota.foreign if quota.superseded else foreign,
        }
        drifts = [
            Drift(user_id=quota.user_id, of=quota.id, what=name, was=getattr(quota, name), now=value)
            for name, value in right.items()
            if getattr(quota, name) != value
        ]
        behind = [key for key, units in hours.items() if rows.get(key, 0) < units]
        if behind and not quota.leases:  # else it is on its way
            was = sum(rows.values())
            drifts.append(Drift(user_id=quota.user_id, of=quota.id, what="ledger", was=was, now=settled))
        if dry_run:
            return drifts
        if behind:
            await ledger.write(transaction, [msgspec.structs.replace(quota, hours={key: hours[key] for key in behind})])
        if drifts:
            gained = {f"hours.{key}": units for key, units in hours.items() if quota.hours.get(key) != units}
            await transaction[QUOTAS].patch({"_id": quota.id}, {"$set": {**right, **gained}, "$inc": {"steps": 1}})
            await _tell(transaction, actor, "quotas", quota.id, quota.user_id, drifts)
        return drifts

    return await database.transaction(write)


async def _rows(transaction: Database, quota: Quota) -> tuple[dict[str, int], int]:
    """What the ledger has of a quota's hours, and what others wrote into its period."""
    rows: dict[str, int] = {}
    foreign = 0
    found = await transaction.usage.find(
        {
            "userId": quota.user_id,
            "resourceType": quota.resource,
            "periodStart": {"$gte": quota.period_start, "$lt": quota.period_end},
        }
    )
    for row in found:
        source = row.metadata.get("source") if isinstance(row.metadata, dict) else None
        if source == ledger.LEASED:
            if row.metadata.get("quota") == quota.id:
                rows[ledger.hour_key_of(row.period_start)] = _whole(row.amount)
        elif source != ledger.RECORDED:
            foreign += _whole(row.amount)
    return rows, foreign


def _whole(amount: Number) -> int:
    """Whatever another application wrote."""
    return int(amount) if math.isfinite(amount) else 0


async def _recount(database: Database, actor: Actor, user_id: ObjectId, *, dry_run: bool) -> list[Drift]:
    drifts: list[Drift] = []

    async def write(transaction: Database) -> None:
        was, now = await gauges.recount(transaction, user_id)
        drifts[:] = [
            Drift(user_id=user_id, of="gauge", what=name, was=getattr(was, name), now=getattr(now, name))
            for name in ("projects", "storage_bytes")
            if getattr(was, name) != getattr(now, name)
        ]
        if dry_run or not drifts:
            raise _NothingToDo
        await _tell(transaction, actor, "gauges", str(user_id), user_id, drifts)

    with contextlib.suppress(_NothingToDo):
        await database.transaction(write)
    return drifts


class _NothingToDo(Exception):
    """Undoes the transaction."""


async def _tell(
    transaction: Database, actor: Actor, resource: str, resource_id: str, user_id: ObjectId, drifts: list[Drift]
) -> None:
    before: dict[str, Any] = {drift.what: drift.was for drift in drifts}
    after: dict[str, Any] = {drift.what: drift.now for drift in drifts}
    await records.write(
        transaction,
        actor,
        "metering.usage.rebuilt",
        resource=resource,
        resource_id=resource_id,
        user_id=user_id,
        before=before,
        after=after,
    )
