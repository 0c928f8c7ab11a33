"""Uploads of assets, streamed into GridFS: at most 2 MB of a file are in memory.

Storage is reserved before the first byte: all of it for a known size, else in steps. A running upload holds a
lease and renews it, also while its sender is slow; without one it has ended, and the sweep removes what it
stored. An upload becomes an asset in one transaction, after its last byte.
"""

import hashlib
from datetime import timedelta
from time import monotonic
from typing import Any, ClassVar

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid
from ximler.database import Database, chunks
from ximler.database.failures import DocumentExists
from ximler.metering.quota import gauges
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import assets, assets_kinds, assets_storage
from ximler.schema.asset import ASSET_FILES, ASSETS, Asset, AssetFile

__all__ = ["LEASE", "TooLarge", "Upload", "UploadEnded", "begin", "file_name"]

LEASE = timedelta(minutes=2)
ANSWERED = timedelta(hours=1)
MAX_NAME = 255
_PIECES = 8  # chunks that are written with one command
_STEP = 8_000_000  # bytes that are reserved beyond what is needed, for a file of unknown size
# Control characters, and those that reverse the direction of text:
# a name is shown to people, and sent in headers.
_UNWANTED = {*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)}
_CLEANED = dict.fromkeys(_UNWANTED, " ")


class TooLarge(Invalid):
    code = "BODY_TOO_LARGE"


class UploadEnded(Conflict):
    """Its lease expired, or its project was removed."""

    code = "UPLOAD_ENDED"


async def begin(
    database: Database, actor: Actor, project_id: ObjectId, *, name: str, size_bytes: int | None, most: int
) -> "Upload":
    """Reserve storage for a file of a known size, or of one that is at most `most`, and start its upload.

    Raises NotFound, TooLarge, LimitExceeded, QuotaExceeded.
    """
    file = await reserved(database, actor, project_id, name=name, size_bytes=size_bytes, most=most)
    return Upload(database, actor, file, most=most)


async def reserved(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    *,
    name: str,
    size_bytes: int | None,
    most: int,
    lease: timedelta = LEASE,
    resumable: bool = False,
) -> AssetFile:
    """The document of a new upload, with its storage reserved. Raises as `begin` does."""
    user_id = await assets.require_project(database, actor, project_id)
    name = file_name(name)
    if size_bytes is not None and size_bytes > most:
        raise _too_large(most)
    await assets.refuse_too_many(database, user_id, project_id)

    async def write(transaction: Database) -> AssetFile:
        file = AssetFile(
            user_id=user_id,
            project_id=project_id,
            state="UPLOADING",
            charged_bytes=size_bytes or 0,
            name=name,
            holder=None if resumable else ObjectId(),
            until=database.clock.now() + lease,
            resumable=resumable,
            length=size_bytes if resumable else None,
        )
        await assets_storage.charge(transaction, user_id, project_id, file.charged_bytes)
        return await transaction[ASSET_FILES].insert(file)

    return await database.transaction(write)


class Upload:
    """A file that this process receives, as the holder of its lease. End it with `finish` or `abandon`."""

    renewed_s: ClassVar[float] = 20

    def __init__(self, database: Database, actor: Actor, file: AssetFile, *, most: int) -> None:
        self._database = database
        self._actor = actor
        self._file = file
        self._most = most
        self._mine = {"_id": file.id, "userId": file.user_id, "state": "UPLOADING", "holder": file.holder}
        self._charged = file.charged_bytes
        self._stored = 0  # chunks
        self._kept = bytearray()  # received, not yet stored
        self._head = self._tail = b""
        self._hash = hashlib.sha256()
        self._renewed = monotonic()
        self._ending = False
        self._idle = False
        self.size_bytes = 0

    async def write(self, piece: bytes) -> None:
        """Take the next bytes; none keep the lease. Raises TooLarge, QuotaExceeded, UploadEnded."""
        self._idle = not piece
        size = self.size_bytes + len(piece)
        if size > self._most:
            raise _too_large(self._most)
        if size > self._charged:
            await self._reserve(size)
        self.size_bytes = size
        self._hash.update(piece)
        self._kept += piece
        if len(self._head) < assets_kinds.HEAD:
            self._head += piece[: assets_kinds.HEAD - len(self._head)]
        self._tail = (self._tail + piece[-64:])[-64:]
        await self._keep_up()

    async def _keep_up(self) -> None:
        """Store what makes a command, and renew the lease in time."""
        while len(self._kept) >= _PIECES * chunks.CHUNK:
            await self._store()
        if monotonic() - self._renewed > self.renewed_s:
            await self._renew()

    async def finish(self) -> Asset:
        """Make the file an asset. Raises UploadEnded, NotFound for a project that was deleted meanwhile."""
        self._ending = True
        while self._kept:
            await self._store()
        await self._renew()
        database, file = self._database, self._file
        await self._read_again()
        kind = assets_kinds.kind_of(self._head, self._tail)
        await chunks.complete(
            database, assets_storage.BUCKET, file.id, file.user_id, size_bytes=self.size_bytes, content_type=kind
        )
        asset = Asset(
            user_id=file.user_id,
            project_id=file.project_id,
            file_id=file.id,
            name=file.name or "file",
            content_type=kind,
            size_bytes=self.size_bytes,
            digest=self._hash.digest(),
        )
        try:
            made = await database.transaction(lambda transaction: self._settle(transaction, asset))
        except DocumentExists:  # another upload of the same content was faster: refer to its file
            made = await database.transaction(lambda transaction: self._settle(transaction, asset))
        if made.file_id != file.id:
            await assets_storage.collect(database, file.id)
        return made

    async def abandon(self) -> None:
        """Release what the upload reserved, and remove what it stored. Idempotent."""

        async def write(transaction: Database) -> None:
            file = await transaction[ASSET_FILES].find_one(self._mine)
            if file is not None:
                await assets_storage.discard(transaction, file)

        await self._database.transaction(write)
        await assets_storage.collect(self._database, self._file.id)

    async def _read_again(self) -> None:
        """For an upload that others began: its hash, its first and last bytes."""

    async def _settle(self, transaction: Database, asset: Asset) -> Asset:
        await assets.require_project(transaction, self._actor, asset.project_id)
        await assets.refuse_too_many(transaction, asset.user_id, asset.project_id)
        file = await transaction[ASSET_FILES].find_one(self._mine)
        if file is None:
            raise _ended()
        same = await transaction[ASSET_FILES].find_and_patch(
            {"userId": asset.user_id, "digest": asset.digest}, {"$inc": {"generation": 1}}
        )
        if same is not None:
            await assets_storage.discard(transaction, file)
            asset.file_id = same.id
        else:
            stored = {
                "state": "STORED",
                "digest": asset.digest,
                "sizeBytes": asset.size_bytes,
                "chargedBytes": asset.size_bytes,
                "contentType": asset.content_type,
            }
            gone = ("holder", "until", "name", "heldUntil", "wanted")
            update: dict[str, Any] = {"$set": stored, "$unset": dict.fromkeys(gone, "")}
            if not await transaction[ASSET_FILES].patch(self._mine, update):
                raise _ended()
            if surplus := file.charged_bytes - asset.size_bytes:
                await assets_storage.charge(transaction, file.user_id, file.project_id, -surplus)
        if file.resumable:
            done: dict[str, Any] = {"assetId": asset.id, "sizeBytes": asset.size_bytes, "length": asset.size_bytes}
            if same is not None:  # its address answers for a while
                done["until"] = transaction.clock.now() + ANSWERED
            await transaction[ASSET_FILES].patch({"_id": file.id, "userId": file.user_id}, {"$set": done})
        return await transaction[ASSETS].insert(asset)

    async def _reserve(self, needed: int) -> None:
        """Reserve a step more than is needed, or all that the plan has left. Of several uploads that need the
        same last bytes the first one has them all, rather than each a part that is of no use.
        """
        least = needed - self._charged
        try:
            await self._grow(min(least + _STEP, self._most - self._charged))
        except QuotaExceeded:
            limits, gauge = await gauges.room_of(self._database, self._file.user_id)
            await self._grow(max(least, limits.storage_bytes - gauge.storage_bytes))

    async def _grow(self, grown: int) -> None:
        async def write(transaction: Database) -> None:
            if not await transaction[ASSET_FILES].patch(self._mine, {"$inc": {"chargedBytes": grown}}):
                raise _ended()
            await assets_storage.charge(transaction, self._file.user_id, self._file.project_id, grown)

        await self._database.transaction(write)
        self._charged += grown

    async def _store(self) -> None:
        if monotonic() - self._renewed > self.renewed_s:
            await self._renew()
        end = min(len(self._kept), _PIECES * chunks.CHUNK)
        if not self._ending:  # only the last chunk may be shorter
            end -= end % chunks.CHUNK
        if not end:
            return
        pieces = [bytes(self._kept[start : start + chunks.CHUNK]) for start in range(0, end, chunks.CHUNK)]
        await chunks.write(self._database, assets_storage.BUCKET, self._file.id, self._stored, pieces)
        self._stored += len(pieces)
        del self._kept[:end]

    async def _renew(self) -> None:
        until = self._database.clock.now() + LEASE
        if not await self._database[ASSET_FILES].patch(self._mine, {"$set": {"until": until}}):
            raise _ended()
        self._renewed = monotonic()


def file_name(given: str) -> str:
    """A file's name as it is kept: the last part of a path, without control characters. Raises Invalid."""
    name = given.translate(_CLEANED).replace("\\", "/").rsplit("/", 1)[-1].strip()
    if name in ("", ".", ".."):
        name = "file"
    if len(name) > MAX_NAME:
        raise Invalid.field("name", f"is longer than {MAX_NAME} characters")
    return name


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"A file may have {most:,} bytes at most")


def _ended() -> UploadEnded:
    return UploadEnded("The upload has ended, or its project was removed: send the file again")
