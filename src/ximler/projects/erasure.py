"""A person's projects, gone for good."""

from bson import ObjectId

from ximler.database import Database

__all__ = ["erase"]


async def erase(database: Database, user_id: ObjectId) -> None:
    """Remove every project of an erased user, deleted softly or not. Safe to repeat."""
    await database.projects.delete_many({"userId": user_id})
