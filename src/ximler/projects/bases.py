"""Canvases above `LIMIT`: a compressed base in documents of its own, and the patches since, in the project.

`canvasBase` names the base and the revision that it has, `canvasTail` has the later patches, and `canvasData`
is null. A value in `canvasData` is always the canvas: another application that writes it replaces base and
patches.

Invariant: a base is stored, named and removed in one transaction with the project's change, so that no crash
leaves a base without a project, or a project without its base. Parts are never changed: a reader that misses
one reads the project again.
"""

import asyncio
from functools import reduce
from itertools import groupby
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.core.errors import Unavailable
from ximler.database import Database
from ximler.projects import packing, positional, records
from ximler.schema.canvas_part import CANVAS_PARTS, CanvasPart
from ximler.schema.document import Identified, Mixed

__all__ = [
    "LIMIT",
    "Base",
    "Fresh",
    "Stored",
    "base_of",
    "changed",
    "effect_of",
    "entry",
    "fill",
    "is_applied_soon",
    "load",
    "read",
    "read_packed",
    "read_with_text",
    "remove",
    "store",
    "swap",
    "text_of",
    "unpacked",
    "whole",
]

LIMIT = 1_000_000  # bytes of BSON that a project has in `canvasData`
_PART = 4_000_000  # bytes
_AGAIN_US = 200_000  # that patches may add to each reading, before others have been appended
_RUNS = 8  # of patches of records between others: each indexes all records again
_READS = 10  # attempts, while others store the canvas anew
_TOO_MANY = "The canvas is changed by too many others: try again in a moment"


class Base(msgspec.Struct, frozen=True):
    """`revision` is the canvas's that it has, `bytes` its size in BSON. `text`:
    it has the file's text, too."""

    id: ObjectId
    revision: int
    bytes: int
    parts: int
    text: bool = False


class Fresh(msgspec.Struct, frozen=True):
    """A canvas that is to be stored as a base."""

    id: ObjectId
    size: int
    packed: bytes
    text: bool = False

    def at(self, revision: int) -> dict[str, Any]:
        """The value of `canvasBase`."""
        parts = -(-len(self.packed) // _PART)
        made = {"id": self.id, "revision": revision, "bytes": self.size, "parts": parts}
        return made | {"text": True} if self.text else made


class Stored(Identified, kw_only=True):
    """A project's canvas as it is stored. `whole` and `read` fill `canvas_data`."""

    user_id: Any
    canvas_data: Mixed = None
    canvas_revision: int | None = None
    canvas_base: Mixed = None
    canvas_tail: Mixed = None

    @property
    def base(self) -> Base | None:
        return base_of(self.canvas_base) if self.canvas_data is None else None


Kind = Literal["records", "patch", "merge"]


class _Entry(msgspec.Struct, frozen=True):
    """Of the tail: a revision's patch as JSON, its kind, and the list of records that it changes."""

    r: int
    p: bytes
    d: records.Declared = records.DEFAULT
    k: Kind = "records"


def base_of(stored: Any) -> Base | None:
    """None also for a value that another application wrote."""
    try:
        return None if stored is None else msgspec.convert(stored, Base)
    except msgspec.ValidationError:
        return None


async def read(database: Database, where: dict[str, Any], *, deleted: bool = False) -> Stored | None:
    """A project's canvas, whole. One command, one more for a base."""
    for _ in range(_READS):
        found = await database.projects.find_one(where, into=Stored, deleted=deleted)
        if found is None or await fill(database, found):
            return found
    raise Unavailable(_TOO_MANY)


async def read_packed(database: Database, where: dict[str, Any]) -> tuple[Stored, bytes | None] | None:
    """As `read`, but a base stays packed, and is given apart; `effect_of` has the patches since."""
    for _ in range(_READS):
        found = await database.projects.find_one(where, into=Stored)
        if found is None:
            return None
        if (base := found.base) is None:
            await fill(database, found)
            return found, None
        packed = await load(database, base.id.binary, base.parts, found.user_id, found.id)
        if packed is not None:
            return found, packed
    raise Unavailable(_TOO_MANY)


async def read_with_text(database: Database, where: dict[str, Any]) -> tuple[Stored, bytes | None] | None:
    """As `read`, with the text that the canvas was read from, if it is unchanged since: `text_of`."""
    for _ in range(_READS):
        found = await database.projects.find_one(where, into=Stored)
        if found is None:
            return None
        text = await text_of(database, found)
        if await fill(database, found):
            return found, text
    raise Unavailable(_TOO_MANY)


async def whole(database: Database, found: Stored) -> Any:
    """The canvas of a project that was read, or as it is now. `{}` for one that is gone."""
    if not await fill(database, found):
        again = await read(database, {"_id": found.id, "userId": found.user_id}, deleted=True)
        return {} if again is None else again.canvas_data
    return found.canvas_data


async def text_of(database: Database, found: Stored) -> bytes | None:
    """The text that the canvas was read from, if it is unchanged since.
    Call it before `canvas_data` is filled."""
    base = found.base
    if base is None or not base.text or base.revision != found.canvas_revision or found.canvas_tail:
        return None
    packed = await load(database, base.id.binary, base.parts, found.user_id, found.id)
    return None if packed is None else await asyncio.to_thread(packing.text, packed)


async def fill(database: Database, found: Stored) -> bool:
    """Set `canvas_data` from the base and the patches; False if they were stored anew since."""
    base = found.base
    if base is None:
        found.canvas_data = {} if found.canvas_data is None else found.canvas_data
        return True
    packed = await load(database, base.id.binary, base.parts, found.user_id, found.id)
    if packed is None:
        return False
    found.canvas_data = await asyncio.to_thread(unpacked, packed, found)
    return True


def unpacked(packed: bytes, found: Stored) -> Any:
    """The canvas in a packed base, after the patches since. To be called in a thread."""
    canvas = packing.unpack(packed)
    for (kind, declared), alike in groupby(_entries(found), key=lambda entry: (entry.k, entry.d)):
        changes = [msgspec.json.decode(entry.p) for entry in alike]
        if kind == "records":
            canvas = records.applied(canvas, changes, declared)
        else:
            apply = positional.patched if kind == "patch" else positional.merged
            canvas = reduce(apply, changes, canvas)
    return canvas


def effect_of(found: Stored) -> records.Effect | None:
    """The patches since the base, if all of them change the same list of records."""
    entries = _entries(found)
    kinds = {(entry.k, entry.d) for entry in entries} or {("records", records.DEFAULT)}
    if len(kinds) > 1 or (only := kinds.pop())[0] != "records":
        return None
    return records.Effect([msgspec.json.decode(entry.p) for entry in entries], only[1])


def _entries(found: Stored) -> list[_Entry]:
    since = found.base.revision if found.base else 0
    entries = [entry for each in found.canvas_tail or () if (entry := msgspec.convert(each, _Entry)).r > since]
    return sorted(entries, key=lambda entry: entry.r)


def entry(
    revision: int, patch: bytes, declared: records.Declared = records.DEFAULT, *, kind: Kind = "records"
) -> dict[str, Any]:
    """An element of `canvasTail`."""
    made: dict[str, Any] = {"r": revision, "p": patch}
    if kind != "records":
        made["k"] = kind
    return made if declared == records.DEFAULT else made | {"d": msgspec.structs.asdict(declared)}


def is_applied_soon(tail: Any, again_us: float) -> bool:
    """Whether a positional patch, which takes so long to be applied, may be appended to the tail.

    The n-th is allowed the n-th part of `_AGAIN_US`, so that all together take a few times as long.
    """
    entries = tail or []
    runs = sum(kind == "records" for kind, _ in groupby(each.get("k", "records") for each in entries))
    return again_us * (len(entries) + 1) <= _AGAIN_US and runs <= _RUNS


def changed(stored: Any) -> dict[str, list[str]] | None:
    """The ids that an entry of the tail removes and puts; None if only the canvas has them."""
    found = msgspec.convert(stored, _Entry)
    if found.k != "records":
        return None
    change = msgspec.json.decode(found.p)
    return {"remove": change.get("remove", []), "put": [record[found.d.id] for record in change.get("put", [])]}


async def swap(transaction: Database, mine: dict[str, Any], *, old: Base | None, new: Fresh | None) -> None:
    """Store the parts of a new base and remove the old one's,
    in the transaction that has changed the project.

    After the project, so that a save that conflicts does so before megabytes are sent.
    """
    user_id, project_id = mine["userId"], mine["_id"]
    if old is not None:
        await remove(transaction, old.id.binary, old.parts, user_id, project_id)
    if new is not None:
        await store(transaction, new.id.binary, new.packed, user_id, project_id)


async def store(transaction: Database, key: bytes, data: bytes, user_id: Any, project_id: ObjectId) -> int:
    """Store bytes in parts; returns how many."""
    parts = [data[at : at + _PART] for at in range(0, len(data), _PART)]
    for name, part in zip(_names(key, len(parts)), parts, strict=True):
        await transaction[CANVAS_PARTS].insert(CanvasPart(id=name, user_id=user_id, project_id=project_id, data=part))
    return len(parts)


async def load(database: Database, key: bytes, parts: int, user_id: Any, project_id: ObjectId) -> bytes | None:
    """The bytes of so many parts, None if they are gone."""
    where = {"_id": {"$in": _names(key, parts)}, "userId": user_id, "projectId": project_id}
    found = await database[CANVAS_PARTS].find(where, sort=[("_id", 1)])
    return b"".join(part.data for part in found) if len(found) == parts else None


async def remove(transaction: Database, key: bytes, parts: int, user_id: Any, project_id: ObjectId) -> None:
    where = {"_id": {"$in": _names(key, parts)}, "userId": user_id, "projectId": project_id}
    await transaction[CANVAS_PARTS].delete_many(where)


def _names(key: bytes, parts: int) -> list[bytes]:
    return [key + number.to_bytes(2, "big") for number in range(parts)]
