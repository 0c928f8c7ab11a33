"""Soft deletion, as the domains do it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ximler.core.clock import EPOCH
from ximler.database.collection import TypedCollection

__all__ = ["restore", "soft_delete"]


async def soft_delete(collection: TypedCollection[Any], where: Mapping[str, Any]) -> bool:
    return await collection.patch(where, {"$set": {"deletedAt": datetime.now(UTC)}})


async def restore(collection: TypedCollection[Any], where: Mapping[str, Any]) -> bool:
    gone = {"$and": [where, {"deletedAt": {"$gt": EPOCH}}]}
    return await collection.patch(gone, {"$unset": {"deletedAt": ""}}, deleted=True)
