"""The database held against the map: what is missing, extra or changed, and the making of what is missing.

`initialise` is idempotent and safe to run from several processes at once. It creates; it never drops or rebuilds an index, and
on a database that another application made it never tightens a validator, unless asked (`repair=True`).
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec
import structlog
from bson import ObjectId
from pymongo import IndexModel
from pymongo.errors import OperationFailure, PyMongoError

from ximler.core.errors import Conflict
from ximler.database import seeds
from ximler.database.connection import Database
from ximler.database.failures import DocumentExists, translated
from ximler.database.validators import validator
from ximler.schema import CATALOGUE, SPECIFIED
from ximler.schema.document import Collection, Index
from ximler.schema.meta import META, SCHEMA_VERSION, Meta

__all__ = [
    "Difference",
    "SchemaNotReady",
    "SchemaTooNew",
    "adopt",
    "check_version",
    "initialise",
    "require_ready",
    "require_safe",
    "status",
]

_log = structlog.get_logger("ximler.database")
_STAMP = "schema"
_MISSING, _EXISTS = 26, 48
# There is one like it under another name or with other options; there are two text indexes; the documents are not unique.
# Reported by `status`, and left to the operator.
_OBSTACLES = frozenset({67, 85, 86, 11000})
_OPTIONS = ("unique", "expireAfterSeconds", "partialFilterExpression", "sparse", "hidden", "collation")
_PLURAL = "usages"  # what Mongoose makes of a model named Usage
_ADOPTING = "usages_adopting_"


class SchemaTooNew(Conflict):
    code = "SCHEMA_TOO_NEW"


class SchemaNotReady(Conflict):
    code = "SCHEMA_NOT_READY"


class Difference(msgspec.Struct, frozen=True):
    """One way in which the database is not what the map says."""

    collection: str
    what: Literal["collection", "index", "validator", "documents"]
    name: str
    state: Literal["missing", "extra", "changed"]
    remedy: str


async def check_version(database: Database) -> bool:
    """Whether the database is ready for this Ximler as it stands. Raises SchemaTooNew for one written by a newer."""
    stamp = await database[META].find_one({"_id": _STAMP})
    if stamp is None:
        return False
    if stamp.version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"The database {database.name!r} has schema version {stamp.version}; this Ximler knows {SCHEMA_VERSION}. "
            "Upgrade Ximler (pip install -U ximler)."
        )
    return stamp.version == SCHEMA_VERSION and stamp.fingerprint == _fingerprint()


async def initialise(
    database: Database, *, repair: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[Difference]:
    """Make collections, validators, indexes, seeds and the version stamp; returns what still differs.

    `repair` also rebuilds changed indexes and replaces changed validators. Extra indexes are never touched.
    """
    await check_version(database)
    try:
        existing = {found["name"]: found async for found in await database.raw.list_collections()}
        await _make_collection(database, META, existing.get(META.name), ours=True, repair=repair)
        stamp = await _claim(database, ours=not existing.keys() & {c.name for c in SPECIFIED})
        ours = stamp.created_here

        async def make(collection: Collection[Any]) -> None:
            await _make_collection(database, collection, existing.get(collection.name), ours=ours, repair=repair)
            await _make_indexes(database, collection, repair=repair)
            progress(collection.name)

        await asyncio.gather(*(make(collection) for collection in CATALOGUE))
    except PyMongoError as error:
        raise translated(error, database.name) from error
    if stamp.fingerprint is None and ours:
        await seeds.plant(database)  # another application's plans and coupons are not ours to add to
    differences = await status(database)
    if not _unsafe(differences):
        done = {"version": SCHEMA_VERSION, "fingerprint": _fingerprint()}
        await database[META].patch({"_id": _STAMP, "version": {"$lte": SCHEMA_VERSION}}, {"$set": done})
    return differences


async def require_ready(database: Database) -> None:
    """Raises SchemaNotReady before anything is written to a database whose uniqueness nobody has seen to."""
    if not await check_version(database):
        raise SchemaNotReady(f"The database {database.name!r} is not up to date: run 'ximler db init' first.")


def require_safe(differences: list[Difference]) -> None:
    """Log every difference; raises SchemaNotReady where a unique index is not as it must be: two accounts could share an
    address."""
    for found in differences:
        _log.warning("database differs", **msgspec.structs.asdict(found))
    if unsafe := _unsafe(differences):
        names = ", ".join(f"{found.collection}.{found.name}" for found in unsafe)
        raise SchemaNotReady(
            f"Nothing makes {names} unique: remove duplicates, if there are any, then run 'ximler db init --repair'."
        )


def _unsafe(differences: Iterable[Difference]) -> list[Difference]:
    """Unique indexes that are not there, or not unique."""
    unique = {(c.name, i.name) for c in CATALOGUE for i in c.indexes if i.unique}
    return [d for d in differences if d.what == "index" and d.state != "extra" and (d.collection, d.name) in unique]


async def _claim(database: Database, *, ours: bool) -> Meta:
    """The stamp; made first, before any collection, so that of several processes that start at once all know whether the
    database was empty. Without a fingerprint it has never been finished."""
    if stamp := await database[META].find_one({"_id": _STAMP}):
        return stamp
    try:
        return await database[META].insert(Meta(id=_STAMP, version=SCHEMA_VERSION, created_here=ours))
    except DocumentExists:
        return await database[META].get(_STAMP)


async def status(database: Database) -> list[Difference]:
    """Every difference between the database and the map, in the map's order. Reads only."""
    try:
        existing = {found["name"]: found async for found in await database.raw.list_collections()}
        compared = await asyncio.gather(
            *(_compare(database, collection, existing.get(collection.name)) for collection in CATALOGUE)
        )
        differences = [difference for found in compared for difference in found]
        for name in sorted(existing):
            if (name == _PLURAL or name.startswith(_ADOPTING)) and await database.raw[name].find_one({}, {"_id": 1}):
                remedy = "a Mongoose model without a collection name wrote here: ximler db adopt"
                differences.append(Difference(name, "documents", name, "extra", remedy))
    except PyMongoError as error:
        raise translated(error, database.name) from error
    return differences


async def adopt(database: Database) -> int:
    """Move the documents of `usages` (where Mongoose puts a model named Usage) to `usage`; returns how many.

    The source is first renamed to what nobody writes to, so that what another application writes meanwhile starts a new
    `usages` instead of being lost. Safe to run from several processes at once; a run that was interrupted is reported by
    `status` and finished by the next.
    """
    try:
        try:
            await database.raw[_PLURAL].rename(f"{_ADOPTING}{ObjectId()}")
        except OperationFailure as error:
            if error.code != _MISSING:
                raise
        names = await database.raw.list_collection_names()
        return sum([await _bring_home(database, name) for name in names if name.startswith(_ADOPTING)])
    except PyMongoError as error:
        raise translated(error, database.name) from error


async def _bring_home(database: Database, name: str) -> int:
    source = database.raw[name]
    merge = {"$merge": {"into": "usage", "on": "_id", "whenMatched": "keepExisting"}}
    try:
        count = await source.count_documents({})
        await (await source.aggregate([merge], bypassDocumentValidation=True)).to_list()
    except OperationFailure:
        if name in await database.raw.list_collection_names():
            raise
        return 0  # another process has finished it meanwhile
    await source.drop()
    return count


async def _make_collection(
    database: Database, collection: Collection[Any], found: Mapping[str, Any] | None, *, ours: bool, repair: bool
) -> None:
    """Create it, or give it the validator it should have. Other applications' documents are only warned about."""
    wanted = validator(collection)
    action = "error" if ours or collection.private else "warn"
    if found is None:
        try:
            await database.raw.create_collection(
                collection.name,
                validator=wanted,
                validationLevel="moderate",
                validationAction=action,
                check_exists=False,
            )
        except OperationFailure as error:
            if error.code != _EXISTS:
                raise
        return
    options = found.get("options", {})
    if _same_validator(options, wanted):
        return
    if "validator" not in options or ours or repair:
        await database.raw.command(
            "collMod", collection.name, validator=wanted, validationLevel="moderate", validationAction=action
        )


async def _make_indexes(database: Database, collection: Collection[Any], *, repair: bool) -> None:
    if not collection.indexes:
        return
    raw = database.raw[collection.name]
    present = {found["name"]: found async for found in await raw.list_indexes()}
    replaced = {}
    if repair:
        for index in collection.indexes:
            if index.name in present and not _same(index, present[index.name]):
                await raw.drop_index(index.name)
                replaced[index.name] = present.pop(index.name)
    missing = [IndexModel(list(i.keys), name=i.name, **i.options) for i in collection.indexes if i.name not in present]
    try:
        if missing:
            await raw.create_indexes(missing)
    except OperationFailure as refusal:
        if refusal.code not in _OBSTACLES:
            raise
        for model in missing:  # of a batch with an obstacle the server makes none
            try:
                await raw.create_indexes([model])
            except OperationFailure as error:
                if error.code not in _OBSTACLES:
                    raise
                _log.warning(
                    "index not created",
                    collection=collection.name,
                    index=model.document["name"],
                    reason=error.details and error.details.get("errmsg"),
                )
                if former := replaced.get(model.document["name"]):  # better than none
                    await database.raw.command("createIndexes", collection.name, indexes=[former])


async def _compare(
    database: Database, collection: Collection[Any], found: Mapping[str, Any] | None
) -> list[Difference]:
    name = collection.name
    if found is None:
        return [Difference(name, "collection", name, "missing", "ximler db init")]
    differences = []
    options = found.get("options", {})
    if not _same_validator(options, validator(collection)):
        state: Literal["missing", "changed"] = "changed" if options.get("validator") else "missing"
        remedy = "ximler db init --repair replaces it" if options.get("validator") else "ximler db init"
        differences.append(Difference(name, "validator", name, state, remedy))
    present = {index["name"]: index async for index in await database.raw[name].list_indexes()}
    for index in collection.indexes:
        if index.name not in present:
            differences.append(Difference(name, "index", index.name, "missing", "ximler db init"))
        elif not _same(index, present[index.name]):
            differences.append(Difference(name, "index", index.name, "changed", "ximler db init --repair rebuilds it"))
    known = {index.name for index in collection.indexes} | {"_id_"}
    differences += [
        Difference(name, "index", extra, "extra", f"left alone; db.{name}.dropIndex({extra!r}) removes it")
        for extra in present
        if extra not in known
    ]
    return differences


def _same_validator(options: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return options.get("validator") == wanted and options.get("validationLevel") != "off"


def _same(index: Index, present: Mapping[str, Any]) -> bool:
    """Same keys in the same order, same uniqueness, expiry and filter, and nothing that ours have not."""
    if index.keys[0][1] == "text":
        same_keys = present.get("weights") == dict.fromkeys((key for key, _ in index.keys), 1)
    else:
        same_keys = list(present["key"].items()) == list(index.keys)  # 1, as a long or a double too
    options = {key: value for key in _OPTIONS if (value := present.get(key)) is not None and value is not False}
    return same_keys and options == index.options


def _fingerprint() -> str:
    """Changes when the map does: start-up then synchronises, and otherwise skips it."""
    described = [[validator(c), [[i.name, i.options] for i in c.indexes]] for c in CATALOGUE]
    return hashlib.sha256(msgspec.json.encode(described)).hexdigest()[:16]
