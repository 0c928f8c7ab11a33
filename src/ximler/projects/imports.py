"""Projects made from a file: whole, or not at all.

A document in `projectimports` is written before the project, and removed after its last part. An import that
fails removes its project at once; the project of a killed process is removed once the document's lease has
expired.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from time import monotonic
from typing import Any

import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound, Unavailable, XimlerError
from ximler.database import Database, outbox
from ximler.database.failures import DocumentExists
from ximler.projects import assets_uploads, projects, trash
from ximler.schema.asset import Asset
from ximler.schema.project_import import PROJECT_IMPORTS, ProjectImport

__all__ = ["Importing", "importing", "sweep"]

_LEASE = timedelta(minutes=5)
_RENEWED_S = 30
_BATCH = 100
_log = structlog.get_logger("ximler.projects")


class Importing:
    """A project that is being filled. Call `keep` at least once a minute."""

    def __init__(self, database: Database, actor: Actor, project_id: ObjectId, most: int) -> None:
        self.database, self.actor, self.project_id = database, actor, project_id
        self._most = most
        self._where = {"_id": project_id, "userId": actor.require_user(), "ended": None}
        self._renewed = monotonic()

    async def upload(self, name: str, size_bytes: int, pieces: AsyncGenerator[bytes, None]) -> Asset:
        """Add an asset. Raises as uploads do."""
        upload = await assets_uploads.begin(
            self.database, self.actor, self.project_id, name=name, size_bytes=size_bytes, most=self._most
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    await upload.write(piece)
                    await self.keep()
            return await upload.finish()
        except BaseException:
            await upload.abandon()
            raise

    async def keep(self) -> None:
        """Renew the lease in time. Raises Conflict once it is lost."""
        if monotonic() - self._renewed > _RENEWED_S:
            until = self.database.clock.now() + _LEASE
            if not await self.database[PROJECT_IMPORTS].patch(self._where, {"$set": {"until": until}}):
                raise _lost()
            self._renewed = monotonic()

    async def finish(self) -> None:
        if not await self.database[PROJECT_IMPORTS].delete(self._where):
            raise _lost()


@asynccontextmanager
async def importing(
    database: Database, actor: Actor, *, most: int, project_id: ObjectId | None = None, **project: Any
) -> AsyncIterator[Importing]:
    """A new project for the actor, which is removed again if the block raises.
    Its assets have at most `most` bytes.

    Raises as `projects.create` does, and Conflict if a project with this id exists, or is being made.
    """
    marker = ProjectImport(
        id=project_id or ObjectId(), user_id=actor.require_user(), until=database.clock.now() + _LEASE
    )
    if project_id is None:
        await database[PROJECT_IMPORTS].insert(marker)
    else:
        await _claim(database, marker)
    try:
        await projects.create(database, actor, project_id=marker.id, **project)
        under_way = Importing(database, actor, marker.id, most)
        yield under_way
        await under_way.finish()
    except BaseException:
        await _undo(database, actor, marker.id)
        raise


@outbox.every("projects.sweep_imports", timedelta(minutes=5), offset=timedelta(minutes=1))
async def sweep(*, database: Database) -> int:
    """Remove the projects of imports whose process has died; returns how many.
    Safe to race and to be killed."""
    total = 0
    stuck: list[ObjectId] = []
    while True:
        due = {"until": {"$lte": database.clock.now()}, "_id": {"$nin": stuck}}
        found = await database[PROJECT_IMPORTS].find(due, sort=[("until", 1)], limit=_BATCH)
        for each in found:
            # From now on its process, if it lives after all, cannot finish.
            if not await database[PROJECT_IMPORTS].patch(
                {**due, "_id": each.id, "userId": each.user_id}, {"$set": {"ended": True}}
            ):
                continue
            try:
                await _undo(database, Actor(kind="system", via="worker", user_id=each.user_id), each.id)
            except Unavailable:
                raise
            except XimlerError as problem:
                stuck.append(each.id)
                _log.error("import not removed", project=str(each.id), reason=problem.message)
        total += len(found)
        if len(found) < _BATCH:
            return total


async def _claim(database: Database, marker: ProjectImport) -> None:
    """Insert the document of a project that may exist. In one transaction, because the sweep removes the
    projects of documents.
    """

    async def write(transaction: Database) -> None:
        mine = {"_id": marker.id, "userId": marker.user_id}
        if await transaction.projects.find_one(mine, into=projects.ProjectSummary, deleted=True) is not None:
            raise Conflict(f"The project was imported before: {marker.id}")
        await transaction[PROJECT_IMPORTS].insert(marker)

    try:
        await database.transaction(write)
    except DocumentExists:
        raise Conflict(
            "An import by this URL is under way. One that was interrupted is removed within ten minutes"
        ) from None


async def _undo(database: Database, actor: Actor, project_id: ObjectId) -> None:
    with suppress(NotFound):
        await projects.delete(database, actor, project_id)
    with suppress(NotFound):
        await trash.purge(database, actor, project_id)
    await database[PROJECT_IMPORTS].delete({"_id": project_id, "userId": actor.require_user()})


def _lost() -> Conflict:
    return Conflict("The import took too long, and was removed: start it again")
