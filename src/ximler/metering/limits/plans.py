"""What a user may have and do: what their plan allows, or an operator's override."""

from datetime import datetime
from typing import Any

import msgspec
from bson import ObjectId

from ximler.core.errors import Unavailable
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.schema.entitlement import Entitlement, Override
from ximler.schema.plan import Plan

__all__ = [
    "FREE_PLAN",
    "LIMITS",
    "PLAN_STAGES",
    "Limits",
    "NoFreePlan",
    "entitled",
    "limits_from",
    "limits_of",
    "plan_from",
]

FREE_PLAN = "free"
LIMITS = ("projects", "storage_bytes", "api_calls")

# After these, a user's document has `plans`: that of the active subscription (or, without one, of the past due one, which keeps
# its limits while its payment is retried), if it still exists, and the free one; and `entitled`: what was last written of it,
# with the override.
PLAN_STAGES: list[dict[str, Any]] = [
    {
        "$lookup": {
            "from": "subscriptions",
            "localField": "_id",
            "foreignField": "userId",
            "pipeline": [
                {"$match": {"status": {"$in": ["ACTIVE", "PAST_DUE"]}}},
                {"$sort": {"status": 1, "startDate": -1}},  # ACTIVE comes before PAST_DUE
                {"$limit": 1},
                {"$project": {"planId": 1, "startDate": 1}},
            ],
            "as": "active",
        }
    },
    {"$set": {"planIds": [FREE_PLAN, {"$ifNull": [{"$first": "$active.planId"}, FREE_PLAN]}]}},
    {"$lookup": {"from": "plans", "localField": "planIds", "foreignField": "id", "as": "plans"}},
    {"$lookup": {"from": "entitlements", "localField": "_id", "foreignField": "_id", "as": "entitled"}},
]


class NoFreePlan(Unavailable):
    code = "NO_FREE_PLAN"


class Limits(msgspec.Struct, frozen=True):
    """Of one user: their active or past due subscription's plan's, else the free one's, unless overridden. -1: unlimited."""

    plan_name: str
    projects: int
    storage_bytes: int
    api_calls: int

    def overridden(self, override: Override | None) -> "Limits":
        if override is None:
            return self
        named = {name: value for name in LIMITS if (value := getattr(override, name)) is not None}
        return msgspec.structs.replace(self, **named)


async def limits_of(database: Database, user_id: ObjectId) -> Limits:
    """One round trip. Raises NoFreePlan when the user would need it and there is none."""
    found = await database.users.aggregate([{"$match": {"_id": user_id}}, {"$project": {"_id": 1}}, *PLAN_STAGES])
    return limits_from(found[0] if found else {}, database.clock.now())


def limits_from(row: dict[str, Any], now: datetime) -> Limits:
    """From a document that went through `PLAN_STAGES`."""
    entitlement = entitled(row)
    plan = plan_from(row)
    limits = Limits(plan.name, plan.limits.projects, plan.limits.storage_bytes, plan.limits.api_calls)
    return limits.overridden(entitlement.override_at(now)) if entitlement else limits


def plan_from(row: dict[str, Any]) -> Plan:
    """The plan that counts, from a document that went through `PLAN_STAGES`. Raises NoFreePlan."""
    plans = {plan["id"]: plan for plan in row.get("plans", ())}
    plan_id = row["planIds"][1] if row else FREE_PLAN
    raw = plans.get(plan_id) or plans.get(FREE_PLAN)
    if raw is None:
        raise NoFreePlan(f"There is no plan {FREE_PLAN!r}: run 'ximler db seed'")
    return codec_of(Plan).decode(dict(raw))


def entitled(row: dict[str, Any]) -> Entitlement | None:
    """What was last written of a user's entitlement, from a document that went through `PLAN_STAGES`."""
    found = row.get("entitled")
    return codec_of(Entitlement).decode(dict(found[0])) if found else None
