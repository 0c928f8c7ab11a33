"""The bytes of assets: files in GridFS, their documents, and the storage that they count.

Every file has a document, `assetfiles`, from before its first chunk until after its last one. GridFS cannot
take part in a transaction, but the document can: a file's state, its references and the storage that it
counts change together. The sweep finds the remains of a killed process by these documents, and removes them.

Invariant: a project's `assetsSize`, a part of its `storageSize`, is the sum of `chargedBytes` of the files
with its id. A file counts once, however many assets refer to it, for a project that has one of them.
"""

from datetime import timedelta
from typing import Any

import structlog
from bson import ObjectId

from ximler.core.errors import NotFound, Unavailable, XimlerError
from ximler.database import Database, chunks, outbox
from ximler.metering.limits.plans import limits_of
from ximler.metering.quota import gauges
from ximler.schema.asset import ASSET_FILES, ASSET_PREVIEWS, ASSETS, Asset, AssetFile
from ximler.schema.document import Identified

__all__ = ["BUCKET", "charge", "collect", "dereference", "discard", "erase", "purge", "refer", "sweep"]

BUCKET = "assets"
# Chunks are removed once more after this time: a process that lost its lease may have sent writes before.
_RECHECK = timedelta(minutes=10)
_BATCH = 100
_log = structlog.get_logger("ximler.projects")


async def charge(transaction: Database, user_id: ObjectId, project_id: ObjectId, grown: int) -> None:
    """Count bytes for a project and in its owner's gauge; a negative number releases them.

    Raises QuotaExceeded, and NotFound for a project that is deleted. A release succeeds for deleted projects,
    and does nothing for a purged one, because the purge has released all of its bytes.
    """
    mine = {"_id": project_id, "userId": user_id}
    change = {"$inc": {"assetsSize": grown, "storageSize": grown}}
    if grown < 0:
        if await transaction.projects.patch(mine, change, deleted=True):
            await gauges.release(transaction, user_id, storage_bytes=-grown)
        return
    limits = await limits_of(transaction.outside, user_id)
    # First, because a new gauge counts existing projects.
    await gauges.reserve(transaction, user_id, limits, storage_bytes=grown)
    if not await transaction.projects.patch(mine, change):
        raise NotFound("No such project")


async def discard(transaction: Database, file: AssetFile) -> None:
    """Turn a file that this transaction has read into garbage, and release its bytes.
    `collect` removes it later."""
    expired = file.until is not None and file.until <= transaction.clock.now()
    later = _RECHECK if file.holder and (file.resumable or expired) else timedelta(0)  # its holder may still write
    await transaction[ASSET_FILES].patch({"_id": file.id, "userId": file.user_id}, _garbage(transaction, later))
    if file.charged_bytes:
        await charge(transaction, file.user_id, file.project_id, -file.charged_bytes)


async def dereference(transaction: Database, user_id: ObjectId, file_id: ObjectId) -> bool:
    """Keep a file that lost a reference where others are left; returns whether it is garbage now.

    Every change of references changes the file's document,
    so that of two at once one conflicts and runs again.
    """
    theirs = {"_id": file_id, "userId": user_id}
    file = await transaction[ASSET_FILES].find_and_patch(theirs, {"$inc": {"generation": 1}})
    if file is None or file.state != "STORED":
        return False
    left = {"userId": user_id, "fileId": file_id}
    other = await transaction[ASSETS].find_one({**left, "projectId": file.project_id})
    if other is not None:
        return False
    other = await transaction[ASSETS].find_one(left)
    if other is None:
        await discard(transaction, file)
        return True
    await _move(transaction, file, other.project_id)
    await transaction.projects.patch(
        {"_id": file.project_id, "userId": user_id},
        {"$inc": {"assetsSize": -file.charged_bytes, "storageSize": -file.charged_bytes}},
        deleted=True,
    )
    return False


async def refer(transaction: Database, user_id: ObjectId, copies: list[Asset]) -> None:
    """Insert assets that refer to files of other assets, which this transaction has read."""
    where = {"userId": user_id, "_id": {"$in": list({each.file_id for each in copies})}}
    await transaction[ASSET_FILES].patch_many(where, {"$inc": {"generation": 1}})
    await transaction[ASSETS].insert_many(copies)


async def purge(transaction: Database, user_id: Any, project_ids: list[ObjectId]) -> int:
    """Remove the assets of projects that this transaction removes,
    whose owner is released all of their bytes.

    Returns how many of these bytes stay, because assets of other projects refer to the same files. Uploads
    into these projects end. Four commands, and three for each such file.
    """
    theirs = {"userId": user_id, "projectId": {"$in": project_ids}}
    used: list[dict[str, Any]] = [{"$match": theirs}, {"$group": {"_id": "$fileId"}}]
    file_ids = [each["_id"] for each in await transaction[ASSETS].aggregate(used)]
    stays = 0
    if file_ids:
        await transaction[ASSETS].delete_many(theirs)
        left = {"userId": user_id, "fileId": {"$in": file_ids}}
        others = await transaction[ASSETS].aggregate(
            [{"$match": left}, {"$group": {"_id": "$fileId", "projectId": {"$first": "$projectId"}}}]
        )
        for other in others:
            where = {"_id": other["_id"], "userId": user_id}
            file = await transaction[ASSET_FILES].find_and_patch(where, {"$inc": {"generation": 1}})
            if file is not None and file.project_id in project_ids:
                stays += await _move(transaction, file, other["projectId"])
    await transaction[ASSET_FILES].patch_many({**theirs, "state": {"$ne": "GARBAGE"}}, _garbage(transaction, _RECHECK))
    return stays


async def collect(database: Database, file_id: ObjectId) -> None:
    """Remove the content of garbage, and its document once its time has come.
    Safe to be killed and repeated."""
    garbage = {"_id": file_id, "state": "GARBAGE"}
    file = await database[ASSET_FILES].find_one(garbage)
    if file is None:
        return
    await chunks.remove(database, BUCKET, [file_id])
    await database[ASSET_PREVIEWS].delete_many({"userId": file.user_id, "fileId": file_id})
    await database[ASSET_FILES].delete({**garbage, "until": {"$lte": database.clock.now()}})


async def erase(database: Database, user_id: ObjectId) -> None:
    """End the uploads of a user and remove the content of all files. Safe to be killed and repeated.

    The documents of the files stay for the sweep, because an upload may be ending just now.
    """
    theirs: dict[str, Any] = {"userId": user_id}
    await database[ASSET_FILES].patch_many({**theirs, "state": {"$ne": "GARBAGE"}}, _garbage(database, _RECHECK))
    while found := await database[ASSET_FILES].find(theirs, into=Identified, sort=[("_id", 1)], limit=_BATCH):
        await chunks.remove(database, BUCKET, [file.id for file in found])
        theirs["_id"] = {"$gt": found[-1].id}


@outbox.every("projects.sweep_assets", timedelta(minutes=5))
async def sweep(*, database: Database) -> int:
    """Remove uploads whose lease has expired, and garbage; returns how many files were removed.

    A slow upload renews its lease, so it is never taken for an abandoned one.
    """
    total = 0
    stuck: list[ObjectId] = []  # the others must not wait for them
    for state in ("UPLOADING", "GARBAGE"):
        while True:
            due = {"state": state, "until": {"$lte": database.clock.now()}, "_id": {"$nin": stuck}}
            found = await database[ASSET_FILES].find(due, sort=[("until", 1)], limit=_BATCH)
            for file in found:
                try:
                    if state == "UPLOADING":
                        await _expire(database, file.id)
                    await collect(database, file.id)
                except Unavailable:
                    raise
                except XimlerError as problem:
                    stuck.append(file.id)
                    _log.error("asset not swept", file=str(file.id), reason=problem.message)
            total += len(found)
            if len(found) < _BATCH:
                break
    if total:
        _log.info("assets swept", files=total)
    return total


async def _expire(database: Database, file_id: ObjectId) -> None:
    async def write(transaction: Database) -> None:
        due = {"_id": file_id, "state": "UPLOADING", "until": {"$lte": database.clock.now()}}
        file = await transaction[ASSET_FILES].find_one(due)
        if file is not None:
            await discard(transaction, file)

    await database.transaction(write)


def _garbage(transaction: Database, later: timedelta) -> dict[str, Any]:
    values = {"state": "GARBAGE", "chargedBytes": 0, "until": transaction.clock.now() + later}
    return {"$set": values, "$unset": dict.fromkeys(("digest", "name", "holder", "heldUntil", "wanted"), "")}


async def _move(transaction: Database, file: AssetFile, project_id: ObjectId) -> int:
    """Count a file for another project, deleted or not; returns its bytes."""
    theirs = {"_id": file.id, "userId": file.user_id}
    await transaction[ASSET_FILES].patch(theirs, {"$set": {"projectId": project_id}})
    await transaction.projects.patch(
        {"_id": project_id, "userId": file.user_id},
        {"$inc": {"assetsSize": file.charged_bytes, "storageSize": file.charged_bytes}},
        deleted=True,
    )
    return file.charged_bytes
