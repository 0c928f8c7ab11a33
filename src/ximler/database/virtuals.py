"""The specification's virtuals, populated in batches: k parents cost one query."""

from collections.abc import Iterable

from bson import ObjectId

from ximler.database.connection import Database
from ximler.schema.plan import Plan
from ximler.schema.project import Project
from ximler.schema.subscription import Subscription
from ximler.schema.usage import Usage

__all__ = ["plans_by_id", "projects_by_user", "subscription_by_user", "usage_by_user"]

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


async def projects_by_user(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, list[Project]]:
    """`user.projects`, without the deleted: whole documents, so for a person's list prefer a page."""
    return await database.projects.find_by("userId", user_ids)


async def usage_by_user(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, list[Usage]]:
    """`user.usage`: every row of the ledger."""
    return await database.usage.find_by("userId", user_ids)
