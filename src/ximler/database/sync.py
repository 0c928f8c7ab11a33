"""Compares the database with the schema, and creates what is missing.

`initialise` is idempotent and safe to run from several processes at once. It creates; only with `repair=True`
it rebuilds indexes, and tightens validators on a database that another application made.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import structlog
from bson import ObjectId
from pymongo import IndexModel
from pymongo.errors import OperationFailure, PyMongoError

from ximler import __version__
from ximler.core.errors import Conflict
from ximler.database import seeding
from ximler.database.connection import Database
from ximler.database.failures import DocumentExists, translated
from ximler.database.seeding import Seeds
from ximler.database.sharding import key_index
from ximler.database.validators import validator
from ximler.schema import CATALOGUE, SPECIFIED
from ximler.schema.audit_log import AUDIT_LOGS
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
_OLDEST = 1
_MISSING, _EXISTS = 26, 48
# A similar index under another name or with other options; a second text index; duplicate documents. `status`
# reports them.
_OBSTACLES = frozenset({67, 85, 86, 11000})
_OPTIONS = ("unique", "expireAfterSeconds", "partialFilterExpression", "sparse", "hidden", "collation")
_PLURAL = "usages"  # Mongoose's plural of a model named Usage
_ADOPTING = "usages_adopting_"
_OUR_ENTRY = "metadata._audit"  # every entry of ours has it


class SchemaTooNew(Conflict):
    code = "SCHEMA_TOO_NEW"


class SchemaNotReady(Conflict):
    code = "SCHEMA_NOT_READY"


class Difference(msgspec.Struct, frozen=True):
    """One difference between the database and the schema."""

    collection: str
    what: Literal["collection", "index", "validator", "documents", "seed"]
    name: str
    state: Literal["missing", "extra", "changed"]
    remedy: str


async def check_version(database: Database) -> bool:
    """Whether the database is up to date for this version. Raises SchemaTooNew if a newer Ximler has migrated
    it.
    """
    stamp = await database[META].find_one({"_id": _STAMP})
    if stamp is None:
        return False
    if stamp.version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"The database {database.name!r} has schema version {stamp.version}; this Ximler knows {SCHEMA_VERSION}. "
            "Upgrade Ximler: pip install -U ximler"
        )
    return stamp.version == SCHEMA_VERSION and (_is_newer(stamp) or stamp.fingerprint == _fingerprint())


async def initialise(
    database: Database,
    *,
    seeds: Sequence[Seeds] = (),
    repair: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Difference]:
    """Create collections, validators, indexes, seeds and the version stamp; returns what still differs.

    `repair` also rebuilds changed indexes and replaces changed validators. Extra indexes are never touched.
    """
    await check_version(database)
    try:
        existing = {found["name"]: found async for found in await database.raw.list_collections()}
        await _make_collection(database, META, existing.get(META.name), ours=True, repair=repair)
        stamp = await _claim(database, existing)
        ours = stamp.created_here

        async def make(collection: Collection[Any]) -> None:
            found = existing.get(collection.name)
            if found is None or not _is_newer(await _stamp(database)):
                await _make_collection(database, collection, found, ours=ours, repair=repair)
            await _make_indexes(database, collection, repair=repair)
            progress(collection.name)

        await asyncio.gather(*(make(collection) for collection in CATALOGUE))
    except PyMongoError as error:
        raise translated(error, database.name) from error
    if ours:  # another application's plans and coupons are its own
        await seeding.insert(database, seeds, known=stamp.seeded)
        labels = [some.label(name) for some in seeds for name in some.names(database.clock.now())]
        if new := [label for label in labels if label not in stamp.seeded]:
            await database[META].patch({"_id": _STAMP}, {"$addToSet": {"seeded": {"$each": new}}})
    differences = await status(database, seeds=seeds if ours else ())
    if not _unsafe(differences):
        latest = await _stamp(database)
        if not _is_newer(latest):
            done = {"fingerprint": _fingerprint(), "release": __version__}
            await database[META].patch({"_id": _STAMP, "release": latest.release}, {"$set": done})
    return differences


async def require_ready(database: Database) -> None:
    """Raises SchemaNotReady for a database without its unique indexes: call it before the first write."""
    if not await check_version(database):
        raise SchemaNotReady(f"The database {database.name!r} is not up to date: run 'ximler db init' first.")


def require_safe(differences: list[Difference]) -> None:
    """Log every difference. Raises SchemaNotReady without a unique index: two accounts could share an
    address.
    """
    for found in differences:
        _log.warning("database differs", **msgspec.structs.asdict(found))
    if unsafe := _unsafe(differences):
        names = ", ".join(f"{found.collection}.{found.name}" for found in unsafe)
        raise SchemaNotReady(
            f"Nothing makes {names} unique: remove duplicates, if there are any, then run 'ximler db init --repair'."
        )


def _unsafe(differences: Iterable[Difference]) -> list[Difference]:
    """Unique indexes that are missing or not unique."""
    unique = {(c.name, i.name) for c in CATALOGUE for i in c.indexes if i.unique}
    return [d for d in differences if d.what == "index" and d.state != "extra" and (d.collection, d.name) in unique]


async def _stamp(database: Database) -> Meta:
    return await database[META].get(_STAMP)


def _is_newer(stamp: Meta) -> bool:
    """Whether a newer release made the validators: an older process, still running or rolled back, leaves
    them.
    """
    return _parts(stamp.release) > _parts(__version__)


def _parts(release: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", release)]


async def _claim(database: Database, existing: Iterable[str]) -> Meta:
    """The stamp. Inserted before any collection, so that processes that start at once agree on whose database
    it is. Without a fingerprint `initialise` has never finished.
    """
    if stamp := await database[META].find_one({"_id": _STAMP}):
        return stamp
    theirs = {c.name for c in SPECIFIED} & set(existing)
    # Commands record in the audit log what an operator reads, also before the first `ximler up`.
    if AUDIT_LOGS.name in theirs and not await database.raw[AUDIT_LOGS.name].find_one({_OUR_ENTRY: None}, {"_id": 1}):
        theirs.remove(AUDIT_LOGS.name)
    ours = not theirs
    version = SCHEMA_VERSION if ours else _OLDEST  # an empty database has nothing to migrate
    try:
        return await database[META].insert(Meta(id=_STAMP, version=version, created_here=ours))
    except DocumentExists:
        return await database[META].get(_STAMP)


async def status(database: Database, *, seeds: Sequence[Seeds] = ()) -> list[Difference]:
    """Every difference between the database and the schema, in the catalogue's order. Reads only."""
    try:
        existing = {found["name"]: found async for found in await database.raw.list_collections()}
        stamp = await database[META].find_one({"_id": _STAMP})
        ours = stamp is not None and stamp.created_here
        compared = await asyncio.gather(
            *(_compare(database, collection, existing.get(collection.name), ours=ours) for collection in CATALOGUE)
        )
        differences = [difference for found in compared for difference in found]
        differences += await _missing_seeds(database, seeds, stamp) if stamp else []
        for name in sorted(existing):
            if (name == _PLURAL or name.startswith(_ADOPTING)) and await database.raw[name].find_one({}, {"_id": 1}):
                remedy = "a Mongoose model without a collection name wrote here: ximler db adopt"
                differences.append(Difference(name, "documents", name, "extra", remedy))
    except PyMongoError as error:
        raise translated(error, database.name) from error
    return differences


async def _missing_seeds(database: Database, seeds: Sequence[Seeds], stamp: Meta) -> list[Difference]:
    """On a database of ours, the seeds that were never inserted; on another application's, those of an empty
    collection that Ximler needs.
    """
    remedy = "ximler db init" if stamp.created_here else "ximler db seed"
    if not stamp.created_here:
        seeds = [s for s in seeds if s.needed and not await database.raw[s.collection.name].find_one({}, {"_id": 1})]
    absent = await seeding.missing(database, seeds, known=stamp.seeded)
    return [Difference(name, "seed", seed, "missing", remedy) for name, found in absent.items() for seed in found]


async def adopt(database: Database) -> int:
    """Move the documents of `usages`, the default collection of a Mongoose model named Usage, to `usage`;
    returns how many.

    The source is renamed first, so that a write of another application meanwhile starts a new `usages` and is
    not lost. Safe to run from several processes at once; `status` reports an interrupted run, and the next
    run finishes it.
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
    """Create it, or set its validator. On another application's collection the validator only warns."""
    wanted = validator(collection)
    action = _action(collection, ours=ours)
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
    if _same_validator(options, wanted, action):
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
        for model in missing:  # one failure makes the server create none of a batch
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
    database: Database, collection: Collection[Any], found: Mapping[str, Any] | None, *, ours: bool
) -> list[Difference]:
    name = collection.name
    if found is None:
        return [Difference(name, "collection", name, "missing", "ximler db init")]
    differences = []
    options = found.get("options", {})
    if not _same_validator(options, validator(collection), _action(collection, ours=ours)):
        state: Literal["missing", "changed"] = "changed" if options.get("validator") else "missing"
        remedy = "ximler db init --repair replaces it" if options.get("validator") else "ximler db init"
        differences.append(Difference(name, "validator", name, state, remedy))
    present = {index["name"]: index async for index in await database.raw[name].list_indexes()}
    for index in collection.indexes:
        if index.name not in present:
            differences.append(Difference(name, "index", index.name, "missing", "ximler db init"))
        elif not _same(index, present[index.name]):
            differences.append(Difference(name, "index", index.name, "changed", "ximler db init --repair rebuilds it"))
    known = {index.name for index in collection.indexes} | {"_id_", key_index(collection)}
    differences += [
        Difference(name, "index", extra, "extra", f"left alone; db.{name}.dropIndex({extra!r}) removes it")
        for extra in present
        if extra not in known
    ]
    return differences


def _action(collection: Collection[Any], *, ours: bool) -> str:
    """The validator's action for an invalid document. Writes of other applications only cause a warning."""
    return "error" if ours or collection.private else "warn"


def _same_validator(options: Mapping[str, Any], wanted: Mapping[str, Any], action: str) -> bool:
    """Whether the same rules are in force. An operator may let the validator reject documents where we only
    warn.
    """
    in_force = options.get("validationLevel") != "off" and options.get("validationAction", "error") in (action, "error")
    return options.get("validator") == wanted and in_force


def _same(index: Index, present: Mapping[str, Any]) -> bool:
    """Same keys in the same order, same uniqueness, expiry and filter, and no other option."""
    if index.keys[0][1] == "text":
        same_keys = present.get("weights") == dict.fromkeys((key for key, _ in index.keys), 1)
    else:
        same_keys = list(present["key"].items()) == list(index.keys)  # 1, as a long or a double too
    options = {key: value for key in _OPTIONS if (value := present.get(key)) is not None and value is not False}
    if index.collation is not None and "collation" in options:  # the server adds defaults and the version of its rules
        options["collation"] = {key: options["collation"].get(key) for key in index.collation}
    return same_keys and options == index.options


def _fingerprint() -> str:
    """Changes with the schema: start-up runs `initialise` only when it does."""
    described = [[validator(c), [[i.name, i.options] for i in c.indexes]] for c in CATALOGUE]
    return hashlib.sha256(msgspec.json.encode(described)).hexdigest()[:16]
