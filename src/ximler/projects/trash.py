"""The trash: deleted projects until they are purged, which removes them permanently.

A deleted project does not count as a project, but its bytes count as storage. It is purged by its owner, 30
days after its deletion, or when `MOST` other projects were deleted since.

Invariant: a transaction that removes projects also releases their bytes, so the storage gauge equals the
stored bytes.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import structlog
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import SYSTEM, Actor
from ximler.core.clock import EPOCH
from ximler.core.errors import NotFound, Unavailable
from ximler.database import Database, outbox
from ximler.database.in_step import in_step
from ximler.metering.quota import gauges
from ximler.projects import assets_storage
from ximler.schema.canvas_part import CANVAS_PARTS
from ximler.schema.canvas_version import CANVAS_CONTENTS, CANVAS_VERSIONS
from ximler.schema.project_share import PROJECT_LINKS, PROJECT_SHARES
from ximler.schema.project_thumbnail import PROJECT_THUMBNAILS

__all__ = ["IN_TRASH", "KEPT", "empty", "purge", "purge_expired", "trim"]

KEPT = timedelta(days=30)
MOST = 1000  # per user; a project's size beyond its content is not metered
IN_TRASH: dict[str, Any] = {"deletedAt": {"$gt": EPOCH}}
_BATCH = 50  # the entries of the audit log are sent as one command, which holds the event loop for a millisecond
_TOGETHER = 5  # owners whose projects are purged in one transaction
_log = structlog.get_logger("ximler.projects")


async def purge(database: Database, actor: Actor, project_id: ObjectId) -> None:
    """Remove one of the actor's deleted projects for good. Raises NotFound, also for a project that is not
    deleted.
    """
    if not await _purge(database, actor, actor.require_user(), {"_id": project_id, **IN_TRASH}):
        raise NotFound("No such deleted project")


async def empty(database: Database, actor: Actor) -> int:
    """Remove the projects that the actor has deleted by now for good, in batches; returns how many. Safe to
    repeat.
    """
    user_id = actor.require_user()
    by_now = {"deletedAt": {"$gt": EPOCH, "$lte": database.clock.now()}}
    total = 0
    while count := await _purge(database, actor, user_id, by_now):
        total += count
    return total


@outbox.daily("projects.purge", hour=4)
async def purge_expired(*, database: Database) -> int:
    """Purge projects that were deleted more than 30 days ago; returns how many.

    A batch of several users is one transaction: safe to race, and to be killed at any moment. A user whose
    projects cannot be purged is logged, and tried again on the next day.
    """
    expired = {"deletedAt": {"$gt": EPOCH, "$lte": database.clock.now() - KEPT}}
    left: list[Any] = []  # owners whose projects cannot be purged
    oldest: list[dict[str, Any]] = [
        {"$match": {**expired, "userId": {"$nin": left}}},
        {"$sort": {"deletedAt": 1}},
        {"$limit": _BATCH},
        {"$group": {"_id": "$userId"}},
    ]
    total = 0
    # The owner as it is stored: another application may have written anything.
    while found := await database.projects.aggregate(oldest):
        owners = [each["_id"] for each in found]
        for start in range(0, len(owners), _TOGETHER):
            some = owners[start : start + _TOGETHER]
            counts = await _purge_each(database, some, expired)
            total += sum(counts)
            left += [owner for owner, count in zip(some, counts, strict=True) if not count]
    if total:
        _log.info("trash purged", projects=total)
    return total


async def trim(transaction: Database, actor: Actor, user_id: ObjectId) -> int:
    """Remove the projects that were deleted before the latest `MOST`; returns their bytes, for the caller to
    release.

    One command where there are none.
    """
    found = await transaction.projects.aggregate(
        [
            {"$match": {"userId": user_id, **IN_TRASH}},
            {"$sort": {"deletedAt": -1, "_id": -1}},
            {"$skip": MOST},
            {"$limit": _BATCH},
            {"$project": {"_id": 1}},
        ]
    )
    if not found:
        return 0
    surplus = await _measured(transaction, user_id, {"_id": {"$in": [each["_id"] for each in found]}})
    return await _remove(transaction, actor, user_id, surplus)


async def _purge_each(database: Database, owners: list[Any], where: dict[str, Any]) -> list[int]:
    """Remove up to fifty matching projects of these users; returns how many of each: 0 is logged."""
    if len(owners) > 1:
        most = _BATCH // len(owners)
        try:
            return await in_step(database, [_purging(SYSTEM, owner, where, most=most) for owner in owners])
        except Unavailable:
            raise
        except Exception as problem:  # one owner's failure must not delay the others
            _log.info("trash purged one by one", users=len(owners), reason=str(problem))
    counts = []
    for owner in owners:
        try:
            counts.append(await _purge(database, SYSTEM, owner, where))
        except Unavailable:
            raise
        except Exception as problem:
            _log.error("trash not purged", user=str(owner), reason=str(problem))
            counts.append(0)
    return counts


async def _purge(database: Database, actor: Actor, user_id: Any, where: dict[str, Any]) -> int:
    """Remove up to fifty matching projects of a user and release their bytes; returns how many."""
    return await database.transaction(_purging(actor, user_id, where))


def _purging(
    actor: Actor, user_id: Any, where: dict[str, Any], *, most: int = _BATCH
) -> Callable[[Database], Awaitable[int]]:
    async def write(transaction: Database) -> int:
        found = await _measured(transaction, user_id, where, most=most)
        if found:
            storage_bytes = await _remove(transaction, actor, user_id, found)
            if isinstance(user_id, ObjectId):
                await gauges.release(transaction, user_id, storage_bytes=storage_bytes)
        return len(found)

    return write


async def _measured(
    transaction: Database, user_id: Any, where: dict[str, Any], *, most: int = _BATCH
) -> list[dict[str, Any]]:
    return await transaction.projects.aggregate(
        [
            {"$match": {"userId": user_id, **where}},
            {"$limit": most},
            {"$project": {"name": 1, "bytes": gauges.CHARGED_BYTES}},
        ]
    )


async def _remove(transaction: Database, actor: Actor, user_id: Any, found: list[dict[str, Any]]) -> int:
    """Remove projects that this transaction has read; returns the bytes to release. One that is restored
    meanwhile is a write conflict: the transaction runs again, without it.
    """
    ids = [each["_id"] for each in found]
    await transaction.projects.delete_many({"_id": {"$in": ids}, "userId": user_id})
    theirs = {"userId": user_id, "projectId": {"$in": ids}}  # their bytes are in `storageSize`
    await transaction[CANVAS_VERSIONS].delete_many(theirs)
    await transaction[CANVAS_CONTENTS].delete_many(theirs)
    await transaction[CANVAS_PARTS].delete_many(theirs)
    await transaction[PROJECT_SHARES].delete_many(theirs)
    await transaction[PROJECT_LINKS].delete_many(theirs)
    await transaction[PROJECT_THUMBNAILS].delete_many({"_id": {"$in": ids}, "userId": user_id})
    stays = await assets_storage.purge(transaction, user_id, ids)
    await records.write_each(
        transaction,
        actor,
        Action.PROJECT_PURGED,
        resource="projects",
        removed={each["_id"]: {"name": name} if isinstance(name := each.get("name"), str) else {} for each in found},
        user_id=user_id if isinstance(user_id, ObjectId) else None,
    )
    total: int = sum(each["bytes"] for each in found)
    return total - stays
