"""What a user has used, against what they may."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.metering.gauges import GAUGE_STAGES, gauge_from
from ximler.metering.limits import PLAN_STAGES, limits_from
from ximler.schema.plan import UNLIMITED
from ximler.schema.usage import ResourceType

__all__ = ["ResourceUsage", "month", "overview"]


class ResourceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`projects` and `storage` (bytes) are what exists now and have no period; `apiCalls` are counted by the month."""

    resource: ResourceType
    used: int
    limit: int | None  # None is unlimited
    remaining: int | None
    period_start: datetime | None = None
    period_end: datetime | None = None


def month(moment: datetime) -> tuple[datetime, datetime]:
    """The calendar month around a moment, in UTC: from its first instant to the next month's."""
    start = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = start.replace(year=start.year + 1, month=1) if start.month == 12 else start.replace(month=start.month + 1)
    return start, end


async def overview(
    database: Database, actor: Actor, user_ids: Iterable[ObjectId]
) -> dict[ObjectId, list[ResourceUsage]]:
    """The three resources of each user that the actor may see: themselves; an operator sees all. Others are NotFound.

    One round trip for all of them.
    """
    ids = list(dict.fromkeys(user_ids))
    if actor.kind not in ("operator", "system") and ids != [actor.require_user()]:
        raise NotFound("No such user")
    now = database.clock.now()
    start, end = month(now)
    rows = await database.users.aggregate(
        [
            {"$match": {"_id": {"$in": ids}}},
            {"$project": {"_id": 1}},
            *PLAN_STAGES,
            *GAUGE_STAGES,
            _calls_between(start, end),
        ]
    )
    if len(rows) < len(ids):
        raise NotFound("No such user")
    found = {}
    for row in rows:
        limits, gauge = limits_from(row, now), gauge_from(row)
        calls = row["calls"][0]["amount"] if row["calls"] else 0
        found[row["_id"]] = [
            _resource("projects", gauge.projects, limits.projects),
            _resource("storage", gauge.storage_bytes, limits.storage_bytes),
            _resource("apiCalls", calls, limits.api_calls, start, end),
        ]
    return found


def _resource(
    resource: ResourceType, used: int, limit: int, start: datetime | None = None, end: datetime | None = None
) -> ResourceUsage:
    unlimited = limit <= UNLIMITED
    return ResourceUsage(
        resource=resource,
        used=used,
        limit=None if unlimited else limit,
        remaining=None if unlimited else max(0, limit - used),
        period_start=start,
        period_end=end,
    )


# Whatever kind of number another application wrote.
_WHOLE_AMOUNT = {"$convert": {"input": "$amount", "to": "long", "onError": 0, "onNull": 0}}


def _calls_between(start: datetime, end: datetime) -> dict[str, Any]:
    return {
        "$lookup": {
            "from": "usage",
            "localField": "_id",
            "foreignField": "userId",
            "pipeline": [
                {"$match": {"resourceType": "apiCalls", "periodStart": {"$gte": start, "$lt": end}}},
                {"$group": {"_id": None, "amount": {"$sum": _WHOLE_AMOUNT}}},
            ],
            "as": "calls",
        }
    }
