"""A person's API keys, gone for good."""

from bson import ObjectId

from ximler.database import Database

__all__ = ["erase"]


async def erase(database: Database, user_id: ObjectId) -> None:
    """Remove every key of an erased user. Safe to repeat."""
    await database.api_keys.delete_many({"userId": user_id})
