"""Usage over time, from the ledger: by hour, day or month in UTC, and the top consumers.

API calls are in the ledger within a second, changes of projects and storage within two. A series of projects
or storage has both the changes, which can be summed over any time, and the level after them, for charts. The
ledger begins with Ximler's first count of a user's projects: existing ones are a change of that hour.
"""

from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice, pairwise
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.clock import LAST, shifted
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.metering.ledger.rows import WHOLE_AMOUNT
from ximler.schema.usage import ResourceType

__all__ = ["MAX_POINTS", "Consumer", "Interval", "Point", "series", "top_consumers"]

Interval = Literal["HOUR", "DAY", "MONTH"]

MAX_POINTS = 1000
_MOST_MONTHS = 120
_MOST_DAYS_OF_ALL = 31  # of all users' ledger
_MOST_CONSUMERS = 100
_BEFORE = datetime(1, 1, 1, tzinfo=UTC)  # represents everything before the first point


class Point(msgspec.Struct, frozen=True):
    """Usage from `start` until `end`, exclusive. For projects and storage the net change, and the `level` at
    the end; API calls have no level.
    """

    start: datetime
    end: datetime
    amount: int
    level: int | None = None


class Consumer(msgspec.Struct, frozen=True):
    user_id: ObjectId
    amount: int


async def series(
    database: Database,
    actor: Actor,
    resource: ResourceType,
    *,
    since: datetime,
    until: datetime,
    by: Interval,
    user_id: ObjectId | None = None,
) -> list[Point]:
    """The actor's usage, or for operators any user's, with a point for every hour, day or month that begins
    before `until` and ends after `since`. Points without usage are 0.

    One round trip, which examines the requested hours, and for projects and storage all earlier hours with
    changes. Raises Invalid for more than `MAX_POINTS` points, NotFound.
    """
    if actor.kind not in ("operator", "system"):
        actor.require_user()
        if user_id not in (None, actor.user_id):
            raise NotFound("No such user")
    own = user_id or actor.require_user()
    edges = _edges(since, until, by)
    is_gauge = resource != "apiCalls"
    start: dict[str, Any] = {"$dateTrunc": {"date": "$periodStart", "unit": by.lower()}}
    if is_gauge:
        start = {"$cond": [{"$lt": ["$periodStart", edges[0]]}, _BEFORE, start]}
    rows = await database.usage.aggregate(
        [
            {
                "$match": {
                    "userId": own,
                    "resourceType": resource,
                    "periodStart": {"$lt": edges[-1]} if is_gauge else {"$gte": edges[0], "$lt": edges[-1]},
                }
            },
            {"$group": {"_id": start, "amount": {"$sum": WHOLE_AMOUNT}}},
        ]
    )
    amounts: dict[datetime, int] = {row["_id"].replace(tzinfo=UTC): row["amount"] for row in rows}
    points = [Point(start, end, amounts.get(start, 0)) for start, end in pairwise(edges)]
    if not is_gauge:
        return points
    levels = accumulate((point.amount for point in points), initial=amounts.get(_BEFORE, 0))
    return [Point(p.start, p.end, p.amount, level) for p, level in zip(points, islice(levels, 1, None), strict=True)]


async def top_consumers(
    database: Database, actor: Actor, resource: ResourceType, *, since: datetime, until: datetime, first: int = 10
) -> list[Consumer]:
    """The users with the highest usage from `since` until `until`, exclusive, at most 31 days apart.
    Operators only. One round trip, which reads the ledger of all users for that time. Raises Invalid,
    Forbidden, Unauthenticated.
    """
    actor.require_operator()
    if not 1 <= first <= _MOST_CONSUMERS:
        raise Invalid.field("first", f"{first} is not between 1 and {_MOST_CONSUMERS}")
    if not timedelta() < until - since <= timedelta(days=_MOST_DAYS_OF_ALL):
        raise Invalid.field("to", f"must be after `from`, and {_MOST_DAYS_OF_ALL} days at most")
    rows = await database.usage.aggregate(
        [
            {"$match": {"periodStart": {"$gte": since, "$lt": until}, "resourceType": resource}},
            {"$group": {"_id": "$userId", "amount": {"$sum": WHOLE_AMOUNT}}},
            {"$sort": {"amount": -1, "_id": 1}},
            {"$limit": first},
        ]
    )
    return [Consumer(row["_id"], row["amount"]) for row in rows]


def _edges(since: datetime, until: datetime, by: Interval) -> list[datetime]:
    """The starts of the points, and the end of the last one."""
    if until <= since:
        raise Invalid.field("to", "must be after `from`")
    if since.year < 1970:
        raise Invalid.field("from", "must be in 1970 or later")
    edges = [_floor(since.astimezone(UTC), by)]
    most = _MOST_MONTHS if by == "MONTH" else MAX_POINTS
    while edges[-1] < until:
        if len(edges) > most:
            raise Invalid.field(
                "to", f"is more than {most:,} {by.lower()}s after `from`: ask for less, or by a longer interval"
            )
        edges.append(_next(edges[-1], by))
    return edges


def _floor(moment: datetime, by: Interval) -> datetime:
    parts: dict[str, Any] = {"minute": 0, "second": 0, "microsecond": 0}
    if by != "HOUR":
        parts["hour"] = 0
    if by == "MONTH":
        parts["day"] = 1
    return moment.replace(**parts)


def _next(start: datetime, by: Interval) -> datetime:
    if by == "HOUR":
        return shifted(start, timedelta(hours=1))
    if by == "DAY":
        return shifted(start, timedelta(days=1))
    following = shifted(start, timedelta(days=31))
    return following if following == LAST else _floor(following, "MONTH")
