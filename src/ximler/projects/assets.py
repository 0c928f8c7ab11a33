"""Assets: the files of a project, such as the pictures that its canvas shows.

An asset never changes: a file of other content is another asset, so its entity tag is its SHA-256. The
content is stored once for all assets of equal content that a user has (`assets_storage`). Assets of other
users, and of deleted projects, are NotFound.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, NotFound
from ximler.core.ids import Position
from ximler.database import Database, chunks
from ximler.database.collection import Page
from ximler.metering.limits.plans import limits_of
from ximler.projects import access, assets_storage
from ximler.schema.asset import ASSETS, Asset
from ximler.schema.document import Identified
from ximler.schema.project_share import Role

__all__ = [
    "MOST",
    "Asset",
    "delete",
    "get",
    "page",
    "read",
    "refuse_too_many",
    "refuse_too_many_of_all",
    "require_project",
    "stored_by",
]  # fmt: skip

MOST = 1000  # assets of a project
# Assets of all projects of a user, checked before a copy or an archive adds up to a thousand in one call.
# Their documents are not metered: half a kilobyte each, besides the name.
_MOST_OF_ALL = 100_000
_BYTES_EACH = 10_000  # or one per this many bytes of the plan's storage, if that is more


async def page(
    database: Database, actor: Actor, project_id: ObjectId, *, first: int = 20, after: Position | None = None
) -> Page[Asset]:
    """Assets of one of the actor's projects, newest first. Raises NotFound."""
    user_id = await require_project(database, actor, project_id, "READER")
    return await database[ASSETS].page({"userId": user_id, "projectId": project_id}, first=first, after=after)


async def get(database: Database, actor: Actor, project_id: ObjectId, asset_id: ObjectId) -> Asset:
    """One asset, without its content. Raises NotFound, also if its project is deleted."""
    user_id = await require_project(database, actor, project_id, "READER")
    found = await database[ASSETS].find_one({"_id": asset_id, "userId": user_id, "projectId": project_id})
    if found is None:
        raise _no_asset()
    return found


def read(database: Database, asset: Asset, start: int, end: int) -> AsyncGenerator[bytes, None]:
    """The bytes of an asset from `start` up to `end`, in pieces.
    Raises Damaged if it is deleted meanwhile."""
    return chunks.read(database, assets_storage.BUCKET, asset.file_id, start, end)


async def stored_by(database: Database, user_id: ObjectId) -> AsyncGenerator[Asset, None]:
    """All assets of a user, of deleted projects, too."""
    async with aclosing(database[ASSETS].stream({"userId": user_id})) as found:
        async for asset in found:
            yield asset


async def delete(database: Database, actor: Actor, project_id: ObjectId, asset_id: ObjectId) -> Asset:
    """Delete an asset, and release its bytes unless another asset has the same content. Raises NotFound."""
    user_id = await require_project(database, actor, project_id)

    async def write(transaction: Database) -> tuple[Asset, bool]:
        where = {"_id": asset_id, "userId": user_id, "projectId": project_id}
        asset = await transaction[ASSETS].find_one(where)
        if asset is None or not await transaction[ASSETS].delete(where):
            raise _no_asset()
        return asset, await assets_storage.dereference(transaction, user_id, asset.file_id)

    asset, unused = await database.transaction(write)
    if unused:
        await assets_storage.collect(database, asset.file_id)
    return asset


async def require_project(database: Database, actor: Actor, project_id: ObjectId, need: Role = "EDITOR") -> ObjectId:
    """The owner of a project that the actor may use. Raises NotFound, Forbidden."""

    async def owner(acting: Actor) -> ObjectId:
        user_id = acting.require_user()
        if await database.projects.find_one({"_id": project_id, "userId": user_id}, into=Identified) is None:
            raise NotFound("No such project")
        return user_id

    return await access.through(database, actor, project_id, need, owner)


async def refuse_too_many(database: Database, user_id: ObjectId, project_id: ObjectId) -> None:
    """Raises LimitExceeded for a project that has `MOST` assets."""
    if await database[ASSETS].count({"userId": user_id, "projectId": project_id}) >= MOST:
        raise LimitExceeded(f"The project has {MOST:,} assets, the most that are kept: delete some")


async def refuse_too_many_of_all(database: Database, user_id: ObjectId) -> None:
    """Raises LimitExceeded if the user's projects, including the trash, have too many assets."""
    storage = (await limits_of(database, user_id)).storage_bytes
    most = max(_MOST_OF_ALL, storage // _BYTES_EACH)
    index = "userId_1_projectId_1_createdAt_-1__id_-1"
    if storage >= 0 and await database[ASSETS].count_keys({"userId": user_id}, most=most, index=index) >= most:
        raise LimitExceeded(
            f"Your projects have {most:,} assets, the most that are kept: delete some, or empty the trash"
        )


def _no_asset() -> NotFound:
    return NotFound("No such asset")
