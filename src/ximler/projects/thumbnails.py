"""Small pictures of projects: sent by their editors, or drawn from the canvas at the first request.

A drawn one belongs to a revision of the canvas, and expires. One that was sent stays until another is sent,
or it is removed. Both are removed with their project, and neither is counted as storage: there is one of a
project.

Each drawing has a process of its own, since the library keeps the interpreter's lock until it is done. A
server draws one at a time, and each user's wait for each other.
"""

import asyncio
import hashlib
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from weakref import WeakValueDictionary

import structlog
from bson import ObjectId

from ximler.accounts import pictures
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.projects import access, assets, canvas, projects, records, sketches
from ximler.schema.project_thumbnail import PROJECT_THUMBNAILS, ProjectThumbnail

__all__ = ["ProjectThumbnail", "get", "remove", "set_picture"]

_log = structlog.get_logger("ximler.projects")
_PNG = "image/png"
_KEPT = timedelta(days=30)
_LONGEST_S = 10.0  # of a drawing, which takes less than a second of a processor
# Its own limit, of a processor's time, ends it also if the server is killed meanwhile.
_DRAW = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
import resvg_py
sys.stdout.buffer.write(resvg_py.svg_to_bytes(svg_string=sys.stdin.buffer.read().decode()))
"""
_locks: WeakValueDictionary[ObjectId | None, asyncio.Lock] = WeakValueDictionary()  # users', and None: the server's


@access.reader
async def get(database: Database, actor: Actor, project_id: ObjectId) -> ProjectThumbnail:
    """The picture that was sent, or else a drawing of the canvas as it is.
    Raises NotFound, also for an empty canvas.

    That a canvas shows nothing is kept as an empty drawing, so the canvas is read once.
    """
    user_id = await assets.require_project(database, actor, project_id, "READER")
    found, source = await _kept(database, user_id, project_id)
    if found is None:
        async with _lock(user_id):
            found, source = await _kept(database, user_id, project_id)  # it may be drawn meanwhile
            if found is None:
                found = await _drawn(database, actor, user_id, project_id, source)
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
        await projects.touch(transaction, made.user_id, made.id)
        await transaction[PROJECT_THUMBNAILS].delete(mine)
        await transaction[PROJECT_THUMBNAILS].insert(made)

    await database.transaction(write)


async def _kept(database: Database, user_id: ObjectId, project_id: ObjectId) -> tuple[ProjectThumbnail | None, str]:
    """The picture that was sent, or a drawing of the canvas as it is; and the name of the list of records."""
    found = await database[PROJECT_THUMBNAILS].find_one({"_id": project_id, "userId": user_id})
    if found is not None and found.revision is None:
        return found, ""
    revision, listed = await _source(database, user_id, project_id)
    if found is not None and (found.revision, found.listed) != (revision, listed):
        found = None
    return found, listed


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
    sketch = await asyncio.to_thread(sketches.svg, drawn.canvas_data, listed)
    data = b"" if sketch is None else await _png(sketch)
    made = _made(project_id, user_id, data, _PNG)
    made.revision, made.listed = drawn.canvas_revision, listed
    made.expires_at = database.clock.now() + _KEPT
    await _keep(database, made)
    try:
        await assets.require_project(database, actor, project_id, "READER")
    except NotFound:  # deleted meanwhile: its purge may have come before the drawing
        await database[PROJECT_THUMBNAILS].delete({"_id": project_id, "userId": user_id, "revision": {"$ne": None}})
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


def _lock(user_id: ObjectId | None) -> asyncio.Lock:
    return _locks.setdefault(user_id, asyncio.Lock())


async def _png(sketch: str) -> bytes:
    """The SVG as PNG. Raises NotFound if that takes too long."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def answered(picture: bytes) -> None:
        if not answer.done():
            answer.set_result(picture)

    def wait(process: "subprocess.Popen[bytes]") -> None:
        picture, _ = process.communicate(sketch.encode())
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(answered, picture if process.returncode == 0 else b"")

    async with _lock(None):
        # Not asyncio's subprocesses: see `cli.serving`.
        process = subprocess.Popen(  # noqa: ASYNC220, S603 (it returns at once; the program is the one above)
            [sys.executable, "-P", "-c", _DRAW],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            # A daemon: the end of this process does not wait for it.
            threading.Thread(target=wait, args=(process,), name="thumbnail", daemon=True).start()
            async with asyncio.timeout(_LONGEST_S):
                picture = await answer
        except TimeoutError:
            picture = b""
        finally:
            process.kill()
    if not picture:
        _log.warning("thumbnail not drawn", reason="it took too long, or its process failed")
        raise NotFound("The canvas takes too long to draw")
    return picture
