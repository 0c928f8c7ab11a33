"""Database roles for your own MongoDB: the application's role can only append to the audit log.

Denying updates and removals does not suffice, because a TTL index would expire entries. So the application's
role cannot create or change indexes of the audit log, and an administrator runs `ximler db init`.
"""

from typing import Any

from pymongo.errors import OperationFailure, PyMongoError

from ximler.core.errors import Forbidden
from ximler.database.connection import Database
from ximler.database.failures import translated
from ximler.schema import CATALOGUE
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.seal import SEALS

__all__ = ["APPLICATION", "MAINTENANCE", "create", "definitions"]

APPLICATION, MAINTENANCE = "ximlerApplication", "ximlerAuditMaintenance"
_APPENDED = (AUDIT_LOGS.name, SEALS.name)
_BUCKETS = ("fs", "avatars", "assets", "canvases", "exports")  # GridFS buckets, two collections each
_READ = ["find", "listIndexes", "collStats", "changeStream"]
_CHANGE = [*_READ, "insert", "update", "remove", "createCollection", "createIndex", "collMod"]
_EXISTS, _UNAUTHORIZED = 51002, 13


def definitions(name: str, *, others: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """The privileges of each role on the database `name`; `others` are collections outside the catalogue."""
    known = [collection.name for collection in CATALOGUE]
    files = [f"{bucket}.{part}" for bucket in _BUCKETS for part in ("files", "chunks")]
    ordinary = sorted({*known, *files, *others} - {*_APPENDED} - {n for n in others if n.startswith("system.")})

    def on(collection: str, actions: list[str]) -> dict[str, Any]:
        return {"resource": {"db": name, "collection": collection}, "actions": actions}

    return {
        APPLICATION: [
            on("", ["find", "changeStream", "listCollections"]),  # one change stream serves all caches
            *(on(collection, _CHANGE) for collection in ordinary),
            *(on(collection, [*_READ, "insert"]) for collection in _APPENDED),
        ],
        MAINTENANCE: [on(AUDIT_LOGS.name, ["find", "update", "remove"]), on(SEALS.name, ["find", "remove"])],
    }


async def create(database: Database) -> list[str]:
    """Create or update the roles; returns their names. Raises Forbidden without the right to manage roles."""
    try:
        there = tuple(await database.raw.list_collection_names())
        made = definitions(database.name, others=there)
        for role, privileges in made.items():
            try:
                await database.raw.command({"createRole": role, "privileges": privileges, "roles": []})
            except OperationFailure as error:
                if error.code != _EXISTS:
                    raise
                await database.raw.command({"updateRole": role, "privileges": privileges})
    except PyMongoError as error:
        if isinstance(error, OperationFailure) and error.code == _UNAUTHORIZED:
            raise Forbidden("This user may not manage roles: connect as a user with the role userAdmin") from error
        raise translated(error, database.name) from error
    return list(made)
