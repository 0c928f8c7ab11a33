"""Repairs documents of other applications that can be read but not updated.

Covers nulls in place of sub-documents, lists, numbers and Mixed values. They read as the default, but
MongoDB rejects updates through them. Removing them changes no value as read.
"""

from pymongo.errors import PyMongoError

from ximler.database.connection import Database
from ximler.database.failures import translated
from ximler.database.updates import nullable
from ximler.schema import SPECIFIED

__all__ = ["remove_nulls"]


async def remove_nulls(database: Database, *, dry_run: bool = False) -> dict[str, int]:
    """Remove the nulls; returns how many by `collection.path`. Scans each collection once a path. Safe to
    repeat.
    """
    found: dict[str, int] = {}
    try:
        for collection in SPECIFIED:
            raw = database.raw[collection.name]
            for path in nullable(collection.document):
                where = {path: {"$type": "null"}}
                if dry_run:
                    count = await raw.count_documents(where)
                else:
                    count = (await raw.update_many(where, {"$unset": {path: ""}})).modified_count
                if count:
                    found[f"{collection.name}.{path}"] = count
    except PyMongoError as error:
        raise translated(error, database.name) from error
    return found
