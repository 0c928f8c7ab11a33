"""Usage over time, from the ledger: by hour, day or month in UTC, and who used most.

What was served is in the ledger within a second of it, and what was added or removed of projects and storage within two. Of
these a series has both: the changes, which add up over any time as calls do, and the level that they led to, which is what one
draws. The ledger begins where Ximler first counted a user's projects: what was there before is a change of that hour.
"""

from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice, pairwise
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.metering.ledger.rows import WHOLE_AMOUNT
from ximler.schema.usage import ResourceType

__all__ = ["MAX_POINTS", "Consumer", "Interval", "Point", "series", "top_consumers"]

Interval = Literal["HOUR", "DAY", "MONTH"]

MAX_POINTS = 1000
_MOST_MONTHS = 120
_MOST_DAYS_OF_ALL = 31  # of everybody's ledger
_MOST_CONSUMERS = 100
_BEFORE = datetime(1, 1, 1, tzinfo=UTC)  # stands for everything before the first point


class Point(msgspec.Struct, frozen=True):
    """What was used from `start` to just before `end`; of projects and storage what was added, less what was removed, and
    the `level` at the end: how many there were then. API calls have no level."""

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
    """The actor's own usage, or, for operators, anybody's, with a point for every hour, day or month that begins before
    `until` and ends after `since`; those without use have 0.

    One round trip, which examines the hours asked for, and of projects and storage all before them that knew a change. Raises
    Invalid for more than `MAX_POINTS` points, NotFound.
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
    """Who used most of it from `since` to just before `until`, 31 days at most; for operators. One round trip, which reads
    everybody's hours of that time. Raises Invalid, Forbidden, Unauthenticated."""
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
    """Where the points begin, and where the last one ends."""
    if until <= since:
        raise Invalid.field("to", "must be after `from`")
    if not (since.year >= 1970 and until.year <= 9998):
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
        return start + timedelta(hours=1)
    if by == "DAY":
        return start + timedelta(days=1)
    return _floor(start + timedelta(days=31), "MONTH")
