"""A user's picture: stored as a file, named by `users.avatar`, public while it is the user's avatar.

Another application may store any URL in `users.avatar`; it stays until a picture is uploaded here.
"""

from collections.abc import AsyncIterator
from datetime import timedelta

from bson import ObjectId

from ximler.accounts import pictures
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database, files
from ximler.database.files import File

__all__ = ["BUCKET", "erase", "get", "read", "remove", "set_picture"]

BUCKET = "avatars"
_PATH = "/v1/avatars/"
_FORGOTTEN = timedelta(hours=1)  # older uploads that are not an avatar are orphans


async def set_picture(database: Database, actor: Actor, sent: bytes) -> str:
    """Store a picture as the actor's avatar; returns its path, which is new each time. Raises Invalid if it
    is not a picture.
    """
    user_id = actor.require_user()
    picture = await pictures.thumbnail(sent)
    file_id = await files.store(database, BUCKET, user_id, picture, content_type=pictures.CONTENT_TYPE)
    path = f"{_PATH}{file_id}"
    before = await _point(database, actor, path)
    await _clean(database, user_id, before, kept=file_id)
    return path


async def remove(database: Database, actor: Actor) -> bool:
    """Remove the actor's avatar. False if there was none."""
    before = await _point(database, actor, None)
    await _clean(database, actor.require_user(), before, kept=None)
    return before is not None


async def get(database: Database, file_id: ObjectId) -> File:
    """A current avatar. Public: needs no actor. Raises NotFound, also after its user left."""
    file = await files.find(database, BUCKET, file_id)
    if file is None or not await database.users.count({"_id": file.owner, "avatar": f"{_PATH}{file_id}"}):
        raise NotFound("No such picture")
    return file


def read(database: Database, file: File) -> AsyncIterator[bytes]:
    return files.read(database, BUCKET, file.id)


async def erase(database: Database, user_id: ObjectId) -> None:
    """Remove all pictures of an erased user. Idempotent."""
    await files.remove_all(database, BUCKET, user_id)


async def _point(database: Database, actor: Actor, path: str | None) -> str | None:
    """Swap and audit the pointer; returns its previous value, which no concurrent swap returns too."""
    user_id = actor.require_user()

    async def write(transaction: Database) -> str | None:
        user = await transaction.users.find_and_patch({"_id": user_id}, {"$set": {"avatar": path}}, before=True)
        if user is None:
            raise NotFound("No such user")
        if user.avatar != path:
            await records.write(
                transaction,
                actor,
                Action.AVATAR_CHANGED,
                resource="users",
                resource_id=user_id,
                before={"avatar": user.avatar},
                after={"avatar": path},
            )
        return user.avatar

    return await database.transaction(write)


async def _clean(database: Database, user_id: ObjectId, before: str | None, *, kept: ObjectId | None) -> None:
    """Remove the previous file, and older orphans of crashed uploads. Younger files may belong to a running
    upload.
    """
    old = database.clock.now() - _FORGOTTEN
    for file in await files.stored_by(database, BUCKET, user_id):
        if file.id != kept and (before == f"{_PATH}{file.id}" or file.stored_at < old):
            await files.remove(database, BUCKET, file.id)
