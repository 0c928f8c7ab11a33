"""Files in GridFS, a bucket a kind, each owned by somebody.

A file's name is its owner's id: GridFS's own index on names then finds whatever somebody has, to export or remove it, orphans
included. GridFS takes no part in transactions: store a file first, then point to it; what nothing points to is garbage.
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
    """What is known of a file without reading it."""

    id: ObjectId
    owner: ObjectId
    size_bytes: int
    content_type: str
    stored_at: datetime


async def store(database: Database, bucket: str, owner: ObjectId, content: bytes, *, content_type: str) -> ObjectId:
    """Keep a file; returns its id."""
    try:
        return await _bucket(database, bucket).upload_from_stream(
            str(owner), content, metadata={"contentType": content_type}
        )
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def find(database: Database, bucket: str, file_id: ObjectId) -> File | None:
    """One command; nothing of the file itself is read."""
    found = [file async for file in _files(database, bucket, {"_id": file_id})]
    return found[0] if found else None


async def stored_by(database: Database, bucket: str, owner: ObjectId) -> list[File]:
    """All of somebody's files."""
    return [file async for file in _files(database, bucket, {"filename": str(owner)})]


async def read(database: Database, bucket: str, file_id: ObjectId) -> AsyncGenerator[bytes, None]:
    """A file's content, chunk by chunk (255 kB); nothing for a file that is not there any more."""
    try:
        stream = await _bucket(database, bucket).open_download_stream(file_id)
        while chunk := await stream.readchunk():
            yield chunk
    except NoFile:
        return
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def remove(database: Database, bucket: str, file_id: ObjectId) -> None:
    """Repeating it changes nothing."""
    try:
        await _bucket(database, bucket).delete(file_id)
    except NoFile:
        return
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def remove_all(database: Database, bucket: str, owner: ObjectId) -> None:
    """Remove all of somebody's files. Repeating it changes nothing; cut off in the middle, it leaves the rest for next time."""
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
