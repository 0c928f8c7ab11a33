"""Uploads that continue after an interruption, also in another process: the side of tus 1.0 that stores.

One process at a time writes an upload, as the holder of its lease. Another one that wants it asks the holder
to go, because a client that returns is often faster than the news that its connection broke. The offset is
committed after the bytes before it are stored, and reaches the length only in the transaction that makes the
asset.
"""

import asyncio
import hashlib
from datetime import timedelta
from time import monotonic
from typing import Any, ClassVar

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.database import Database, chunks
from ximler.projects import assets, assets_kinds, assets_storage
from ximler.projects.assets_uploads import Upload, UploadEnded, reserved
from ximler.schema.asset import ASSET_FILES, AssetFile

__all__ = ["EXPIRES", "AssetFile", "Locked", "OffsetConflict", "Resumed", "claim", "create", "find", "terminate"]

EXPIRES = timedelta(hours=24)
_LEASE = timedelta(seconds=60)
_WAIT_S = 10  # for the holder to go
_ASK_S = 0.1
_FREE = dict.fromkeys(("holder", "heldUntil", "wanted"), "")


class Locked(Conflict):
    """Another request writes this upload."""

    code = "UPLOAD_LOCKED"


class OffsetConflict(Conflict):
    """The upload is at another offset."""

    code = "OFFSET_CONFLICT"


async def create(
    database: Database, actor: Actor, project_id: ObjectId, *, name: str, length: int | None, most: int
) -> AssetFile:
    """Start an upload, of a known length or of one that is given later.
    Raises as `assets_uploads.begin` does."""
    return await reserved(
        database, actor, project_id, name=name, size_bytes=length, most=most, lease=EXPIRES, resumable=True
    )


async def find(database: Database, actor: Actor, project_id: ObjectId, upload_id: ObjectId) -> AssetFile:
    """One of the actor's uploads, as it is when no request writes it. Raises NotFound, Locked."""
    user_id = await assets.require_project(database, actor, project_id)
    where = {"_id": upload_id, "userId": user_id, "projectId": project_id, "resumable": True}
    until, ask = monotonic() + _WAIT_S, _ASK_S
    while True:
        file = await database[ASSET_FILES].find_one(where)
        now = database.clock.now()
        if file is None or (file.state != "STORED" and file.until and file.until <= now):
            raise NotFound("No such upload")
        if file.state == "GARBAGE" and file.asset_id is None:
            raise NotFound("No such upload")
        if file.holder is None or (file.held_until and file.held_until <= now):
            return file
        if monotonic() > until:
            raise Locked("Another request writes this upload: try again in a moment")
        if not file.wanted:
            await database[ASSET_FILES].patch({**where, "holder": file.holder}, {"$set": {"wanted": True}})
        await asyncio.sleep(ask)
        ask = min(2 * ask, 1.0)


async def claim(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    upload_id: ObjectId,
    *,
    offset: int,
    length: int | None = None,
    most: int,
    whole: bool = False,
) -> "Resumed":
    """Become the writer of an upload from `offset` on.
    With `whole`, nothing is committed until `verified` is called.

    Raises NotFound, Locked, OffsetConflict, Invalid for another `length`, QuotaExceeded.
    """
    file = await find(database, actor, project_id, upload_id)
    if offset != file.size_bytes or file.state != "UPLOADING":
        raise OffsetConflict(f"The upload is at offset {file.size_bytes}")
    if length is not None and file.length not in (None, length):
        raise Invalid.field("length", f"is {file.length:,} already, and cannot change")
    now = database.clock.now()
    values: dict[str, Any] = {"holder": ObjectId(), "heldUntil": now + _LEASE, "until": now + EXPIRES}
    if length is not None:
        values["length"] = length
    free = {"$or": [{"holder": None}, {"heldUntil": {"$lte": now}}]}
    where = {"_id": file.id, "userId": file.user_id, "state": "UPLOADING", "sizeBytes": offset, **free}
    claimed = await database[ASSET_FILES].find_and_patch(where, {"$set": values, "$unset": {"wanted": ""}})
    if claimed is None:
        raise Locked("Another request writes this upload: try again in a moment")
    number, rest = divmod(offset, chunks.CHUNK)
    await chunks.cut(database, assets_storage.BUCKET, file.id, number + bool(rest))
    kept = [
        piece async for piece in chunks.read(database, assets_storage.BUCKET, file.id, number * chunks.CHUNK, offset)
    ]
    resumed = Resumed(database, actor, claimed, most=most, kept=b"".join(kept), whole=whole)
    await resumed.reserve_all()
    return resumed


async def terminate(database: Database, actor: Actor, project_id: ObjectId, upload_id: ObjectId) -> None:
    """End an upload that is not finished, also while a request writes it. Raises NotFound."""
    user_id = await assets.require_project(database, actor, project_id)

    async def write(transaction: Database) -> None:
        where = {"_id": upload_id, "userId": user_id, "projectId": project_id, "state": "UPLOADING", "resumable": True}
        file = await transaction[ASSET_FILES].find_one(where)
        if file is None:
            raise NotFound("No such upload")
        await assets_storage.discard(transaction, file)

    await database.transaction(write)
    await assets_storage.collect(database, upload_id)


class Resumed(Upload):
    """The writer of an upload. End it with `finish` once it is `complete`, else with `pause`."""

    renewed_s: ClassVar[float] = 1  # a request that wants the upload waits for it

    def __init__(
        self, database: Database, actor: Actor, file: AssetFile, *, most: int, kept: bytes, whole: bool
    ) -> None:
        super().__init__(database, actor, file, most=most if file.length is None else file.length)
        self._length = file.length
        self._start = self._committed = self.size_bytes = file.size_bytes
        self._stored = file.size_bytes // chunks.CHUNK
        self._kept += kept
        self._partial = bool(kept)  # whether the next chunk is stored in part
        self._commits = not whole

    @property
    def complete(self) -> bool:
        return self.size_bytes == self._length

    def verified(self) -> None:
        """From now on, what was received may be committed."""
        self._commits = True

    async def reserve_all(self) -> None:
        """Reserve storage for the whole length, where it was not known before. Raises QuotaExceeded."""
        if self._length is not None and self._length > self._charged:
            try:
                await self._grow(self._length - self._charged)
            except Exception:
                await self.pause()
                raise

    async def pause(self) -> int:
        """Keep what was received, and let others write; returns the offset. Raises UploadEnded."""
        self._ending = True
        if self._commits and not self.complete:
            while self._kept:
                await self._store()
            self._committed = self.size_bytes
        values: dict[str, Any] = {"sizeBytes": self._committed, "until": self._database.clock.now() + EXPIRES}
        update: dict[str, Any] = {"$set": values, "$unset": _FREE}
        if not await self._database[ASSET_FILES].patch(self._mine, update):
            raise UploadEnded("The upload has ended: start it again")
        return self._committed

    async def _store(self) -> None:
        if self._partial:
            piece = bytes(self._kept[: chunks.CHUNK])
            await chunks.replace(self._database, assets_storage.BUCKET, self._file.id, self._stored, piece)
            self._partial = False
            self._stored += 1
            del self._kept[: chunks.CHUNK]
        if self._kept:
            await super()._store()
        await self._renew()

    async def _renew(self) -> None:
        now = self._database.clock.now()
        values: dict[str, Any] = {"until": now + EXPIRES, "heldUntil": now + _LEASE}
        stored = self._stored * chunks.CHUNK
        if self._commits and self._committed < stored < self.size_bytes:
            values["sizeBytes"] = self._committed = stored
        found = await self._database[ASSET_FILES].find_and_patch(self._mine, {"$set": values})
        if found is None:
            raise UploadEnded("The upload has ended, or its project was removed: start it again")
        self._renewed = monotonic()
        if found.wanted and self._idle and not self._ending:
            raise Locked("Another request continues this upload")

    async def _read_again(self) -> None:
        if not self._start:
            return
        self._hash = hashlib.sha256()
        self._head = b""
        async for piece in chunks.read(self._database, assets_storage.BUCKET, self._file.id, 0, self.size_bytes):
            self._hash.update(piece)
            self._head = self._head or piece[: assets_kinds.HEAD]
            self._tail = piece[-64:]
            if monotonic() - self._renewed > 10 * self.renewed_s:
                await self._renew()
