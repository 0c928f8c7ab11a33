"""Assets that no canvas shows, for their owner to delete.

A canvas shows an asset if the asset's id occurs anywhere in it: in an address, as a file's id, as a key. Versions
list the assets that they show, so an asset of a kept version is in use.
"""

import asyncio
import re
from typing import Any

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.projects import assets, bases, packing
from ximler.schema.asset import ASSETS, Asset
from ximler.schema.canvas_version import CANVAS_VERSIONS
from ximler.schema.document import Identified

__all__ = ["shown_in", "unused"]

_RUNS = re.compile(rb"[0-9a-f]{24,}")
_ID = 24  # digits


async def unused(
    database: Database, actor: Actor, project_id: ObjectId, *, first: int = 20, after: Position | None = None
) -> Page[Asset]:
    """Assets of a project that neither its canvas nor a kept version shows, newest first. Raises NotFound."""
    user_id = await assets.require_project(database, actor, project_id, "READER")
    mine = {"userId": user_id, "projectId": project_id}
    ids = {str(each.id).encode() for each in await database[ASSETS].find(mine, into=Identified)}
    used = await _in_canvas(database, user_id, project_id, ids) | await _in_versions(database, mine)
    return await database[ASSETS].page({**mine, "_id": {"$nin": sorted(used)}}, first=first, after=after)


def shown_in(canvas: bytes, ids: set[bytes]) -> set[ObjectId]:
    """Which of the ids, in hexadecimal digits, occur in an encoded canvas."""
    found: set[bytes] = set()
    for run in _RUNS.findall(canvas):
        found.update(ids.intersection(run[start : start + _ID] for start in range(len(run) - _ID + 1)))
    return {ObjectId(each.decode()) for each in found}


async def _in_canvas(database: Database, user_id: ObjectId, project_id: ObjectId, ids: set[bytes]) -> set[ObjectId]:
    stored = await bases.read(database, {"_id": project_id, "userId": user_id})
    if stored is None or not ids:
        return set()
    return await asyncio.to_thread(lambda: shown_in(packing.plain(stored.canvas_data), ids))


async def _in_versions(database: Database, mine: dict[str, Any]) -> set[ObjectId]:
    rows = await database[CANVAS_VERSIONS].aggregate(
        [{"$match": mine}, {"$unwind": "$assets"}, {"$group": {"_id": "$assets"}}]
    )
    return {row["_id"] for row in rows}
