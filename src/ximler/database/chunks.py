"""Chunks of files in GridFS's format, written and read as streams, and continued after an interruption.

PyMongo's own streams cannot continue a file, and read without a bound. Any GridFS driver reads these files. A
file is known to it once `complete` has written its document; before that only its chunks exist.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from weakref import WeakKeyDictionary

from bson import Binary, ObjectId
from pymongo.errors import PyMongoError

from ximler.core.errors import Unavailable
from ximler.database.connection import Database
from ximler.database.failures import translated

__all__ = ["CHUNK", "Damaged", "complete", "cut", "read", "remove", "replace", "write"]

CHUNK = 261_120  # bytes; GridFS's default
_BATCH = 8  # chunks that are read at once, which bounds memory
_indexed: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # by client: databases and buckets


class Damaged(Unavailable):
    """A chunk is missing or has another size:
    the file was removed while it was read, or its database was changed."""

    code = "FILE_DAMAGED"


async def write(database: Database, bucket: str, file_id: ObjectId, number: int, pieces: Sequence[bytes]) -> None:
    """Store chunks from `number` on. Each but the file's last has `CHUNK` bytes. One command."""
    try:
        await _index(database, bucket)
        await database.raw[f"{bucket}.chunks"].insert_many(
            [
                {"_id": ObjectId(), "files_id": file_id, "n": number + index, "data": Binary(piece)}
                for index, piece in enumerate(pieces)
            ]
        )
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def replace(database: Database, bucket: str, file_id: ObjectId, number: int, piece: bytes) -> None:
    """Store a chunk, in place of a shorter one that an interrupted upload has
    stored. Idempotent. One command."""
    where = {"files_id": file_id, "n": number}
    try:
        await _index(database, bucket)
        await database.raw[f"{bucket}.chunks"].replace_one(where, {**where, "data": Binary(piece)}, upsert=True)
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def cut(database: Database, bucket: str, file_id: ObjectId, number: int) -> None:
    """Remove the chunks from `number` on. Idempotent. One command."""
    try:
        await database.raw[f"{bucket}.chunks"].delete_many({"files_id": file_id, "n": {"$gte": number}})
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def complete(
    database: Database, bucket: str, file_id: ObjectId, owner: ObjectId, *, size_bytes: int, content_type: str
) -> None:
    """Write the file's document, once all of its chunks are stored. Idempotent."""
    document = {
        "length": size_bytes,
        "chunkSize": CHUNK,
        "uploadDate": database.clock.now(),
        "filename": str(owner),
        "metadata": {"contentType": content_type},
    }
    try:
        await database.raw[f"{bucket}.files"].replace_one({"_id": file_id}, document, upsert=True)
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def read(database: Database, bucket: str, file_id: ObjectId, start: int, end: int) -> AsyncGenerator[bytes, None]:
    """The bytes from `start` up to `end`, which is not included, chunk by chunk. Raises Damaged."""
    if start >= end:
        return
    number, last = start // CHUNK, (end - 1) // CHUNK
    where = {"files_id": file_id, "n": {"$gte": number, "$lte": last}}
    try:
        async with aclosing(_found(database.raw[f"{bucket}.chunks"], where)) as found:
            async for chunk in found:
                offset = number * CHUNK
                data = chunk["data"]
                wanted = data[max(start - offset, 0) : end - offset]
                if chunk["n"] != number or len(wanted) != min(end, offset + CHUNK) - max(start, offset):
                    break
                yield wanted
                number += 1
    except PyMongoError as error:
        raise translated(error, bucket) from error
    if number != last + 1:
        raise Damaged(f"The file lacks bytes from {max(number * CHUNK, start):,} on")


async def remove(database: Database, bucket: str, file_ids: Sequence[ObjectId]) -> None:
    """Remove files and their chunks, complete or not. Idempotent. Two commands."""
    try:
        await database.raw[f"{bucket}.files"].delete_many({"_id": {"$in": file_ids}})
        await database.raw[f"{bucket}.chunks"].delete_many({"files_id": {"$in": file_ids}})
    except PyMongoError as error:
        raise translated(error, bucket) from error


async def _found(collection: Any, where: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    async with collection.find(where, {"n": 1, "data": 1}, sort=[("n", 1)], batch_size=_BATCH) as cursor:
        async for chunk in cursor:
            yield chunk


async def _index(database: Database, bucket: str) -> None:
    """GridFS's own indexes, once per process."""
    done = _indexed.setdefault(database.client, set())
    if (name := f"{database.name}.{bucket}") not in done:
        await database.raw[f"{bucket}.chunks"].create_index([("files_id", 1), ("n", 1)], unique=True)
        await database.raw[f"{bucket}.files"].create_index([("filename", 1), ("uploadDate", 1)])
        done.add(name)
