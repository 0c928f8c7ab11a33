"""Every document of a database, in two commands."""

from typing import Any

import bson

from ximler.database import Database


async def contents(database: Database) -> dict[str, list[bytes]]:
    """The documents of each collection as BSON, by `_id`."""
    first, *others = sorted(await database.raw.list_collection_names())

    def named(name: str) -> dict[str, Any]:
        return {"$replaceWith": {"collection": {"$literal": name}, "document": "$$ROOT"}}

    pipeline = [named(first), *({"$unionWith": {"coll": name, "pipeline": [named(name)]}} for name in others)]
    found: dict[str, list[Any]] = {name: [] for name in (first, *others)}
    async for each in await database.raw[first].aggregate(pipeline):
        found[each["collection"]].append(each["document"])
    return {
        name: [bson.encode(document) for document in sorted(documents, key=lambda each: str(each["_id"]))]
        for name, documents in found.items()
    }
