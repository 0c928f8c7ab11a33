"""The contents of versions: whole canvases, compressed, and small differences from them.

A content is named by its hash, so that equal ones are stored once. It is a full copy, or compressed with a
full copy as zstd's dictionary, which leaves their difference. A difference names its copy and counts as a use
of it, so that reading is one step, a copy stays as long as it is needed, and a deletion rewrites nothing. A
new full copy is made after `_MOST_USES`, and where the difference has become large.
"""

import asyncio
import hashlib
from typing import Any, NamedTuple

from bson import ObjectId

from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.projects import bases, mentions, packing
from ximler.projects.bases import Stored
from ximler.schema.asset import ASSETS
from ximler.schema.canvas_version import CANVAS_CONTENTS, CANVAS_VERSIONS, CanvasContent
from ximler.schema.document import Document, Identified

__all__ = ["NEWEST", "CopyGone", "Packed", "keep", "mentioned", "packed", "read", "release", "total"]

NEWEST = [("createdAt", -1), ("_id", -1)]
_INSIDE = 12_000_000  # bytes that a content's document has; more are in parts
_MOST_USES = 20  # of a full copy, by versions and differences
_MOST_COMPARED = 20_000_000  # bytes of a canvas that is stored as a difference: a third of a second


class CopyGone(Exception):
    """The full copy that a content is a difference from was deleted, before the content was stored."""


class Packed(NamedTuple):
    """A canvas that is to be kept: its hash, size in BSON, and compressed bytes,
    which `base` is needed to read."""

    digest: bytes
    size_bytes: int
    data: bytes
    base: bytes | None
    assets: list[ObjectId]  # that it shows


class _Data(Document, kw_only=True):
    data: bytes
    parts: int = 0
    base: bytes | None = None


class _Uses(Document, kw_only=True):
    uses: int = 0
    parts: int = 0
    stored_bytes: int = 0
    base: bytes | None = None


class _Digest(Document, kw_only=True):
    digest: bytes


async def packed(database: Database, now: Stored, text: bytes | None, *, alone: bool = False) -> Packed:
    """A canvas, and the text that it was read from, compressed in a thread. `alone`: as a full copy."""
    mine = {"userId": now.user_id, "projectId": now.id}
    key, base = (None, None) if alone else await _copy(database, mine)
    known = {str(each.id).encode() for each in await database[ASSETS].find(mine, into=Identified)}

    def made() -> Packed:
        plain = packing.plain(now.canvas_data, text)
        digest, data = hashlib.sha256(plain).digest(), None
        shown = sorted(mentions.mentioned(plain, known))
        if base is not None and max(len(plain), len(base)) <= _MOST_COMPARED and key != now.id.binary + digest:
            data = packing.pack(plain, base=base)
            if len(data) > len(plain) // 20 and len(data) > len(packing.pack(plain)) // 2:
                data = None
        if data is None:
            return Packed(digest, len(plain), packing.pack(plain), None, shown)
        return Packed(digest, len(plain), data, key, shown)

    return await asyncio.to_thread(made)


async def keep(transaction: Database, mine: dict[str, Any], content: Packed) -> int:
    """Store a content, or use the equal one that is stored; returns its stored bytes. Raises CopyGone."""
    key = _key(mine, content.digest)
    where = {"_id": key, **mine}
    if found := await transaction[CANVAS_CONTENTS].find_and_patch(where, _MORE, into=_Uses):
        return found.stored_bytes
    base = content.base
    if base is not None and not await transaction[CANVAS_CONTENTS].patch({"_id": base, **mine}, _MORE):
        raise CopyGone
    inside = len(content.data) <= _INSIDE
    parts = 0 if inside else await bases.store(transaction, key, content.data, mine["userId"], mine["projectId"])
    made = CanvasContent(
        id=key,
        user_id=mine["userId"],
        project_id=mine["projectId"],
        uses=1,
        stored_bytes=len(content.data),
        data=content.data if inside else b"",
        parts=parts,
        base=base,
    )
    await transaction[CANVAS_CONTENTS].insert(made)
    return len(content.data)


async def release(transaction: Database, mine: dict[str, Any], digest: bytes) -> None:
    """End one use of a content. The last one deletes it, and ends its use of a full copy."""
    key: bytes | None = _key(mine, digest)
    while key is not None:
        where = {"_id": key, **mine}
        left = await transaction[CANVAS_CONTENTS].find_and_patch(where, {"$inc": {"uses": -1}}, into=_Uses)
        if left is None or left.uses > 0:
            return
        await transaction[CANVAS_CONTENTS].delete(where)
        if left.parts:
            await bases.remove(transaction, key, left.parts, mine["userId"], mine["projectId"])
        key = left.base


async def read(database: Database, mine: dict[str, Any], digest: bytes) -> tuple[Any, bytes | None]:
    """The canvas of a content, and the text that it was read from. Raises NotFound, Damaged."""
    plain = await _plain(database, mine, _key(mine, digest))
    return await asyncio.to_thread(packing.value_of, plain)


async def mentioned(database: Database, mine: dict[str, Any], digest: bytes, ids: set[bytes]) -> set[ObjectId]:
    """Which of the ids a content mentions. Raises NotFound, Damaged."""
    plain = await _plain(database, mine, _key(mine, digest))
    return await asyncio.to_thread(mentions.mentioned, plain, ids)


async def total(transaction: Database, mine: dict[str, Any]) -> int:
    """Bytes of the contents of a project."""
    found = await transaction[CANVAS_CONTENTS].aggregate(
        [{"$match": mine}, {"$group": {"_id": None, "bytes": {"$sum": "$storedBytes"}}}]
    )
    return found[0]["bytes"] if found else 0


_MORE = {"$inc": {"uses": 1}}


async def _copy(database: Database, mine: dict[str, Any]) -> tuple[bytes | None, bytes | None]:
    """The full copy that the newest version has or is a difference from,
    unless it has been used often: key and bytes."""
    newest = await database[CANVAS_VERSIONS].find_one(mine, sort=NEWEST, into=_Digest)
    key = None if newest is None else _key(mine, newest.digest)
    for _ in range(2):  # a difference, and its copy
        found = None if key is None else await database[CANVAS_CONTENTS].find_one({"_id": key, **mine}, into=_Uses)
        if found is None or key is None:
            return None, None
        if found.base is None:
            break
        key = found.base
    else:
        return None, None
    if found.uses >= _MOST_USES:
        return None, None
    try:
        return key, await _plain(database, mine, key)
    except (NotFound, packing.Damaged):
        return None, None


async def _plain(database: Database, mine: dict[str, Any], key: bytes) -> bytes:
    found = await database[CANVAS_CONTENTS].find_one({"_id": key, **mine}, into=_Data)
    if found is None:
        raise NotFound("No such version")
    data: bytes | None = found.data
    if found.parts:
        data = await bases.load(database, key, found.parts, mine["userId"], mine["projectId"])
    if data is None:
        raise NotFound("No such version")
    base = None if found.base is None else await _plain(database, mine, found.base)
    compressed = data
    return await asyncio.to_thread(lambda: packing.unpacked(compressed, base=base))


def _key(mine: dict[str, Any], digest: bytes) -> bytes:
    project_id: ObjectId = mine["projectId"]
    return project_id.binary + digest
