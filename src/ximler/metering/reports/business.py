"""Usage over all users, for operators: by plan, the largest users, users near their limits, stored bytes.

Callers check that the actor is an operator.
Amounts of calls are the ledger's, limits and stored bytes the enforced ones.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.database import Database
from ximler.schema.entitlement import ENTITLEMENTS
from ximler.schema.gauge import GAUGES
from ximler.schema.quota import QUOTAS
from ximler.schema.usage import ResourceType

__all__ = ["NearLimit", "PlanStorage", "PlanUsage", "UserAmount", "largest", "near_limits", "stored", "used_by_plan"]

_FIRST_ID = ObjectId(bytes(12))
_BY_PERIOD = "periodStart_1_periodEnd_1"
_PLAN: list[dict[str, Any]] = [
    {"$lookup": {"from": "entitlements", "localField": "_id", "foreignField": "_id", "as": "entitled"}},
    {"$set": {"plan": {"$ifNull": [{"$first": "$entitled.planId"}, None]}}},
]


def _plans(*fields: str) -> list[dict[str, Any]]:
    """The same for most users: by reading every entitlement once, at a quarter of the cost of a `$lookup`.
    The documents keep `fields`, of which the first is not null."""
    every = [{"$match": {"_id": {"$gte": _FIRST_ID}}}, {"$project": {"plan": "$planId"}}]
    kept = {name: {"$max": f"${name}"} for name in ("plan", *fields)}
    return [
        {"$unionWith": {"coll": "entitlements", "pipeline": every}},
        {"$group": {"_id": "$_id", **kept}},
        {"$match": {fields[0]: {"$ne": None}}},
    ]


class PlanUsage(msgspec.Struct, frozen=True, kw_only=True):
    """A period's usage of a resource by the users of a plan. Projects and bytes are by how many they grew."""

    period: datetime
    resource: ResourceType
    plan_id: str | None  # None: users that never had limits of their own, as those without a subscription
    users: int
    amount: int


class UserAmount(msgspec.Struct, frozen=True, kw_only=True):
    user_id: ObjectId
    plan_id: str | None
    amount: int


class NearLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A user who has used most of the calls of their period."""

    user_id: ObjectId
    plan_id: str | None
    used: int
    limit: int
    share: float
    period_end: datetime


class PlanStorage(msgspec.Struct, frozen=True, kw_only=True):
    """The projects and stored bytes of a plan's users, now."""

    plan_id: str | None
    users: int
    projects: int
    storage_bytes: int


async def used_by_plan(database: Database, within: dict[str, datetime], period: dict[str, Any]) -> list[PlanUsage]:
    """The ledger's rows whose hour is in the range, by period, resource and plan.
    `period` is an expression of it. Three commands, of which two count: the last only if there are any."""
    entitled = await database[ENTITLEMENTS].roughly()
    used = await database.usage.count_keys({"periodStart": within}, most=entitled + 1, index=_BY_PERIOD)
    if not used:
        return []
    rows = await database.usage.aggregate(
        [
            {"$match": {"periodStart": within}},
            {
                "$group": {
                    "_id": {"user": "$userId", "resource": "$resourceType", "period": period},
                    "amount": {"$sum": "$amount"},
                }
            },
            {"$group": {"_id": "$_id.user", "rows": {"$push": {"key": "$_id", "amount": "$amount"}}}},
            *(_plans("rows") if used > entitled else _PLAN),
            {"$unwind": "$rows"},
            {
                "$group": {
                    "_id": {"period": "$rows.key.period", "resource": "$rows.key.resource", "plan": "$plan"},
                    "users": {"$sum": 1},
                    "amount": {"$sum": "$rows.amount"},
                }
            },
            {"$sort": {"_id.period": 1, "_id.resource": 1, "_id.plan": 1}},
        ]
    )
    return [
        PlanUsage(
            period=row["_id"]["period"],
            resource=row["_id"]["resource"],
            plan_id=row["_id"].get("plan"),
            users=row["users"],
            amount=int(row["amount"]),
        )
        for row in rows
    ]


async def largest(
    database: Database, resource: Literal["apiCalls", "storage", "projects"], within: dict[str, datetime], limit: int
) -> list[UserAmount]:
    """The users with the largest usage: of calls in the range, of projects and bytes now."""
    if resource == "apiCalls":
        rows = await database.usage.aggregate(
            [
                {"$match": {"periodStart": within, "resourceType": resource}},
                {"$group": {"_id": "$userId", "amount": {"$sum": "$amount"}}},
                {"$sort": {"amount": -1, "_id": 1}},
                {"$limit": limit},
                *_PLAN,
            ]
        )
    else:
        field = "projects" if resource == "projects" else "storageBytes"
        rows = await database[GAUGES].aggregate(
            [
                {"$match": {"_id": {"$gte": _FIRST_ID}, field: {"$gt": 0}}},
                {"$project": {"amount": f"${field}"}},
                {"$sort": {"amount": -1, "_id": 1}},
                {"$limit": limit},
                *_PLAN,
            ]
        )
    return [UserAmount(user_id=row["_id"], plan_id=row["plan"], amount=int(row["amount"])) for row in rows]


async def near_limits(database: Database, share: float, limit: int) -> list[NearLimit]:
    """Users who have used at least this share of the calls of their current period, the fullest first."""
    now = database.clock.now()
    used = {"$add": ["$settled", "$ingested", "$foreign"]}
    rows = await database[QUOTAS].aggregate(
        [
            {
                "$match": {
                    "periodEnd": {"$gt": now},
                    "periodStart": {"$lte": now},
                    "limit": {"$gt": 0},
                    "superseded": False,
                }
            },
            {"$project": {"userId": 1, "planId": 1, "limit": 1, "periodEnd": 1, "used": used}},
            {"$set": {"share": {"$divide": ["$used", "$limit"]}}},
            {"$match": {"share": {"$gte": share}}},
            {"$sort": {"share": -1, "_id": 1}},
            {"$limit": limit},
        ]
    )
    return [
        NearLimit(
            user_id=row["userId"],
            plan_id=row.get("planId"),
            used=int(row["used"]),
            limit=int(row["limit"]),
            share=row["share"],
            period_end=row["periodEnd"],
        )
        for row in rows
    ]


async def stored(database: Database) -> list[PlanStorage]:
    """Projects and stored bytes by plan, now: a read of every user's gauge."""
    rows = await database[GAUGES].aggregate(
        [
            {"$match": {"_id": {"$gte": _FIRST_ID}}},
            {"$project": {"projects": 1, "storageBytes": 1}},
            *_plans("projects", "storageBytes"),
            {
                "$group": {
                    "_id": "$plan",
                    "users": {"$sum": 1},
                    "projects": {"$sum": "$projects"},
                    "bytes": {"$sum": "$storageBytes"},
                }
            },
            {"$sort": {"bytes": -1, "_id": 1}},
        ]
    )
    return [
        PlanStorage(
            plan_id=row["_id"], users=row["users"], projects=int(row["projects"]), storage_bytes=int(row["bytes"])
        )
        for row in rows
    ]
