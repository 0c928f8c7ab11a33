"""What a person used: the amounts stay, and say nothing of who or through what."""

from bson import ObjectId

from ximler.database import Database
from ximler.schema.entitlement import ENTITLEMENTS
from ximler.schema.gauge import GAUGES
from ximler.schema.quota import QUOTAS

__all__ = ["erase"]

_KEPT = ("userId", "resourceType", "amount", "periodStart", "periodEnd", "createdAt")


async def erase(database: Database, user_id: ObjectId) -> None:
    """Remove an erased user's gauge, quotas and entitlement, and from the ledger all but the amounts. Safe to repeat."""
    await database[GAUGES].delete({"_id": user_id})
    await database[ENTITLEMENTS].delete({"_id": user_id})
    await database[QUOTAS].delete_many({"userId": user_id})
    await database.usage.keep_only({"userId": user_id}, _KEPT)
