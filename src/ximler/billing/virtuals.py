"""The specification's virtual of billing, populated in batches: k parents cost one query."""

from collections.abc import Iterable
from typing import Any

from bson import ObjectId

from ximler.database import Database
from ximler.schema.subscription import Subscription

__all__ = ["subscription_by_user", "subscription_in"]

_RANK = {"ACTIVE": 0, "PAST_DUE": 1}


async def subscription_by_user(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, Subscription | None]:
    """`user.subscription`: the active one, else the one past due, else the newest."""
    grouped = await database.subscriptions.find_by("userId", user_ids)
    return {user_id: _shown(found) for user_id, found in grouped.items()}


def subscription_in(database: Database, documents: Iterable[dict[str, Any]]) -> Subscription | None:
    """`user.subscription`, among all documents of the user's subscriptions."""
    return _shown(database.subscriptions.decoded(documents))


def _shown(found: list[Subscription]) -> Subscription | None:
    return min(found, key=lambda s: (_RANK.get(s.status, 2), -s.created_at.timestamp()), default=None)
