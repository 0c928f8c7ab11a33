"""Makes one base of a large canvas's base and the patches since, when these have become many."""

import asyncio
from typing import Any

import msgspec
import structlog
from bson import ObjectId

from ximler.core.errors import Unavailable
from ximler.database import Database, outbox
from ximler.metering.limits.plans import limits_of
from ximler.projects import bases, storage
from ximler.schema.document import Document

__all__ = ["WORTH_IT", "Due", "compact", "request"]

WORTH_IT = 256_000  # bytes of patches since the base
_ATTEMPTS = 5
_SMALL = bases.LIMIT // 2  # bytes: a canvas that shrinks so far is the project's value again
_log = structlog.get_logger("ximler.projects")


class Due(Document, kw_only=True):
    project_id: ObjectId


@outbox.job("projects.compact_canvas", Due)
async def compact(payload: Due, *, database: Database) -> bool:
    """Idempotent, and safe to race with saves: patches since the read stay patches.
    False where there was nothing to do.

    A canvas that has become small returns to `canvasData`, if no patch is saved meanwhile.
    """
    for _ in range(_ATTEMPTS):
        found = await database.projects.find_one({"_id": payload.project_id}, into=bases.Stored)
        old = found.base if found else None  # None also where another application has stored the whole canvas
        if found is None or old is None or not found.canvas_tail or not isinstance(found.user_id, ObjectId):
            return False
        if await bases.fill(database, found) and await _stored_anew(database, found, old):
            _log.info("canvas compacted", project=str(found.id), patches=len(found.canvas_tail))
            return True
    raise Unavailable("The canvas is changed by too many others")


async def request(database: Database, project_id: ObjectId, base: bases.Base) -> bool:
    """Enqueue a compaction, once for a base. False while the database is unavailable:
    a later patch enqueues it."""
    try:
        await compact.enqueue(database, Due(project_id=project_id), dedupe_key=f"{compact.name}:{base.id}")
    except Unavailable as error:
        _log.warning("compaction not enqueued", project=str(project_id), reason=error.message)
        return False
    return True


async def _stored_anew(database: Database, found: bases.Stored, old: bases.Base) -> bool:
    """Replace the base that was read; False if the project has another one by now."""
    _, new = await asyncio.to_thread(storage.canvas_of, found.canvas_data, limit=_SMALL, any_keys=True)
    mine = {"_id": found.id, "userId": found.user_id}
    where = {**mine, "canvasBase.id": old.id, "canvasData": None}
    change: dict[str, Any]
    if new is None:
        where["canvasRevision"] = found.canvas_revision
        change = {"$set": {"canvasData": found.canvas_data}, "$unset": {"canvasBase": "", "canvasTail": ""}}
    else:
        at = found.canvas_revision or 0
        change = {"$set": {"canvasBase": new.at(at)}, "$pull": {"canvasTail": {"r": {"$lte": at}}}}
    # It adds nothing that the user has not saved, so the plan's limit does not matter.
    limits = msgspec.structs.replace(await limits_of(database, found.user_id), storage_bytes=-1)

    async def write(transaction: Database) -> bool:
        if not await transaction.projects.rewrite(where, change):
            return False
        await bases.swap(transaction, mine, old=old, new=new)
        await storage.settle(transaction, mine, limits)
        return True

    return await database.transaction(write)
