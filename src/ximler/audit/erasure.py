"""Erasure of a person from the log, so that the rest can still be verified.

Personal values are removed with their salt: an irreversible digest remains, and the entry's hash stays valid.
The erasure is an entry of its own; verification requires it, sealed, for every entry without its person.

The application's own database user may lack permission to change entries: `XIMLER_AUDIT_MONGODB_URI` then
names one with the maintenance role (see docs/audit.md).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import OperationFailure, PyMongoError

from ximler.audit import fingerprint, records
from ximler.audit.actions import Action
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.database.failures import translated
from ximler.schema.audit_log import AUDIT_LOGS

__all__ = ["NotAllowed", "erase", "maintenance"]

_AT_ONCE = 500
_UNAUTHORIZED = 13


class NotAllowed(Forbidden):
    """The database user may append to the log, but not change it."""

    code = "AUDIT_LOG_APPEND_ONLY"


async def erase(database: Database, user_id: ObjectId, *, actor: Actor = SYSTEM) -> int:
    """Remove the person from entries about them and from entries of their own actions. Returns the number of
    entries.

    Other values stay, including the user's id, and address and browser of other people who acted on the user.
    Idempotent; repeat it after an interruption. Raises NotAllowed, DatabaseUnavailable.
    """
    count = 0
    async with maintenance(database) as allowed:
        try:
            logs = allowed.raw[AUDIT_LOGS.name]
            await logs.update_one({"_id": {"$in": []}}, {"$unset": {"_": ""}})  # checks the permission
            # Recorded before the first entry loses its person, so that an interruption leaves none
            # unexplained.
            await records.write(
                database, actor, Action.PERSON_ERASED, resource="users", resource_id=user_id, user_id=user_id
            )
            for where, whose in (({"userId": user_id}, "person"), ({"metadata.actorId": user_id}, "actor")):
                count += await _erase(allowed, where, whose)
        except OperationFailure as error:
            raise refused(error) from error
        except PyMongoError as error:
            raise translated(error, AUDIT_LOGS.name) from error
    return count


@asynccontextmanager
async def maintenance(database: Database) -> AsyncIterator[Database]:
    """The database over a connection that may change the log: `audit_mongodb_uri`, or the same one."""
    if database.audit_uri is None:
        yield database
        return
    allowed = await connect(database.audit_uri, settings=Settings(mongodb_uri=database.audit_uri), name=database.name)
    try:
        yield allowed
    finally:
        await allowed.close()


def refused(error: OperationFailure) -> BaseException:
    """Translate the server's refusal to change or remove entries."""
    if error.code == _UNAUTHORIZED:
        return NotAllowed(
            "This database user may only append to the audit log: set XIMLER_AUDIT_MONGODB_URI to one with the role "
            "ximlerAuditMaintenance ('ximler db roles' shows how to make it)"
        )
    return translated(error, AUDIT_LOGS.name)


async def _erase(database: Database, where: dict[str, Any], whose: str) -> int:
    logs = database.raw[AUDIT_LOGS.name].with_options(codec_options=fingerprint.OPTIONS)
    mark = f"metadata._audit.{whose}"
    salt = f"{mark}.salt"
    count = 0
    changes: list[UpdateOne] = []
    async for raw in logs.find({**where, salt: {"$exists": True}}, {f"{mark}.paths": 1}):
        paths = raw["metadata"]["_audit"][whose]["paths"]
        # One command per entry, so that value and salt are removed together.
        changes.append(UpdateOne({"_id": raw["_id"]}, {"$unset": dict.fromkeys([*paths, salt], "")}))
        if len(changes) == _AT_ONCE:
            count += (await logs.bulk_write(changes, ordered=False)).modified_count
            changes = []
    if changes:
        count += (await logs.bulk_write(changes, ordered=False)).modified_count
    return count
