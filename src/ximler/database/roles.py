"""Roles for a MongoDB that is one's own: the application's may append to the audit log and change nothing in it.

Not to update and remove is not all it takes: who may make an index, or change one, may have MongoDB expire what is in it. So
`ximler db init` is for an administrator, and the application starts on what that has made.
"""

from typing import Any

from pymongo.errors import OperationFailure, PyMongoError

from ximler.core.errors import Forbidden
from ximler.database.connection import Database
from ximler.database.failures import translated
from ximler.schema import CATALOGUE
from ximler.schema.audit_log import AUDIT_LOGS

__all__ = ["APPLICATION", "MAINTENANCE", "create", "definitions"]

APPLICATION, MAINTENANCE = "ximlerApplication", "ximlerAuditMaintenance"
SEALS_NAME = next(c.name for c in CATALOGUE if c.owner == "audit" and c.name.endswith("seals"))
_APPENDED = (AUDIT_LOGS.name, SEALS_NAME)
_BUCKETS = ("fs", "avatars", "assets", "canvases", "exports")  # GridFS: two collections each
_READ = ["find", "listIndexes", "collStats", "changeStream"]
_CHANGE = [*_READ, "insert", "update", "remove", "createCollection", "createIndex", "collMod"]
_EXISTS, _UNAUTHORIZED = 51002, 13


def definitions(name: str, *, others: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """The privileges of each role on the database `name`; `others` are collections beside the known ones."""
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
        MAINTENANCE: [on(AUDIT_LOGS.name, ["find", "update", "remove"]), on(SEALS_NAME, ["find", "remove"])],
    }


async def create(database: Database) -> list[str]:
    """Make the roles, or bring them up to date; returns their names. Raises Forbidden where it takes an administrator."""
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
            raise Forbidden("It takes a database user that may make roles (userAdmin): connect as one") from error
        raise translated(error, database.name) from error
    return list(made)
