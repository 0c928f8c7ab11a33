"""Copies of projects: content and assets, without versions.

The copy's assets refer to the same files (`assets_storage`), so they cost no storage. The canvas shows assets
by their ids: where the copied canvas and settings contain the original's, or the id of the original project,
they get the copy's.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.projects import assets, assets_storage, bases, mentions, places, projects
from ximler.schema.asset import ASSETS, Asset
from ximler.schema.document import Identified, Mixed
from ximler.schema.project import Project

__all__ = ["make"]


class _Original(Identified, kw_only=True):
    name: str
    description: str | None = None
    settings: Mixed = None
    tags: Any = None
    location: Mixed = None


async def make(database: Database, actor: Actor, project_id: ObjectId, *, name: str | None = None) -> Project:
    """Copy one of the actor's projects. Raises NotFound, Invalid, QuotaExceeded, LimitExceeded.

    It counts as a project like any other. Assets that are deleted meanwhile are left out.
    """
    user_id = actor.require_user()
    mine = {"_id": project_id, "userId": user_id}
    original = await database.projects.find_one(mine, into=_Original)
    drawn = await bases.read(database, mine)
    if original is None or drawn is None:
        raise NotFound("No such project")
    theirs = {"userId": user_id, "projectId": project_id}
    shown = await database[ASSETS].find(theirs, sort=[("createdAt", 1), ("_id", 1)], limit=assets.MOST)
    if shown:
        await assets.refuse_too_many_of_all(database, user_id)
    copy_id = ObjectId()
    ids = {asset.id: ObjectId() for asset in shown}
    rename = mentions.renamer({str(project_id): str(copy_id)} | {str(old): str(new) for old, new in ids.items()})

    async def refer(transaction: Database) -> None:
        if ids:
            still = await transaction[ASSETS].find({**theirs, "_id": {"$in": list(ids)}})
            await assets_storage.refer(transaction, user_id, [_copy(each, ids[each.id], copy_id) for each in still])

    return await projects.create(
        database,
        actor,
        name=name if name is not None else original.name,
        description=original.description,
        settings=_with_ids(original.settings, rename),
        canvas_data=await asyncio.to_thread(_with_ids, drawn.canvas_data, rename),
        tags=original.tags if isinstance(original.tags, list) else None,
        location=places.place_of(original.location),
        project_id=copy_id,
        any_keys=True,
        also=refer,
    )


def _copy(asset: Asset, asset_id: ObjectId, project_id: ObjectId) -> Asset:
    return msgspec.structs.replace(asset, id=asset_id, project_id=project_id)


def _with_ids(value: Any, rename: Callable[[str], str]) -> Any:
    """The value with other ids in its texts."""
    if isinstance(value, dict):
        return {_with_ids(key, rename): _with_ids(each, rename) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_ids(each, rename) for each in value]
    if isinstance(value, str):
        return rename(value)
    return value
