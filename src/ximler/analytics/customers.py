"""Reports about users: sign-ups until their first payment, usage, limits and storage. Operators only."""

from collections import defaultdict
from datetime import date
from statistics import median
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.analytics import buckets
from ximler.analytics.spans import By, midnight, spans, truncated
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.metering.reports import business
from ximler.metering.reports.business import NearLimit, PlanStorage, UserAmount
from ximler.schema.usage import ResourceType

__all__ = [
    "LARGEST",
    "USED",
    "NearLimit",
    "PlanStorage",
    "Signup",
    "Signups",
    "UsageLine",
    "UserAmount",
    "largest",
    "near_limits",
    "signups",
    "signups_of",
    "storage",
    "usage",
]

_MOST_ROWS = 1_000
_DAY_MS = 86_400_000


class Signups(msgspec.Struct, frozen=True, kw_only=True):
    """The users who registered in `[start, end)`, and what became of them until now.

    `days_to_pay` is the median time from registration to the first payment. `conversion` is a fraction.
    """

    start: date
    end: date
    registered: int
    verified: int
    paid: int
    conversion: float | None
    days_to_pay: float | None


class Signup(msgspec.Struct, frozen=True, kw_only=True):
    """The rows behind the figures."""

    user_id: ObjectId
    registered: date
    verified: bool
    days_to_pay: float | None


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """Calls made, projects added and bytes added by a plan's users over `[start, end)`."""

    start: date
    end: date
    resource: ResourceType
    plan_id: str | None
    users: int
    amount: int


async def signups(database: Database, actor: Actor, *, start: date, end: date, by: By = "MONTH") -> list[Signups]:
    """A line for each period. Raises Forbidden, and Invalid for an empty range.
    One command, which reads each sign-up's first payment.
    """
    actor.require_operator()
    periods = spans(start, end, by)
    stages = [
        *_signups(start, end),
        {
            "$group": {
                "_id": truncated("$createdAt", start, by),
                "registered": {"$sum": 1},
                "verified": {"$sum": {"$cond": ["$verified", 1, 0]}},
                "days": {"$push": "$days"},  # those who paid: absent ones are not pushed
            }
        },
    ]
    found = {row["_id"].date(): row for row in await database.users.aggregate(stages)}
    lines = []
    for first, last in periods:
        row = found.get(first, {"registered": 0, "verified": 0, "days": []})
        paid = len(row["days"])
        lines.append(
            Signups(
                start=first,
                end=last,
                registered=row["registered"],
                verified=row["verified"],
                paid=paid,
                conversion=paid / row["registered"] if row["registered"] else None,
                days_to_pay=median(row["days"]) if paid else None,
            )
        )
    return lines


async def signups_of(database: Database, actor: Actor, *, start: date, end: date, first: int = 20) -> list[Signup]:
    """The latest users who registered in the range. Raises as `signups`."""
    actor.require_operator()
    spans(start, end, "MONTH", most=None)
    rows = await database.users.aggregate(_signups(start, end, limit=_checked(first)))
    return [
        Signup(
            user_id=row["_id"],
            registered=row["createdAt"].date(),
            verified=row["verified"],
            days_to_pay=row.get("days"),
        )
        for row in rows
    ]


async def usage(database: Database, actor: Actor, *, start: date, end: date, by: By = "MONTH") -> list[UsageLine]:
    """Usage by period, resource and plan. Raises as `signups`.

    One command for whole periods that are rolled up; periods that the range cuts are read from the ledger's
    rows. Periods that are not over may be half an hour old.
    """
    actor.require_operator()
    periods = spans(start, end, by)
    found = await buckets.read(database, USED, periods, by)
    return [
        UsageLine(
            start=first,
            end=last,
            resource=line["resource"],
            plan_id=line.get("plan"),
            users=line["users"],
            amount=line["amount"],
        )
        for first, last in periods
        for line in found[first]
    ]


async def largest(
    database: Database,
    actor: Actor,
    *,
    resource: Literal["apiCalls", "storage", "projects"],
    start: date,
    end: date,
    first: int = 20,
) -> list[UserAmount]:
    """The users with the largest usage: of calls in the range,
    of projects and bytes now. Raises as `signups`.

    One command where the range is a month that is rolled up; otherwise it reads the calls' rows.
    """
    actor.require_operator()
    periods = spans(start, end, "MONTH", most=None)
    limit = _checked(first)
    if resource == "apiCalls" and len(periods) == 1:
        lines = (await buckets.read(database, LARGEST, periods, "MONTH"))[start]
        return [
            UserAmount(user_id=each["user"], plan_id=each.get("plan"), amount=each["amount"]) for each in lines[:limit]
        ]
    within = {"$gte": midnight(start), "$lt": midnight(end)}
    return await business.largest(database, resource, within, limit)


async def _used(database: Database, start: date, end: date, by: By) -> dict[date, list[dict[str, Any]]]:
    within = {"$gte": midnight(start), "$lt": midnight(end)}
    found: dict[date, list[dict[str, Any]]] = defaultdict(list)
    for each in await business.used_by_plan(database, within, truncated("$periodStart", start, by)):
        line: dict[str, Any] = {"resource": each.resource, "users": each.users, "amount": each.amount}
        found[each.period.date()].append(line if each.plan_id is None else line | {"plan": each.plan_id})
    return found


async def _largest(database: Database, start: date, end: date, by: By) -> dict[date, list[dict[str, Any]]]:
    found = {}
    for first, last in spans(start, end, by, most=None):
        within = {"$gte": midnight(first), "$lt": midnight(last)}
        rows = await business.largest(database, "apiCalls", within, _MOST_ROWS)
        found[first] = [
            {"user": each.user_id, "amount": each.amount} | ({"plan": each.plan_id} if each.plan_id else {})
            for each in rows
        ]
    return found


def _same_usage(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """By resource: a user who has changed plans since is no reason to count them
    elsewhere in a period that is over."""

    def sums(lines: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for line in lines:
            users, amount = found.get(line["resource"], (0, 0))
            found[line["resource"]] = (users + line["users"], amount + line["amount"])
        return found

    return sums(one) == sums(other)


def _same_users(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return [(each["user"], each["amount"]) for each in one] == [(each["user"], each["amount"]) for each in other]


_LATE_S = 1800.0
USED = buckets.Report("usage", ("DAY", "WEEK", "MONTH"), _used, _same_usage, _LATE_S)
LARGEST = buckets.Report("largest", ("MONTH",), _largest, _same_users, _LATE_S)


async def near_limits(database: Database, actor: Actor, *, share: float = 0.8, first: int = 20) -> list[NearLimit]:
    """Users who have used this share of the calls of their period, the fullest first.
    Raises Forbidden, Invalid."""
    actor.require_operator()
    if not 0 <= share <= 1:
        raise Invalid.field("share", f"{share} is not between 0 and 1")
    return await business.near_limits(database, share, _checked(first))


async def storage(database: Database, actor: Actor) -> list[PlanStorage]:
    """Projects and stored bytes by plan, now. Raises Forbidden."""
    actor.require_operator()
    return await business.stored(database)


def _signups(start: date, end: date, *, limit: int | None = None) -> list[dict[str, Any]]:
    first_paid = [
        {"$match": {"status": {"$in": ["PAID", "REFUNDED"]}, "paidAt": {"$type": "date"}}},
        {"$group": {"_id": None, "at": {"$min": "$paidAt"}}},
    ]
    days = {"$divide": [{"$max": [0, {"$subtract": [{"$first": "$first.at"}, "$createdAt"]}]}, _DAY_MS]}
    return [
        {"$match": {"createdAt": {"$gte": midnight(start), "$lt": midnight(end)}}},
        {"$sort": {"createdAt": -1, "_id": -1}},
        *([{"$limit": limit}] if limit is not None else []),
        {"$project": {"createdAt": 1, "verified": {"$eq": ["$emailVerified", True]}}},
        {
            "$lookup": {
                "from": "payments",
                "localField": "_id",
                "foreignField": "userId",
                "pipeline": first_paid,
                "as": "first",
            }
        },
        {"$set": {"days": {"$cond": [{"$size": "$first"}, days, "$$REMOVE"]}}},
        {"$unset": "first"},
    ]


def _checked(first: int) -> int:
    if not 1 <= first <= _MOST_ROWS:
        raise Invalid.field("first", f"{first} is not between 1 and {_MOST_ROWS}")
    return first
