"""The bytes of a project: how they are measured, and how many of them the owner's storage gauge counts.

`storageSize` is the size of settings, canvas, log of patches and their clients, as BSON, and of the canvas's versions
and of the project's assets.
The gauge counts `storageSize` + `storageRoom`: room is reserved in steps, so that a patch of records inside it is one command.
Such a patch moves the most that it can add from `storageRoom` to `storageSize`; `resize` measures the project again.

Invariant: the gauge equals the sum over the user's projects, and never exceeds the plan's limit.
"""

from typing import Any

import bson
from bson import ObjectId

from ximler.core.errors import Invalid, NotFound
from ximler.database import Database, mixed
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.metering.limits.plans import limits_of
from ximler.metering.quota import gauges

__all__ = ["CONTENT", "MAX_CONTENT", "STEP", "measured", "object_at", "resize", "size_of", "total_of"]

MAX_CONTENT = 16_000_000  # of the 16,777,216 bytes that MongoDB stores in a document
CONTENT = ("settings", "canvasData", "canvasLog", "canvasClients")
BESIDE = ("versionsSize", "assetsSize")  # parts of `storageSize` that are stored elsewhere
STEP = 65_536  # bytes that are reserved beyond what a change needs
_WRAPPER_BYTES = 8  # of the document {"v": …} around a value that is measured


def size_of(field: str, value: Any) -> int:
    """Size of a value in the database, in bytes. Raises Invalid if it cannot be stored."""
    mixed.check(value, field, depth=2)
    try:
        return len(bson.encode({"v": value})) - _WRAPPER_BYTES
    except DRIVER_ERRORS as error:
        raise translated(error, "projects") from error


def total_of(sizes: dict[str, int]) -> int:
    """Bytes of a project's content. Raises Invalid naming the largest part where MongoDB could not store it."""
    total = sum(sizes.values())
    if total > MAX_CONTENT:
        raise Invalid.field(
            max(sizes, key=lambda name: sizes[name]),
            f"{total:,} bytes of settings and canvas are more than the {MAX_CONTENT:,} that a project can hold",
        )
    return total


def object_at(name: str) -> dict[str, Any]:
    """An expression: whether the field has an object. Another application may have written anything."""
    return {"$eq": [{"$type": f"${name}"}, "object"]}


async def measured(transaction: Database, mine: dict[str, Any]) -> dict[str, Any]:
    """Texts, revision (if it has one) and sizes of a project as it is, without moving its canvas over the network.

    `charged` is what the gauge counts for it. Raises NotFound.
    """
    sizes = {
        # The same measure as `size_of`, taken by the server.
        name: {"$subtract": [{"$bsonSize": {"v": {"$ifNull": [f"${name}", {}]}}}, _WRAPPER_BYTES]}
        for name in CONTENT[:2]
    }
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
    """Measure a project, and keep `room` bytes more for it, or `step` more than these where the plan has them.

    Returns the room. Raises NotFound, Invalid, QuotaExceeded. Five commands.
    """
    mine = {"_id": project_id, "userId": user_id}
    limits = await limits_of(database, user_id)

    async def write(transaction: Database, wanted: int) -> int:
        now = await measured(transaction, mine)
        size = total_of({name: now[name] for name in CONTENT} | {"patch": room})
        size -= room
        wanted = min(wanted, MAX_CONTENT - size)
        size += now["besideSize"]
        if grown := size + wanted - now["charged"]:
            await gauges.reserve(transaction, user_id, limits, storage_bytes=grown)
        await transaction.projects.patch(mine, {"$set": {"storageSize": size, "storageRoom": wanted or None}})
        return wanted

    try:
        return await database.transaction(lambda transaction: write(transaction, room + step))
    except gauges.QuotaExceeded:
        if not step:
            raise
    return await database.transaction(lambda transaction: write(transaction, room))
