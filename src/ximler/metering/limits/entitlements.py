"""Entitlements: each user's limits, written by every operation that changes them.

The source is the plan of the active or past due subscription, else the free plan; an operator's override
takes precedence. It is copied into `entitlements`, and from there into the limits of the user's open quotas,
in one transaction; processes read a quota's limit twice a second. `heal` applies changes by other
applications.

Projects and bytes are limited by gauges instead of quotas, which read the source itself (see `limits_of`).
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from bson import ObjectId
from prometheus_client import Counter

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import rfc3339
from ximler.core.errors import Invalid, NotFound, XimlerError
from ximler.database import Database
from ximler.database.failures import DRIVER_ERRORS, DocumentExists, translated
from ximler.metering.limits import periods
from ximler.metering.limits.plans import LIMITS, PLAN_STAGES, entitled, many, plan_from, rows_from
from ximler.schema.entitlement import ENTITLEMENTS, Entitlement, Override
from ximler.schema.plan import UNLIMITED, Plan
from ximler.schema.quota import QUOTAS, Quota, quota_id

__all__ = [
    "copy_limit",
    "copy_plan",
    "end_override",
    "entitle",
    "heal",
    "heal_all",
    "open_quota",
    "override",
    "quota_of",
    "resolve",
]

UNRESOLVED = Counter("ximler_metering_unresolved_entitlements_total", "Users whose plan or entitlement cannot be read.")
_log = structlog.get_logger("ximler.metering")
_MAX_REASON = 500
_MAX_LIMIT = 2**53
_AT_ONCE = 200
_TOGETHER = 50  # users per transaction: more users make conflicts with their leases likelier


async def resolve(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, Entitlement]:
    """The users' limits by their current subscriptions, plans and overrides. One round trip, read-only.

    Omits unknown users, and users whose plan cannot be read, which are logged and counted.
    """
    found, _ = _readable(await _rows(database, list(dict.fromkeys(user_ids))))
    return {new.id: new for new, _ in found}


async def entitle(transaction: Database, user_id: ObjectId) -> Entitlement:
    """Update the user's entitlement. Call it in the transaction of a change, after the change.

    It takes effect in every process within a second of the commit. A limit below the current usage blocks
    further usage and deletes nothing. If the first day of the periods moves, a new quota begins; moving it
    back restores the earlier quota. Two commands; three if something changed. Raises NotFound, NoFreePlan.
    """
    result = await transaction.together(_entitle_each, user_id)
    if isinstance(result, Entitlement):
        return result
    raise result


async def _entitle_each(transaction: Database, user_ids: list[ObjectId]) -> list[Entitlement | XimlerError]:
    found, problem = await _entitle(transaction, user_ids)
    by_id = {each.id: each for each in found}
    return [by_id.get(user_id) or problem or NotFound(f"No user {user_id}") for user_id in user_ids]


async def open_quota(database: Database, user_id: ObjectId, moment: datetime) -> Quota:
    """The user's quota of API calls for the period around `moment`, created if missing.

    Once per period: five commands. It writes the entitlement that the limit is copied from, so that a
    concurrent change of limits conflicts and is serialised. Raises NotFound, NoFreePlan.
    """

    async def write(transaction: Database) -> Quota:
        entitlement = await entitle(transaction, user_id)
        fresh = quota_of(entitlement, moment, now=transaction.clock.now())
        found = await transaction[QUOTAS].find_one({"_id": fresh.id})
        if found is None:
            return await transaction[QUOTAS].insert(msgspec.structs.replace(fresh, opened=True))
        limits = {
            "limit": fresh.limit,
            "limitUntil": fresh.limit_until,
            "limitThen": fresh.limit_then,
            "planId": fresh.plan_id,
            "periodEnd": fresh.period_end,
        }
        changed = await transaction[QUOTAS].find_and_patch(
            {"_id": fresh.id}, {"$set": {**limits, "opened": True, "superseded": False}, "$inc": {"steps": 1}}
        )
        return changed or found

    try:
        return await database.transaction(write)
    except DocumentExists:  # created by another process concurrently
        return await database.transaction(write)


def quota_of(entitlement: Entitlement, moment: datetime, *, now: datetime) -> Quota:
    """An unused quota of API calls for the period around `moment`, with the entitlement's limit."""
    start, end = periods.around(entitlement.anchor_day, moment)
    limit, until, then = _limit(entitlement, now)
    return Quota(
        id=quota_id(entitlement.id, "apiCalls", start),
        user_id=entitlement.id,
        resource="apiCalls",
        period_start=start,
        period_end=end,
        limit=limit,
        limit_until=until,
        limit_then=then,
        plan_id=_followed(entitlement, now),
    )


async def override(
    database: Database,
    actor: Actor,
    user_id: ObjectId,
    *,
    reason: str,
    projects: int | None = None,
    storage_bytes: int | None = None,
    api_calls: int | None = None,
    expires_at: datetime | None = None,
) -> Entitlement:
    """Override the user's limits, replacing an earlier override. -1 is unlimited, None the plan's limit.

    Operators only; audited. It takes effect everywhere within a second, and ends at `expires_at`. Raises
    Invalid, NotFound, Unauthenticated, Forbidden.
    """
    actor.require_operator()
    now = database.clock.now()
    limits = {"projects": projects, "storage_bytes": storage_bytes, "api_calls": api_calls}
    for name, limit in (("projects", projects), ("storageBytes", storage_bytes), ("apiCalls", api_calls)):
        if limit is not None and not (type(limit) is int and UNLIMITED <= limit <= _MAX_LIMIT):
            raise Invalid.field(name, f"{limit!r} is not a limit: 0 to {_MAX_LIMIT:,}, or -1 for unlimited")
    if set(limits.values()) == {None}:
        raise Invalid("An override needs a limit: projects, storage or API calls")
    if expires_at is not None and expires_at <= now:
        raise Invalid.field("expiresAt", f"{rfc3339(expires_at)} has passed")
    new = Override(**limits, reason=_reason(reason), by=str(actor.user_id or actor.via))
    return await _override(database, actor, user_id, new, expires_at, Action.OVERRIDE_SET, reason=new.reason)


async def end_override(database: Database, actor: Actor, user_id: ObjectId, *, reason: str) -> Entitlement:
    """Restore the plan's limits, everywhere within a second. Operators only; audited. Raises Invalid,
    NotFound.
    """
    actor.require_operator()
    return await _override(database, actor, user_id, None, None, Action.OVERRIDE_ENDED, reason=_reason(reason))


async def heal(database: Database, user_ids: Iterable[ObjectId]) -> int:
    """Reconcile these users' entitlements with their subscriptions and plans; returns how many differed.

    Users whose plan cannot be read keep their entitlement, are logged and counted, and do not hold up the
    others. One command if nothing differs.
    """
    found, _ = _readable(await _rows(database, list(dict.fromkeys(user_ids))))
    changed = [new.id for new, old in found if old is not None and _differs(old, new)]
    for first in range(0, len(changed), _TOGETHER):
        some = changed[first : first + _TOGETHER]
        await database.transaction(lambda transaction, some=some: _entitle(transaction, some))  # type: ignore[misc]
    return len(changed)


async def heal_all(database: Database) -> int:
    """`heal` all users, because changes may have been missed."""
    batch: list[ObjectId] = []
    count = 0
    async for entitlement in database[ENTITLEMENTS].stream({}, batch=_AT_ONCE):
        batch.append(entitlement.id)
        if len(batch) == _AT_ONCE:
            count += await heal(database, batch)
            batch.clear()
    return count + (await heal(database, batch) if batch else 0)


async def copy_plan(database: Database, plan_id: str) -> int:
    """Copy the plan's limits to the quotas and entitlements that follow it; returns the number of changes.

    Quotas with open leases come first. Three commands for any number of users, and three more to verify that
    none is left.

    Not in a transaction, because one that changes thousands of quotas would conflict with their leases
    without end. So the plan is read again afterwards; otherwise the slower of two processes might leave an
    earlier limit behind. Entitlements come before the other quotas: a transaction that opens a quota writes
    the entitlement, so either it commits first and its quota is found here, or it conflicts and is retried
    with the new limits. Only the first quota of a new user can be missed; `leases.current` finds it.
    """
    count = 0
    while (plan := await database.plans.find_one({"id": plan_id})) is not None:
        found = await copy_limit(database, plan, {"holders": {"$gt": ""}})
        found += await _copy_limits(database, plan)
        found += await copy_limit(database, plan, {})
        if not found:
            break
        count += found
    return count


async def copy_limit(database: Database, plan: Plan, which: dict[str, Any]) -> int:
    """Copy the plan's limit of calls to the current quotas that follow it;
    returns their number. One command."""
    limit, now = plan.limits.api_calls, database.clock.now()
    other = [
        {"limitUntil": None, "limit": {"$ne": limit}},
        {"limitUntil": {"$ne": None}, "limitThen": {"$ne": limit}},
    ]
    ends = {"$ne": [{"$ifNull": ["$limitUntil", None]}, None]}
    values = {
        "limit": {"$cond": [ends, "$limit", limit]},
        "limitThen": {"$cond": [ends, limit, "$$REMOVE"]},
        "steps": _next("steps"),
        "updatedAt": now,
    }
    where = {"planId": plan.id, "periodEnd": {"$gt": now}, "$or": other}
    return await _update(database, QUOTAS.name, where | which, values)


async def _copy_limits(database: Database, plan: Plan) -> int:
    """Copy the plan's limits to the entitlements of its users."""
    values = {
        "planName": plan.name,
        "projects": plan.limits.projects,
        "storageBytes": plan.limits.storage_bytes,
        "apiCalls": plan.limits.api_calls,
    }
    where = {"planId": plan.id, "$or": [{name: {"$ne": value}} for name, value in values.items()]}
    fresh = {"revision": _next("revision"), "updatedAt": database.clock.now()}
    return await _update(database, ENTITLEMENTS.name, where, {**values, "planName": {"$literal": plan.name}, **fresh})


async def _update(database: Database, name: str, where: dict[str, Any], values: dict[str, Any]) -> int:
    try:
        return (await database.raw[name].update_many(where, [{"$set": values}])).matched_count
    except DRIVER_ERRORS as error:
        raise translated(error, name) from error


def _next(count: str) -> dict[str, Any]:
    """The count plus one. A non-numeric value in one document must not fail the update of all."""
    return {"$cond": [{"$isNumber": f"${count}"}, {"$add": [f"${count}", 1]}, 1]}


# Fields copied from subscription and plan, by name in MongoDB.
_COPIED = {
    "planId": "plan_id",
    "planName": "plan_name",
    "projects": "projects",
    "storageBytes": "storage_bytes",
    "apiCalls": "api_calls",
    "anchorDay": "anchor_day",
}


async def _rows(database: Database, user_ids: list[ObjectId]) -> list[dict[str, Any]]:
    if not user_ids:
        return []
    if database.session is None:
        return rows_from(await database.users.aggregate(many(user_ids)))
    return await database.users.aggregate(  # `$unionWith` is not allowed in transactions
        [{"$match": {"_id": {"$in": user_ids}}}, {"$project": {"_id": 1}}, *PLAN_STAGES]
    )


def _resolved(user_id: ObjectId, row: dict[str, Any]) -> Entitlement:
    plan, old = plan_from(row), entitled(row)
    start = row["active"][0].get("startDate") if row.get("active") else None
    return Entitlement(
        id=user_id,
        plan_id=row["planIds"][1],
        plan_name=plan.name,
        projects=plan.limits.projects,
        storage_bytes=plan.limits.storage_bytes,
        api_calls=plan.limits.api_calls,
        anchor_day=periods.anchor_day(start.replace(tzinfo=UTC) if isinstance(start, datetime) else None),
        override=old.override if old else None,
        override_until=old.override_until if old else None,
    )


def _readable(rows: list[dict[str, Any]]) -> tuple[list[tuple[Entitlement, Entitlement | None]], XimlerError | None]:
    """Each user's entitlement as it should be and as stored; and the last error of users that cannot be
    resolved.
    """
    found: list[tuple[Entitlement, Entitlement | None]] = []
    problem = None
    for row in rows:
        try:
            found.append((_resolved(row["_id"], row), entitled(row)))
        except XimlerError as error:  # an unreadable plan or entitlement
            problem = error
            UNRESOLVED.inc()
            _log.warning("entitlement not resolved", user=str(row["_id"]), plan=row["planIds"][1], reason=error.message)
    return found, problem


def _limit(entitlement: Entitlement, now: datetime) -> tuple[int, datetime | None, int | None]:
    """The limit of API calls, until when it holds, and the limit after that."""
    override = entitlement.override_at(now)
    if override is None or override.api_calls is None:
        return entitlement.api_calls, None, None
    if entitlement.override_until is None:
        return override.api_calls, None, None
    return override.api_calls, entitlement.override_until, entitlement.api_calls


def _followed(entitlement: Entitlement, now: datetime) -> str | None:
    """The plan whose limit of calls applies, now or after the override."""
    override = entitlement.override_at(now)
    overridden = override is not None and override.api_calls is not None and entitlement.override_until is None
    return None if overridden else entitlement.plan_id


async def _entitle(transaction: Database, user_ids: list[ObjectId]) -> tuple[list[Entitlement], XimlerError | None]:
    if transaction.session is None:
        raise RuntimeError("a user is entitled in the transaction of the change")
    found, problem = _readable(await _rows(transaction, user_ids))
    if not found:
        return [], problem
    await transaction[ENTITLEMENTS].upsert_each(
        [
            (
                {"_id": new.id},
                {"$set": {name: getattr(new, of) for name, of in _COPIED.items()}, "$inc": {"revision": 1}},
                new,
            )
            for new, _ in found
        ]
    )
    await _follow(transaction, [new for new, old in found if old is None or _differs(old, new)])
    return [new for new, _ in found], problem


def _differs(old: Entitlement, new: Entitlement) -> bool:
    return any(getattr(old, name) != getattr(new, name) for name in _COPIED.values())


async def _follow(transaction: Database, changed: list[Entitlement]) -> None:
    """Update these users' current quotas. One command for all users with the same limit and first day.

    Quotas whose start is no longer the start of a period, because the anchor moved, are superseded. The next
    period's quota may exist already, opened by a process whose clock is ahead.
    """
    now = transaction.clock.now()
    alike: dict[Any, list[ObjectId]] = {}
    for entitlement in changed:
        key = (_followed(entitlement, now), *_limit(entitlement, now), *periods.around(entitlement.anchor_day, now))
        alike.setdefault(key, []).append(entitlement.id)
    for (plan_id, limit, until, then, start, end), user_ids in alike.items():
        await transaction[QUOTAS].raw.update_many(
            {
                "userId": {"$in": user_ids},
                "resource": "apiCalls",
                "periodStart": {"$gt": _long_before(start)},
                "periodEnd": {"$gt": now},
            },
            [
                {
                    "$set": {
                        "limit": limit,
                        "limitUntil": "$$REMOVE" if until is None else until,
                        "limitThen": "$$REMOVE" if then is None else then,
                        "planId": "$$REMOVE" if plan_id is None else {"$literal": plan_id},
                        "superseded": {"$not": [{"$in": ["$periodStart", [start, end]]}]},
                        "periodEnd": {"$cond": [{"$eq": ["$periodStart", start]}, end, "$periodEnd"]},
                        "steps": _next("steps"),
                        "updatedAt": now,
                    }
                }
            ],
            session=transaction.session,
        )


def _long_before(start: datetime) -> datetime:
    """A lower bound of the start of current periods, which lets the index skip earlier years."""
    return periods.around(1, periods.around(1, start)[0] - periods.INSTANT)[0]


async def _override(
    database: Database,
    actor: Actor,
    user_id: ObjectId,
    new: Override | None,
    until: datetime | None,
    action: Action,
    *,
    reason: str,
) -> Entitlement:

    async def write(transaction: Database) -> Entitlement:
        before = await entitle(transaction, user_id)
        changed = await transaction[ENTITLEMENTS].find_and_patch(
            {"_id": user_id},
            # Removed first, so that limits absent from the new override do not survive from the old one.
            {"$set": {"override": new, "overrideUntil": until}},
        )
        if changed is None:
            raise NotFound(f"No user {user_id}")
        await _follow(transaction, [changed])
        await records.write(
            transaction,
            actor,
            action,
            resource="entitlements",
            resource_id=user_id,
            user_id=user_id,
            before=_shown(before.override, before.override_until),
            after=_shown(changed.override, changed.override_until),
            reason=reason,
        )
        return changed

    return await database.transaction(write)


def _shown(override: Override | None, until: datetime | None) -> dict[str, Any]:
    if override is None:
        return {}
    limits = {name: value for name in LIMITS if (value := getattr(override, name)) is not None}
    return {**limits, "reason": override.reason, "by": override.by} | ({"until": until} if until else {})


def _reason(reason: str) -> str:
    reason = reason.strip()
    if not reason:
        raise Invalid.field("reason", "is required and must not be empty")
    if len(reason) > _MAX_REASON:
        raise Invalid.field("reason", f"is longer than {_MAX_REASON} characters")
    return reason
