"""The bytes of a project: how they are measured, and how many of them the owner's storage gauge counts.

`storageSize` is the size of settings, canvas, log of patches and their clients, as BSON, and of the canvas's
versions and of the project's assets. The canvas is its value, or the base's value and the patches since
(`bases`). The gauge counts `storageSize` + `storageRoom`: room is reserved in steps, so that a patch of
records inside it is one command. Such a patch moves the most that it can add from `storageRoom` to
`storageSize`; `resize` measures the project again.

Invariant: the gauge equals the sum over the user's projects, and never exceeds the plan's limit.
"""

from typing import Any

import bson
from bson import ObjectId

from ximler.core.errors import Invalid, NotFound
from ximler.database import Database, mixed
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.metering.limits.plans import Limits, limits_of
from ximler.metering.quota import gauges
from ximler.projects import bases, packing
from ximler.projects.bases import Base, Fresh

__all__ = [
    "APART",
    "CONTENT",
    "MAX_CANVAS",
    "MAX_CONTENT",
    "STEP",
    "TAIL",
    "base_in",
    "canvas_of",
    "measured",
    "object_at",
    "resize",
    "settle",
    "size_of",
    "total_of",
]

MAX_CONTENT = 16_000_000  # of the 16,777,216 bytes that MongoDB stores in a document
MAX_CANVAS = packing.MOST - 1000
CONTENT = ("settings", "canvasData", "canvasLog", "canvasClients")
BESIDE = ("versionsSize", "assetsSize")  # parts of `storageSize` that are stored elsewhere
STEP = 65_536  # bytes that are reserved beyond what a change needs
_WRAPPER_BYTES = 8  # of the document {"v": …} around a value that is measured


def size_of(field: str, value: Any, *, any_keys: bool = False) -> int:
    """Size of a value in the database, in bytes. Raises Invalid if it cannot be stored."""
    return len(_encoded(field, value, any_keys=any_keys)) - _WRAPPER_BYTES


def canvas_of(
    value: Any, *, limit: int | None = None, any_keys: bool = False, text: bytes | None = None
) -> tuple[int, Fresh | None]:
    """Size of a canvas, and its base if it is larger than `limit` (`bases.LIMIT`). To be called in a thread.

    With `any_keys`, a canvas has a base also if it has keys that a document does not take (`mixed`), and so
    it has with the `text` that it was read from, which is kept in the base. Raises Invalid if it cannot be
    stored.
    """
    data = _encoded("canvasData", value, any_keys=any_keys)
    size = len(data) - _WRAPPER_BYTES
    if text is not None:
        data, size = packing.plain(value, text), size + len(text)
        limit = -1
    elif any_keys:
        try:
            mixed.check(value, "canvasData", depth=2)
        except Invalid:
            limit = -1
    if size > MAX_CANVAS:
        raise Invalid.field("canvasData", f"{size:,} bytes are more than the {MAX_CANVAS:,} that a canvas can have")
    if size <= (bases.LIMIT if limit is None else limit):
        return size, None
    return size, Fresh(ObjectId(), size, packing.pack(data), text is not None)


def _encoded(field: str, value: Any, *, any_keys: bool = False) -> bytes:
    mixed.check(value, field, depth=2, any_keys=any_keys)
    try:
        return bson.encode({"v": value})
    except DRIVER_ERRORS as error:
        raise translated(error, "projects") from error


def total_of(sizes: dict[str, int], *, apart: bool) -> int:
    """Bytes of a project's content. Raises Invalid naming the largest part where it cannot be stored.

    `apart`: the canvas has a base, so that it is not in the project's document.
    """
    if apart and sizes["canvasData"] > MAX_CANVAS:
        raise Invalid.field("canvasData", f"a canvas of more than {MAX_CANVAS:,} bytes cannot be stored")
    inside = {name: size for name, size in sizes.items() if name != "canvasData" or not apart}
    if (total := sum(inside.values())) > MAX_CONTENT:
        raise Invalid.field(
            max(inside, key=lambda name: inside[name]),
            f"{total:,} bytes of settings and canvas are more than the {MAX_CONTENT:,} that a project can hold",
        )
    return sum(sizes.values())


def object_at(name: str) -> dict[str, Any]:
    """An expression: whether the field has an object. Another application may have written anything."""
    return {"$eq": [{"$type": f"${name}"}, "object"]}


# An expression: whether the canvas has a base.
APART = {
    "$and": [
        {"$in": [{"$type": "$canvasData"}, ["missing", "null"]]},
        {"$eq": [{"$type": "$canvasBase.id"}, "objectId"]},
    ]
}
# The bytes of the patches since the base.
TAIL = {
    "$cond": [
        {"$isArray": ["$canvasTail"]},
        {"$subtract": [{"$bsonSize": {"v": {"$ifNull": ["$canvasTail", []]}}}, _WRAPPER_BYTES]},
        0,
    ]
}
_BASE = {"$convert": {"input": "$canvasBase.bytes", "to": "long", "onError": 0, "onNull": 0}}


async def measured(transaction: Database, mine: dict[str, Any]) -> dict[str, Any]:
    """Texts, revision (if it has one) and sizes of a project as it is,
    without moving its canvas over the network.

    `charged` is what the gauge counts for it. Raises NotFound.
    """
    sizes = {
        # The same measure as `size_of`, taken by the server.
        name: {"$subtract": [{"$bsonSize": {"v": {"$ifNull": [f"${name}", {}]}}}, _WRAPPER_BYTES]}
        for name in CONTENT[:2]
    }
    sizes["canvasData"] = {"$cond": [APART, {"$add": [_BASE, TAIL]}, sizes["canvasData"]]}
    found = await transaction.projects.aggregate(
        [
            {"$match": {**mine, "deletedAt": None}},
            {
                "$project": {
                    "name": 1,
                    "description": 1,
                    "charged": gauges.CHARGED_BYTES,
                    "canvasRevision": 1,
                    "besideSize": {"$add": [{"$ifNull": [f"${name}", 0]} for name in BESIDE]},
                    "canvasBase": 1,
                    "apart": APART,
                    "room": {"$ifNull": ["$storageRoom", 0]},
                    **{name: {"$cond": [object_at(name), {"$bsonSize": f"${name}"}, 0]} for name in CONTENT[2:]},
                    **sizes,
                }
            },
        ]
    )
    if not found:
        raise NotFound("No such project")
    return found[0]


async def resize(database: Database, user_id: ObjectId, project_id: ObjectId, *, room: int, step: int = 0) -> int:
    """Measure a project, and keep `room` bytes more for it,
    or `step` more than these where the plan has them.

    Returns the room. Raises NotFound, Invalid, QuotaExceeded. Five commands.
    """
    mine = {"_id": project_id, "userId": user_id}
    limits = await limits_of(database, user_id)

    async def write(transaction: Database, wanted: int) -> int:
        return await settle(transaction, mine, limits, room=room, wanted=wanted)

    try:
        return await database.transaction(lambda transaction: write(transaction, room + step))
    except gauges.QuotaExceeded:
        if not step:
            raise
    return await database.transaction(lambda transaction: write(transaction, room))


async def settle(
    transaction: Database, mine: dict[str, Any], limits: Limits, *, room: int = 0, wanted: int | None = None
) -> int:
    """Measure a project, count its bytes, and reserve `wanted` more for it,
    at least `room`; None: as many as it has.

    A base that another application has replaced by `canvasData` is removed. Raises as `resize`.
    """
    now = await measured(transaction, mine)
    sizes = {name: now[name] for name in CONTENT}
    size = total_of(sizes | {"patch": room}, apart=now["apart"]) - room
    most = MAX_CANVAS - now["canvasData"] if now["apart"] else MAX_CONTENT - size
    wanted = min(now["room"] if wanted is None else wanted, most)
    size += now["besideSize"]
    if grown := size + wanted - now["charged"]:
        await gauges.reserve(transaction, mine["userId"], limits, storage_bytes=grown)
    operators: dict[str, Any] = {"$set": {"storageSize": size, "storageRoom": wanted or None}}
    if not now["apart"] and "canvasBase" in now:
        operators["$unset"] = {"canvasBase": "", "canvasTail": ""}
        await bases.swap(transaction, mine, old=base_in(now), new=None)
    await transaction.projects.patch(mine, operators)
    return wanted


def base_in(now: dict[str, Any]) -> Base | None:
    """The base that a measured project names, in use or not."""
    return bases.base_of(now.get("canvasBase"))
