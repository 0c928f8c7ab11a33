"""What a user's plan allows."""

from typing import Any

import msgspec
from bson import ObjectId

from ximler.core.errors import Unavailable
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.schema.plan import Plan

__all__ = ["FREE_PLAN", "PLAN_STAGES", "Limits", "NoFreePlan", "limits_from", "limits_of"]

FREE_PLAN = "free"

# After these, a user's document has `plans`: that of the active subscription, if it still exists, and the free one.
PLAN_STAGES: list[dict[str, Any]] = [
    {
        "$lookup": {
            "from": "subscriptions",
            "localField": "_id",
            "foreignField": "userId",
            "pipeline": [
                {"$match": {"status": "ACTIVE"}},
                {"$sort": {"startDate": -1}},
                {"$limit": 1},
                {"$project": {"planId": 1}},
            ],
            "as": "active",
        }
    },
    {"$set": {"planIds": [FREE_PLAN, {"$ifNull": [{"$first": "$active.planId"}, FREE_PLAN]}]}},
    {"$lookup": {"from": "plans", "localField": "planIds", "foreignField": "id", "as": "plans"}},
]


class NoFreePlan(Unavailable):
    code = "NO_FREE_PLAN"


class Limits(msgspec.Struct, frozen=True):
    """Of one user: from the plan of their active subscription, else from the free plan. -1 is unlimited."""

    plan_name: str
    projects: int
    storage_bytes: int
    api_calls: int


async def limits_of(database: Database, user_id: ObjectId) -> Limits:
    """One round trip. Raises NoFreePlan when the user would need it and there is none."""
    found = await database.users.aggregate([{"$match": {"_id": user_id}}, {"$project": {"_id": 1}}, *PLAN_STAGES])
    return limits_from(found[0] if found else {})


def limits_from(row: dict[str, Any]) -> Limits:
    """From a document that went through `PLAN_STAGES`."""
    plans = {plan["id"]: plan for plan in row.get("plans", ())}
    plan_id = row["planIds"][1] if row else FREE_PLAN
    raw = plans.get(plan_id) or plans.get(FREE_PLAN)
    if raw is None:
        raise NoFreePlan(f"There is no plan {FREE_PLAN!r}: run 'ximler db seed'")
    plan = codec_of(Plan).decode(raw)
    return Limits(plan.name, plan.limits.projects, plan.limits.storage_bytes, plan.limits.api_calls)
