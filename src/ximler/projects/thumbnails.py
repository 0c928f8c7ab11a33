"""Small pictures of projects: sent by their editors, or drawn from the canvas at the first request.

A drawn one belongs to a revision of the canvas, and expires. One that was sent stays until another is sent, or it is
removed. Both are removed with their project, and neither is counted as storage: there is one of a project.
"""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

from bson import ObjectId

from ximler.accounts import pictures
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.projects import access, assets, canvas, records, sketches
from ximler.schema.project_thumbnail import PROJECT_THUMBNAILS, ProjectThumbnail

__all__ = ["ProjectThumbnail", "get", "remove", "set_picture"]

_PNG = "image/png"
_KEPT = timedelta(days=30)
_thread = ThreadPoolExecutor(1, thread_name_prefix="thumbnails")


@access.reader
async def get(database: Database, actor: Actor, project_id: ObjectId) -> ProjectThumbnail:
    """The picture that was sent, or else a drawing of the canvas as it is. Raises NotFound, also for an empty canvas.

    That a canvas shows nothing is kept as an empty drawing, so the canvas is read once.
    """
    user_id = await assets.require_project(database, actor, project_id, "READER")
    found = await database[PROJECT_THUMBNAILS].find_one({"_id": project_id, "userId": user_id})
    if found is None or found.revision is not None:
        revision, listed = await _source(database, user_id, project_id)
        if found is None or (found.revision, found.listed) != (revision, listed):
            found = await _drawn(database, actor, user_id, project_id, listed)
    if not found.data:
        raise NotFound("The canvas shows nothing that can be drawn")
    return found


@access.editor
async def set_picture(database: Database, actor: Actor, project_id: ObjectId, sent: bytes) -> ProjectThumbnail:
    """Show this picture in place of a drawing. Raises NotFound, and Invalid if it is no picture."""
    user_id = await assets.require_project(database, actor, project_id)
    data = await pictures.thumbnail(sent, "thumbnail")
    made = _made(project_id, user_id, data, pictures.CONTENT_TYPE)
    await _replace(database, made)
    return made


@access.editor
async def remove(database: Database, actor: Actor, project_id: ObjectId) -> None:
    """Draw the canvas again, in place of the picture that was sent. Idempotent. Raises NotFound."""
    user_id = await assets.require_project(database, actor, project_id)
    await database[PROJECT_THUMBNAILS].delete({"_id": project_id, "userId": user_id})


async def _replace(database: Database, made: ProjectThumbnail) -> None:
    """Together with a change of the project, so that one that is purged at this moment leaves nothing."""
    mine = {"_id": made.id, "userId": made.user_id}

    async def write(transaction: Database) -> None:
        if not await transaction.projects.patch(mine, {"$inc": {"assetsSize": 0}}):  # sets `updatedAt`
            raise NotFound("No such project")
        await transaction[PROJECT_THUMBNAILS].delete(mine)
        await transaction[PROJECT_THUMBNAILS].insert(made)

    await database.transaction(write)


async def _source(database: Database, user_id: ObjectId, project_id: ObjectId) -> tuple[int, str]:
    """The revision of the canvas, and the name of its list of records. One command. Raises NotFound."""
    mine = {"_id": project_id, "userId": user_id, "deletedAt": None}
    rows = await database.projects.aggregate(
        [{"$match": mine}, {"$project": {"canvasRevision": 1, "records": "$settings.records"}}]
    )
    if not rows:
        raise NotFound("No such project")
    try:
        listed = records.declared(rows[0].get("records")).list
    except Invalid:
        listed = records.DEFAULT.list
    return rows[0].get("canvasRevision") or 0, listed


async def _drawn(
    database: Database, actor: Actor, user_id: ObjectId, project_id: ObjectId, listed: str
) -> ProjectThumbnail:
    drawn = await canvas.read(database, actor, project_id)
    data = await asyncio.get_running_loop().run_in_executor(_thread, _draw, drawn.canvas_data, listed)
    made = _made(project_id, user_id, data, _PNG)
    made.revision, made.listed = drawn.canvas_revision, listed
    made.expires_at = database.clock.now() + _KEPT
    await _keep(database, made)
    try:
        await assets.require_project(database, actor, project_id, "READER")
    except NotFound:  # deleted meanwhile: its purge may have come before the drawing
        await database[PROJECT_THUMBNAILS].delete({"_id": project_id, "userId": user_id})
        raise
    return made


async def _keep(database: Database, made: ProjectThumbnail) -> None:
    """In place of an earlier drawing, never of a picture that was sent meanwhile."""
    drawn = {"_id": made.id, "userId": made.user_id, "revision": {"$ne": None}}
    values = {
        "data": made.data, "contentType": made.content_type, "digest": made.digest, "revision": made.revision,
        "listed": made.listed, "expiresAt": made.expires_at,
    }  # fmt: skip
    if not await database[PROJECT_THUMBNAILS].patch(drawn, {"$set": values}):
        with suppress(DocumentExists):
            await database[PROJECT_THUMBNAILS].insert(made)


def _made(project_id: ObjectId, user_id: ObjectId, data: bytes, content_type: str) -> ProjectThumbnail:
    digest = hashlib.sha256(data).digest()
    return ProjectThumbnail(id=project_id, user_id=user_id, data=data, content_type=content_type, digest=digest)


def _draw(data: object, listed: str) -> bytes:
    drawn = sketches.svg(data, listed)
    if drawn is None:
        return b""
    import resvg_py  # 5 MB, for those processes that draw

    return bytes(resvg_py.svg_to_bytes(svg_string=drawn))
