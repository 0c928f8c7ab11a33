"""Files in GridFS, one bucket per kind of file. Each file has an owner.

A file's name is its owner's id: GridFS's own index on names then finds all files of an owner, for export and
removal, orphans included. GridFS cannot take part in transactions: store a file first, then reference it.
Unreferenced files are garbage.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime

import msgspec
from bson import ObjectId
from gridfs import NoFile
from gridfs.asynchronous import AsyncGridFSBucket
from pymongo.errors import PyMongoError

from ximler.core.clock import EPOCH
from ximler.database.connection import Database
from ximler.database.failures import translated

__all__ = ["File", "find", "read", "remove", "remove_all", "store", "stored_by"]

_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)


class File(msgspec.Struct, frozen=True):
    """A file's metadata, without its content."""

    id: ObjectId
    owner: ObjectId
    size_bytes: int
    content_type: str
    stored_at: datetime


async def store(database: Database, bucket: str, owner: ObjectId, content: bytes, *, content_type: str) -> ObjectId:
    """Store a file; returns its id."""
    try:
        return await _bucket(database, bucket).upload_from_stream(
            str(owner), content, metadata={"contentType": content_type}
        )
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def find(database: Database, bucket: str, file_id: ObjectId) -> File | None:
    """One command; the content is not read."""
    found = [file async for file in _files(database, bucket, {"_id": file_id})]
    return found[0] if found else None


async def stored_by(database: Database, bucket: str, owner: ObjectId) -> list[File]:
    """All files of an owner."""
    return [file async for file in _files(database, bucket, {"filename": str(owner)})]


async def read(database: Database, bucket: str, file_id: ObjectId) -> AsyncGenerator[bytes, None]:
    """A file's content, chunk by chunk (255 kB); nothing for a removed file."""
    try:
        stream = await _bucket(database, bucket).open_download_stream(file_id)
        while chunk := await stream.readchunk():
            yield chunk
    except NoFile:
        return
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def remove(database: Database, bucket: str, file_id: ObjectId) -> None:
    """Idempotent."""
    try:
        await _bucket(database, bucket).delete(file_id)
    except NoFile:
        return
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def remove_all(database: Database, bucket: str, owner: ObjectId) -> None:
    """Remove all files of an owner. Idempotent: a repeat finishes an interrupted removal."""
    for file in await stored_by(database, bucket, owner):
        await remove(database, bucket, file.id)


async def _files(database: Database, bucket: str, where: dict[str, object]) -> AsyncIterator[File]:
    try:
        async for raw in database.raw[f"{bucket}.files"].find(where):
            yield File(
                id=raw["_id"],
                owner=ObjectId(raw["filename"]),
                size_bytes=raw["length"],
                content_type=raw["metadata"]["contentType"],
                stored_at=EPOCH + (raw["uploadDate"] - _EPOCH_NAIVE),
            )
    except PyMongoError as error:
        raise translated(error, bucket) from error


def _bucket(database: Database, name: str) -> AsyncGridFSBucket:
    return AsyncGridFSBucket(database.raw, name)
