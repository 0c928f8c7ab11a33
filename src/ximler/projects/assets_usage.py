"""Assets that no canvas shows, for their owner to delete.

A canvas shows an asset if it mentions the asset's id (`mentions`). Versions list the assets that they show,
so an asset of a kept version is in use.
"""

import asyncio
from contextlib import suppress
from typing import Any

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.projects import assets, bases, contents, mentions, packing
from ximler.schema.asset import ASSETS, Asset
from ximler.schema.canvas_version import CANVAS_VERSIONS
from ximler.schema.document import Identified

__all__ = ["unused"]


async def unused(
    database: Database, actor: Actor, project_id: ObjectId, *, first: int = 20, after: Position | None = None
) -> Page[Asset]:
    """Assets of a project that neither its canvas nor a kept version shows, newest first. Raises NotFound."""
    user_id = await assets.require_project(database, actor, project_id, "READER")
    mine = {"userId": user_id, "projectId": project_id}
    ids = {str(each.id).encode() for each in await database[ASSETS].find(mine, into=Identified)}
    used = await _in_canvas(database, user_id, project_id, ids) | await _in_versions(database, mine, ids)
    return await database[ASSETS].page({**mine, "_id": {"$nin": sorted(used)}}, first=first, after=after)


async def _in_canvas(database: Database, user_id: ObjectId, project_id: ObjectId, ids: set[bytes]) -> set[ObjectId]:
    stored = await bases.read(database, {"_id": project_id, "userId": user_id})
    if stored is None or not ids:
        return set()
    return await asyncio.to_thread(lambda: mentions.mentioned(packing.plain(stored.canvas_data), ids))


async def _in_versions(database: Database, mine: dict[str, Any], ids: set[bytes]) -> set[ObjectId]:
    """Versions that an earlier release kept do not list their assets:
    they are read, and list them from then on."""
    unlisted = await database[CANVAS_VERSIONS].find({**mine, "assets": None}) if ids else []
    for version in unlisted:
        with suppress(NotFound, packing.Damaged):  # deleted meanwhile, or unreadable: it shows nothing
            shown = await contents.mentioned(database, mine, version.digest, ids)
            change = {"$set": {"assets": sorted(shown)}}
            await database[CANVAS_VERSIONS].patch({"_id": version.id, **mine, "assets": None}, change)
    rows = await database[CANVAS_VERSIONS].aggregate(
        [{"$match": mine}, {"$unwind": "$assets"}, {"$group": {"_id": "$assets"}}]
    )
    return {row["_id"] for row in rows}
