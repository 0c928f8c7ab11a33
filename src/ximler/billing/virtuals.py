"""The specification's virtuals of billing, populated in batches: k parents cost one query."""

from collections.abc import Iterable

from bson import ObjectId

from ximler.database import Database
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription

__all__ = ["plans_by_id", "subscription_by_user"]

_RANK = {"ACTIVE": 0, "PAST_DUE": 1}


async def subscription_by_user(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, Subscription | None]:
    """`user.subscription`: the active one, else the one past due, else the newest."""
    grouped = await database.subscriptions.find_by("userId", user_ids)
    return {
        user_id: min(found, key=lambda s: (_RANK.get(s.status, 2), -s.created_at.timestamp()), default=None)
        for user_id, found in grouped.items()
    }


async def plans_by_id(database: Database, plan_ids: Iterable[str]) -> dict[str, Plan | None]:
    """`subscription.plan`, by the plan's own id."""
    grouped = await database.plans.find_by("id", plan_ids)
    return {plan_id: found[0] if found else None for plan_id, found in grouped.items()}
