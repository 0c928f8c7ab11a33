"""A user's current usage against their limits: the numbers that are enforced.

Usage of API calls is the quota's, as reported (within a second), so reports agree with enforcement. For users
without a quota in this period it is the ledger's, with usage that other applications counted.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import cachebox
import msgspec
import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.database.codec import UnreadableDocument, codec_of
from ximler.database.monitoring import first_time
from ximler.database.topics import Topic
from ximler.metering.ledger.rows import WHOLE_AMOUNT
from ximler.metering.limits import periods
from ximler.metering.limits.plans import PLAN_STAGES, limits_from, row_of, subscriptions_of, unions
from ximler.metering.quota.gauges import GAUGE_STAGES, gauge_from
from ximler.schema.entitlement import ENTITLEMENTS
from ximler.schema.gauge import GAUGES
from ximler.schema.plan import UNLIMITED, Plan
from ximler.schema.quota import QUOTAS, Quota, quota_id, user_of
from ximler.schema.usage import ResourceType

__all__ = ["CHANGED", "ResourceUsage", "overview", "quota", "with_subscriptions"]

_log = structlog.get_logger("ximler.metering")
_SOON = timedelta(hours=1)
_MONTH = timedelta(days=31)
_REMEMBERED = 50_000
CHANGED = Topic(
    "usage",
    {
        GAUGES.name: lambda change: change.id,
        ENTITLEMENTS.name: lambda change: change.id,
        QUOTAS.name: lambda change: user_of(change.id),
    },
    each=False,
)
"""Changes of a user's usage or limits, by the user's id."""
_LEAN_QUOTA: list[dict[str, Any]] = [{"$project": {"hours": 0, "detail": 0}}]


class ResourceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`projects` and `storage` (bytes) are current totals without a period; `apiCalls` are counted per
    period.

    `projected` is the usage at the end of the period, extrapolated from the usage so far. `forfeited` units
    were held by a process that died and may have served them: `used + remaining + forfeited` is the limit
    until `corrections.forgive` gives them back.
    """

    resource: ResourceType
    used: int
    limit: int | None  # None is unlimited
    remaining: int | None
    forfeited: int = 0
    period_start: datetime | None = None
    period_end: datetime | None = None
    projected: int | None = None


async def quota(
    database: Database,
    actor: Actor,
    resource: ResourceType,
    *,
    user_id: ObjectId | None = None,
    plans: Mapping[str, Plan] | None = None,
) -> ResourceUsage:
    """One resource of the actor, or for operators of any user. One round trip. Raises NotFound,
    Unauthenticated.
    """
    user_id = user_id or actor.require_user()
    found = (await overview(database, actor, [user_id], plans=plans))[user_id]
    return next(usage for usage in found if usage.resource == resource)


async def overview(
    database: Database, actor: Actor, user_ids: Iterable[ObjectId], *, plans: Mapping[str, Plan] | None = None
) -> dict[ObjectId, list[ResourceUsage]]:
    """The three resources of each user. Users see themselves, operators all users; others are NotFound.

    One round trip for all, cheaper for the actor's own usage with all current `plans` by id. If several users
    are requested, those whose plan, entitlement, gauge or quota cannot be read are logged and left empty; a
    single one raises UnreadableDocument.
    """
    ids = list(dict.fromkeys(user_ids))
    if actor.kind not in ("operator", "system") and ids != [actor.require_user()]:
        raise NotFound("No such user")
    now = database.clock.now()
    rows = await _read_again(database, plans, ids[0], now) if plans and ids == [actor.user_id] else []
    if not rows:
        rows = await database.users.aggregate(
            [
                {"$match": {"_id": {"$in": ids}}},
                {"$project": {"_id": 1}},
                *PLAN_STAGES,
                *GAUGE_STAGES,
                *_quota_stages(now),
            ]
        )
    if len(rows) < len(ids):
        raise NotFound("No such user")
    found: dict[ObjectId, list[ResourceUsage]] = {}
    for row in rows:
        _remember(row, now)
        try:
            found[row["_id"]] = _resources(row, now)
        except UnreadableDocument as problem:
            if len(ids) == 1:
                raise
            found[row["_id"]] = []
            if first_time("usage of", row["_id"]):
                _log.warning("usage left out", user=str(row["_id"]), reason=problem.message)
    return found


async def with_subscriptions(
    database: Database, actor: Actor, plans: Mapping[str, Plan] | None
) -> tuple[list[ResourceUsage], list[dict[str, Any]]] | None:
    """The actor's usage, and the documents of their subscriptions, in one round trip.

    None if they must be read apart (see `_read_again`), or if a document of the usage cannot be read.
    """
    user_id, now = actor.require_user(), database.clock.now()
    rows = await _read_again(database, plans, user_id, now, whole=True) if plans else []
    if not rows:
        return None
    _remember(rows[0], now)
    try:
        return _resources(rows[0], now), rows[0]["subscriptions"]
    except UnreadableDocument:
        return None


def _resources(row: dict[str, Any], now: datetime) -> list[ResourceUsage]:
    limits, gauge = limits_from(row, now), gauge_from(row)
    return [
        _resource("projects", gauge.projects, limits.projects),
        _resource("storage", gauge.storage_bytes, limits.storage_bytes),
        _calls(row, limits.api_calls, now),
    ]


def _calls(row: dict[str, Any], limit: int, now: datetime) -> ResourceUsage:
    start, end = periods.around(row["anchor"], now)
    if not row["quota"]:
        used = sum(day["amount"] for day in row["calls"] if start <= day["_id"].replace(tzinfo=UTC) < end)
        return _resource("apiCalls", used, limit, start, end, _projected(used, start, end, now))
    quota = codec_of(Quota).decode(row["quota"][0])
    if quota.opened:
        limit = quota.limit_at(now)
    projected = _projected(quota.used, start, end, now)
    shown = _resource("apiCalls", quota.used, limit, start, end, projected)
    # Leased units can still be used, forfeited ones cannot.
    remaining = quota.remaining_at(now) if quota.opened else shown.remaining
    return msgspec.structs.replace(shown, remaining=remaining, forfeited=quota.forfeited)


def _projected(used: int, start: datetime, end: datetime, now: datetime) -> int:
    """Extrapolated in proportion to the elapsed time, at least an hour."""
    return max(used, round(used * ((end - start) / max(now - start, _SOON))))


def _resource(
    resource: ResourceType,
    used: int,
    limit: int,
    start: datetime | None = None,
    end: datetime | None = None,
    projected: int | None = None,
) -> ResourceUsage:
    unlimited = limit <= UNLIMITED
    return ResourceUsage(
        resource=resource,
        used=used,
        limit=None if unlimited else limit,
        remaining=None if unlimited else max(0, limit - used),
        period_start=start,
        period_end=end,
        projected=projected,
    )


class _Shape(msgspec.Struct, frozen=True):
    """Parts of a user's last row: the id of the quota, and whether there was one."""

    quota_id: str
    metered: bool


_shapes: "cachebox.LRUCache[ObjectId, _Shape]" = cachebox.LRUCache(_REMEMBERED)
"""Of users with a gauge. They only choose how a row is read:
a row that turns out to be another is read in full."""


def _remember(row: dict[str, Any], now: datetime) -> None:
    if row["gauge"]:
        start, _ = periods.around(row["anchor"], now)
        _shapes[row["_id"]] = _Shape(quota_id(row["_id"], "apiCalls", start), bool(row["quota"]))
    else:
        _shapes.pop(row["_id"], None)


async def _read_again(
    database: Database, plans: Mapping[str, Plan], user_id: ObjectId, now: datetime, *, whole: bool = False
) -> list[dict[str, Any]]:
    """The row of a user who exists and whose shape is known, by reads of keys alone,
    in less of the server's time than lookups take. It has all `subscriptions`, `whole` with every field.

    Empty if the shape is unknown, or no longer that of the user, or if the plan is not in `plans`.
    """
    shape: _Shape | None = _shapes.get(user_id)
    if shape is None:
        return []
    parts: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "subscriptions": subscriptions_of(user_id, whole=whole),
        "entitled": ("entitlements", [{"$match": {"_id": user_id}}]),
        "quota": ("quotas", [{"$match": {"_id": shape.quota_id}}, *_LEAN_QUOTA]),
    }
    if not shape.metered:
        parts["calls"] = ("usage", [{"$match": {"userId": user_id}}, *_calls_by_day(now)])
    # Gauges come first and unnamed: each stage costs the server as much as the read of a key.
    found = await database[GAUGES].aggregate([{"$match": {"_id": user_id}}, *unions(parts)])
    read: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    gauge: list[dict[str, Any]] = []
    for part in found:
        if "_id" in part:
            gauge.append(part)
        else:
            ((name, document),) = part.items()
            read[name].append(document)
    row = row_of(user_id, read["subscriptions"], plans)
    if row is None or not gauge:
        return []
    row |= read
    row["gauge"] = gauge
    started = row["active"][0].get("startDate") if row["active"] else None
    row["anchor"] = started.day if isinstance(started, datetime) else periods.CALENDAR_MONTH
    start, _ = periods.around(row["anchor"], now)
    fits = shape == _Shape(quota_id(user_id, "apiCalls", start), bool(row["quota"]))
    return [row] if fits else []


def _calls_by_day(now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "$match": {
                "resourceType": "apiCalls",
                "periodStart": {"$gte": now - _MONTH, "$lt": now + _MONTH},
            }
        },
        {
            "$group": {
                "_id": {"$dateTrunc": {"date": "$periodStart", "unit": "day"}},
                "amount": {"$sum": WHOLE_AMOUNT},
            }
        },
    ]


def _quota_stages(now: datetime) -> list[dict[str, Any]]:
    """After these (and `PLAN_STAGES`), a user's row has `anchor`, `quota`, and `calls` by day if there is no
    quota.

    A quota is looked up by its `_id`, so that a cluster queries one shard. The id is built from a table, by
    anchor, of the first days of the current periods.
    """
    begins = _begins(now.date())
    started = {"$first": "$active.startDate"}
    anchor = {"$cond": [{"$eq": [{"$type": started}, "date"]}, {"$dayOfMonth": started}, periods.CALENDAR_MONTH]}
    day = {"$arrayElemAt": [begins, {"$subtract": ["$anchor", 1]}]}
    return [
        {"$set": {"anchor": anchor}},
        {"$set": {"quotaId": {"$concat": [{"$toString": "$_id"}, ":apiCalls:", day]}}},
        {
            "$lookup": {
                "from": "quotas",
                "localField": "quotaId",
                "foreignField": "_id",
                "pipeline": _LEAN_QUOTA,
                "as": "quota",
            }
        },
        {"$set": {"unmetered": {"$cond": [{"$eq": ["$quota", []]}, "$_id", "nobody"]}}},
        {
            "$lookup": {
                "from": "usage",
                "localField": "unmetered",
                "foreignField": "userId",
                "pipeline": _calls_by_day(now),
                "as": "calls",
            }
        },
    ]


@lru_cache(1)
def _begins(today: date) -> list[str]:
    """The first day of the period that contains `today`, for each anchor."""
    noon = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    return [f"{periods.around(day, noon)[0]:%Y-%m-%d}" for day in range(1, 32)]
