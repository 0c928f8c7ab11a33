"""Typed collections: documents in and out as Structs, at driver speed, by one set of rules.

On every path: `createdAt` and `updatedAt` by the server's clock, setters and types checked, partial updates only, soft-deleted
documents left out unless `deleted=True`, unique violations as `DocumentExists`, a lost database as `DatabaseUnavailable`.

Filters and updates are MongoDB's own, with MongoDB's field names. A document that cannot be read is left out of lists, logged
and counted; asking for it alone raises `UnreadableDocument`.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec
import structlog
from bson import ObjectId, Regex, Timestamp
from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import OperationFailure, PyMongoError

from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid, NotFound
from ximler.core.ids import Position, encode_cursor
from ximler.database import monitoring, updates
from ximler.database.batches import RawBatches
from ximler.database.codec import Codec, UnreadableDocument, check_storable, codec_of, few_at_a_time
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.schema.document import Collection, Document, extras

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

    from ximler.core.clock import Clock

__all__ = ["MAX_PAGE", "Page", "TypedCollection"]

D = TypeVar("D", bound=Document)
V = TypeVar("V", bound=Document)
T = TypeVar("T")
Filter = Mapping[str, Any]
Sort = Sequence[tuple[str, int]]

MAX_PAGE = 100
_BATCH = 4000
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)
_LAST_MOMENT = datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)
_FIRST_ID, _LAST_ID = ObjectId(bytes(12)), ObjectId(b"\xff" * 12)
_PLACE = {"createdAt": 1}  # read even where `into` does not ask for it
_EMPTY: Mapping[str, int] = {}
_LOGICAL = frozenset({"$and", "$or", "$nor"})
_CANNOT_TAKE = frozenset({2, 14, 28})  # no array to push to, no number to add to, no object to go through
_REPEATABLE = frozenset({"$set", "$unset", "$min", "$max", "$addToSet", "$pull", "$pullAll"})
_COMPARING = frozenset({"$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte"})
_log = structlog.get_logger("ximler.database")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Part of a list, newest first. `cursors[i]` continues after `items[i]`."""

    items: list[T]
    cursors: list[str]
    has_next: bool

    @property
    def end_cursor(self) -> str | None:
        return self.cursors[-1] if self.cursors else None


class TypedCollection(Generic[D]):
    """`database[USERS]` or `database.users`. Cheap to make; a view inside a transaction carries its session."""

    __slots__ = ("_clock", "_codec", "_forget", "_session", "_setters", "raw", "spec")

    def __init__(
        self,
        spec: Collection[D],
        raw: "AsyncCollection[dict[str, Any]]",
        clock: "Clock",
        session: "AsyncClientSession | None",
        forget: Callable[[str, Any], None],
    ) -> None:
        self.spec = spec
        self._forget = forget
        self.raw = raw
        self._clock = clock
        self._session = session
        self._codec: Codec[D] = codec_of(spec.document)
        self._setters = _setters(spec)

    # Reading

    @overload
    async def find_one(self, where: Filter, *, deleted: bool = False, sort: Sort | None = None) -> D | None: ...
    @overload
    async def find_one(
        self, where: Filter, *, into: type[V], deleted: bool = False, sort: Sort | None = None
    ) -> V | None: ...
    async def find_one(
        self, where: Filter, *, into: type[Any] | None = None, deleted: bool = False, sort: Sort | None = None
    ) -> Any:
        """The first match or None. `into` reads only that Struct's fields. Raises UnreadableDocument."""
        codec = self._codec if into is None else codec_of(into)
        raw = await self._run(
            self.raw.find_one(self._where(where, deleted), _projection(into), sort=sort, session=self._session)
        )
        return None if raw is None else codec.decode(raw)

    async def get(self, where: Filter | ObjectId | str | bytes, *, deleted: bool = False) -> D:
        """As `find_one`, but its absence is NotFound. Anything but a mapping is an `_id`."""
        found = await self.find_one(where if isinstance(where, Mapping) else {"_id": where}, deleted=deleted)
        if found is None:
            raise NotFound(f"No such {self.spec.document.__name__.lower()}")
        return found

    @overload
    async def find(
        self, where: Filter, *, sort: Sort | None = None, limit: int = 0, deleted: bool = False, hint: str | None = None
    ) -> list[D]: ...
    @overload
    async def find(
        self,
        where: Filter,
        *,
        into: type[V],
        sort: Sort | None = None,
        limit: int = 0,
        deleted: bool = False,
        hint: str | None = None,
    ) -> list[V]: ...
    async def find(
        self,
        where: Filter,
        *,
        into: type[Any] | None = None,
        sort: Sort | None = None,
        limit: int = 0,
        deleted: bool = False,
        hint: str | None = None,
    ) -> list[Any]:
        """All matches, in one list. For more than memory should hold, `stream`."""
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        batches = self._batches(self._query(where, into, sort, limit, deleted, hint))
        found: list[Any] = []
        batch = await self._run(anext(batches, b""))
        while batches.alive:
            # The server makes the next batch while this one is decoded.
            following = asyncio.create_task(self._run(anext(batches, b"")))
            try:
                await asyncio.sleep(0)  # lets it be asked for
                found += self._decoded_batch(batch, codec)
            finally:
                batch = await following
        return found + self._decoded_batch(batch, codec)

    async def stream(
        self, where: Filter, *, sort: Sort | None = None, deleted: bool = False, batch: int = _BATCH
    ) -> AsyncGenerator[D, None]:
        """Matches one after the other; memory stays at one batch."""
        batches = self._batches(self._query(where, None, sort, 0, deleted, None)).batch_size(batch)
        try:
            while received := await self._run(anext(batches, b"")):
                for document in self._decoded_batch(received, self._codec):
                    yield document
        finally:
            await batches.close()

    async def find_by(
        self, field: str, values: Iterable[Any], *, where: Filter | None = None, sort: Sort | None = None
    ) -> dict[Any, list[D]]:
        """Matches grouped by `field`, for k `values` with one query; every value has its list. Populates virtuals."""
        asked = {value: _with_setter(self._setters.get(field), value) for value in values}
        if not asked:
            return {}
        attribute = self._attribute(field)
        grouped: dict[Any, list[D]] = {value: [] for value in asked.values()}
        for document in await self.find({**(where or {}), field: {"$in": list(grouped)}}, sort=sort):
            grouped[getattr(document, attribute)].append(document)
        return {value: grouped[stored] for value, stored in asked.items()}

    @overload
    async def page(
        self, where: Filter, *, first: int = 20, after: Position | None = None, deleted: bool = False
    ) -> Page[D]: ...
    @overload
    async def page(
        self, where: Filter, *, into: type[V], first: int = 20, after: Position | None = None, deleted: bool = False
    ) -> Page[V]: ...
    async def page(
        self,
        where: Filter,
        *,
        into: type[Any] | None = None,
        first: int = 20,
        after: Position | None = None,
        deleted: bool = False,
    ) -> Page[Any]:
        """Newest first, by `createdAt` and `_id`; the cost does not grow with the distance from the start.

        Documents without `createdAt` come last. A page is shorter than `first` only at the list's end: past documents that
        cannot be read it goes on. Raises Invalid when `first` is not between 1 and 100.
        """
        if not 1 <= first <= MAX_PAGE:
            raise Invalid.field("first", f"{first} is not between 1 and {MAX_PAGE}")
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        sort = [("createdAt", -1), ("_id", -1)]
        items: list[Any] = []
        cursors: list[str] = []
        limit = first + 1
        while True:
            bounded = where if after is None else {"$and": [where, _after(after)]}
            query = self._query(bounded, into, sort, limit, deleted, None, _PLACE)
            raws = await self._run(self.raw.find(**query).to_list(limit))
            before = after
            for raw in raws:
                after = _position(raw)
                for item in self._decoded([raw], codec):
                    items.append(item)
                    cursors.append(encode_cursor(after))
                if len(items) > first:
                    return Page(items[:first], cursors[:first], has_next=True)
            if len(raws) < limit or after == before:
                return Page(items, cursors, has_next=False)
            limit = MAX_PAGE

    async def count(self, where: Filter, *, deleted: bool = False) -> int:
        return await self._run(self.raw.count_documents(self._where(where, deleted), session=self._session))

    async def aggregate(self, pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The pipeline as it stands (soft-deleted documents are the caller's to leave out); datetimes come back naive."""

        async def run() -> list[dict[str, Any]]:
            return await (await self.raw.aggregate(pipeline, session=self._session)).to_list()

        return await self._run(run())

    # Writing

    async def insert(self, document: D) -> D:
        """Store a new document and return it as stored. Raises Invalid, DocumentExists."""
        raw = self._codec.encode(document, self._now_naive())
        await self._run(self.raw.insert_one(raw, session=self._session), sent=(raw,))
        self._changed(raw)
        return self._codec.decode(raw)

    async def insert_many(self, documents: Iterable[D], *, ordered: bool = True) -> int:
        """Store many; returns how many. All are checked before the first is sent."""
        now, encode = self._now_naive(), self._codec.encode
        raws = [encode(document, now) for document in documents]
        if raws:
            await self._run(self.raw.insert_many(raws, ordered=ordered, session=self._session), sent=raws)
        return len(raws)

    async def patch(self, where: Filter, update: updates.Update, *, deleted: bool = False) -> bool:
        """Update the first match; False when there is none. The filter is the guard: this is compare-and-swap."""
        built = updates.build(self.spec, update, self._clock.now())
        final = self._where(where, deleted)
        result = await self._update(final, built, lambda: self.raw.update_one(final, built, session=self._session))
        return result.matched_count == 1

    async def patch_many(self, where: Filter, update: updates.Update, *, deleted: bool = False) -> int:
        """Update every match; returns how many. Not retried by the driver when a connection breaks."""
        built = updates.build(self.spec, update, self._clock.now())
        final = self._where(where, deleted)
        if self._session is None and not built.keys() <= _REPEATABLE:
            await self._run(self._remove_nulls(final, built))  # repeated, it would count some of the matches twice
        result = await self._update(final, built, lambda: self.raw.update_many(final, built, session=self._session))
        return result.matched_count

    async def upsert(self, where: Filter, update: updates.Update, *, fresh: D) -> bool:
        """Update the match, or insert `fresh` with the update in place of its own values. True when it was inserted.

        What the filter requires by equality is inserted as well. A deleted document is no match, but may be in the way of
        the insert; so may one that another process inserts at the same moment: DocumentExists, as where the filter's guards
        refuse the one that is there.
        """
        final, built = self._upsertion(where, update, fresh, self._clock.now())
        result = await self._update(
            final, built, lambda: self.raw.update_one(final, built, upsert=True, session=self._session)
        )
        return result.upserted_id is not None

    async def patch_each(self, changes: Iterable[tuple[Filter, updates.Update]]) -> int:
        """Each update on the first match of its own filter, in no particular order, with one command; how many matched.

        A connection that breaks may leave some done: guard each by what it changes, so that it can be sent again. Cheap in
        round trips, and none of the tolerance for nulls.
        """
        now = self._clock.now()
        return await self._each(
            [UpdateOne(self._where(where, False), updates.build(self.spec, update, now)) for where, update in changes]
        )

    async def upsert_each(self, changes: Iterable[tuple[Filter, updates.Update, D]]) -> int:
        """As `patch_each`; where there is no match, the third is inserted with the update in place of its own values."""
        now = self._clock.now()
        requests = []
        for where, update, fresh in changes:
            final, built = self._upsertion(where, update, fresh, now)
            requests.append(UpdateOne(final, built, upsert=True))
        return await self._each(requests)

    @overload
    async def find_and_patch(
        self,
        where: Filter,
        update: updates.Update,
        *,
        deleted: bool = False,
        sort: Sort | None = None,
        before: bool = False,
    ) -> D | None: ...
    @overload
    async def find_and_patch(
        self,
        where: Filter,
        update: updates.Update,
        *,
        into: type[V],
        deleted: bool = False,
        sort: Sort | None = None,
        before: bool = False,
    ) -> V | None: ...
    async def find_and_patch(
        self,
        where: Filter,
        update: updates.Update,
        *,
        into: type[Any] | None = None,
        deleted: bool = False,
        sort: Sort | None = None,
        before: bool = False,
    ) -> Any:
        """Update the first match and return it after (or `before`) the update, or `into` reads part of it.

        Outside a transaction the server keeps an image of the whole document for a retry: for large ones prefer `patch`.
        """
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        built = updates.build(self.spec, update, self._clock.now())
        final = self._where(where, deleted)
        raw = await self._update(
            final,
            built,
            lambda: self.raw.find_one_and_update(
                final,
                built,
                projection=_projection(into),
                sort=sort,
                return_document=ReturnDocument.BEFORE if before else ReturnDocument.AFTER,
                session=self._session,
            ),
        )
        return None if raw is None else codec.decode(raw)

    async def recompute(self, where: Filter, stages: Sequence[Mapping[str, Any]], *, upsert: bool = False) -> D | None:
        """Change the match by an aggregation pipeline, which sees what is stored, and return it as it was *before*.

        With `upsert` what is not there is made of the filter and the pipeline, and None is returned. Nothing of it is checked
        or stamped: for counters whose next value follows from their last, in collections of ours.
        """
        raw = await self._run(
            self.raw.find_one_and_update(
                self._where(where, deleted=False),
                list(stages),
                upsert=upsert,
                return_document=ReturnDocument.BEFORE,
                session=self._session,
            )
        )
        return None if raw is None else self._codec.decode(raw)

    async def recompute_each(
        self, changes: Iterable[tuple[Filter, Sequence[Mapping[str, Any]]]], *, upsert: bool = False
    ) -> int:
        """Each pipeline on the match of its own filter, in no particular order, with one command; how many matched.

        As `recompute`: with `upsert` what is not there is made, and nothing is checked or stamped. As `patch_each`: what it
        does must be safe to be sent again.
        """
        return await self._each(
            [UpdateOne(self._where(where, False), list(stages), upsert=upsert) for where, stages in changes]
        )

    async def soft_delete(self, where: Filter) -> bool:
        """Mark the match as deleted, now; False when there is none."""
        return await self.patch(where, {"$set": {"deletedAt": self._clock.now()}})

    async def restore(self, where: Filter) -> bool:
        """Undo `soft_delete`; False when no deleted document matches."""
        return await self.patch(
            {"$and": [where, {"deletedAt": {"$gt": EPOCH}}]}, {"$unset": {"deletedAt": ""}}, deleted=True
        )

    async def delete(self, where: Filter) -> bool:
        """Remove the first match for good, deleted softly or not."""
        result = await self._run(self.raw.delete_one(self._set(where), session=self._session))
        self._changed(where)
        return result.deleted_count == 1

    async def delete_many(self, where: Filter) -> int:
        """Remove every match for good, deleted softly or not; returns how many."""
        result = await self._run(self.raw.delete_many(self._set(where), session=self._session))
        return result.deleted_count

    async def keep_only(
        self,
        where: Filter,
        fields: Sequence[str],
        values: Mapping[str, Any] | None = None,
        *,
        deleted: bool = False,
    ) -> int:
        """Leave every match with these fields alone, and `values`; returns how many. For erasing people, and nothing else.

        Unlike every other update of ours it takes away what other applications keep in the document, too: nobody knows what.
        """
        kept = {name: f"${name}" for name in ("_id", *fields)}
        built = updates.build(self.spec, {"$set": values or {}}, self._clock.now())
        given = {name: {"$literal": value} for name, value in built.get("$set", {}).items()}
        pipeline = [{"$replaceWith": kept | given}]
        final = self._where(where, deleted)
        result = await self._run(self.raw.update_many(final, pipeline, session=self._session))
        return result.matched_count

    # Inside

    def _upsertion(
        self, where: Filter, update: updates.Update, fresh: D, now: datetime
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Filter and update of an upsert that inserts `fresh`."""
        built = updates.build(self.spec, update, now)
        final = self._set(where)
        decided = {path for path, value in final.items() if not _is_condition(value)}
        decided |= {path for changes in built.values() for path in changes}
        defaults = self._codec.encode(fresh, now.replace(tzinfo=None))
        built["$setOnInsert"] = built.get("$setOnInsert", {}) | _undecided(defaults, decided)
        if self.spec.soft_delete:
            final = {"$and": [final, {"deletedAt": {"$not": {"$gt": EPOCH}}}]}  # equality would insert null
        return final, built

    async def _each(self, requests: "list[UpdateOne]") -> int:
        if not requests:
            return 0
        result = await self._run(self.raw.bulk_write(requests, ordered=False, session=self._session))
        return result.matched_count

    def _where(self, where: Filter, deleted: bool) -> dict[str, Any]:
        """The filter with setters applied and the deleted left out."""
        final = self._set(where)
        if self.spec.soft_delete and not deleted:
            if "deletedAt" in final:
                return {"$and": [final, {"deletedAt": None}]}
            final["deletedAt"] = None
        return final

    def _set(self, where: Filter) -> dict[str, Any]:
        """The filter with the specification's setters applied to what a field is compared with, as Mongoose does."""
        if not self._setters:
            return dict(where)
        return {
            field: [self._set(part) for part in value]
            if field in _LOGICAL
            else _with_setter(self._setters.get(field), value)
            for field, value in where.items()
        }

    def _query(
        self,
        where: Filter,
        into: type[Document] | None,
        sort: Sort | None,
        limit: int,
        deleted: bool,
        hint: str | None,
        also: Mapping[str, int] = _EMPTY,
    ) -> dict[str, Any]:
        projection = _projection(into)
        return {
            "filter": self._where(where, deleted),
            "projection": projection if projection is None else {**projection, **also},
            "limit": limit,
            "sort": sort,
            "hint": hint,
            "session": self._session,
            "batch_size": _BATCH,
        }

    def _batches(self, query: dict[str, Any]) -> Any:
        """A cursor over streams of BSON (PyMongo's annotations say that it gives documents)."""
        return RawBatches(self.raw, **query)

    def readable(self, raws: list[dict[str, Any]]) -> list[D]:
        """The documents, as `aggregate` returned them. One that cannot be read is left out, logged and counted."""
        return self._decoded(raws, self._codec)

    def _decoded_batch(self, batch: bytes, codec: Codec[V]) -> list[V]:
        return [d for raws in few_at_a_time(batch, self.raw.codec_options) for d in self._decoded(raws, codec)]

    def _decoded(self, raws: list[dict[str, Any]], codec: Codec[V]) -> list[V]:
        decode = codec.decode
        try:
            return [decode(raw) for raw in raws]
        except UnreadableDocument:
            readable = []
            for raw in raws:
                try:
                    readable.append(decode(raw))
                except UnreadableDocument as problem:
                    monitoring.UNREADABLE.labels(self.spec.name).inc()
                    _log.warning(
                        "document left out", collection=self.spec.name, id=str(raw.get("_id")), reason=problem.message
                    )
            return readable

    def _now_naive(self) -> datetime:
        return self._clock.now().replace(tzinfo=None)

    def _attribute(self, field: str) -> str:
        document = self.spec.document
        return document.__struct_fields__[document.__struct_encode_fields__.index(field)]

    async def _update(self, where: Filter, built: updates.Update, send: Callable[[], Awaitable[T]]) -> T:
        """Send an update; once more if a null was in its way.

        A null that another application wrote reads as the default, but MongoDB goes neither through it (`settings.theme`)
        nor on from it (`$inc`). Removing it changes nothing that anybody reads. A transaction, which the server has ended by
        then, is repeated by the driver.
        """

        async def attempt() -> T:
            try:
                return await send()
            except OperationFailure as error:
                if error.code not in _CANNOT_TAKE or not await self._remove_nulls(where, built):
                    raise
                if self._session is not None:
                    details = {**(error.details or {}), "errorLabels": ["TransientTransactionError"]}
                    raise OperationFailure("a null was in the way", error.code, details) from error
                return await send()

        result = await self._run(attempt())
        self._changed(where)
        return result

    def _changed(self, where: Filter) -> None:
        """This process's caches need not wait to be told of what it has written itself, where that is one document."""
        name = where.get("_id")
        if name is not None and not isinstance(name, Mapping):
            self._forget(self.spec.name, name)

    async def _remove_nulls(self, where: Filter, built: updates.Update) -> bool:
        removed = 0
        for path in updates.nullable(self.spec.document, built):
            null = {"$and": [where, {path: {"$type": "null"}}]}
            removed += (await self.raw.update_many(null, {"$unset": {path: ""}})).modified_count
        return removed > 0

    async def _run(self, operation: Awaitable[T], *, sent: Iterable[dict[str, Any]] = ()) -> T:
        """Await it, with errors translated. `sent`: documents to look through when BSON could not hold one."""
        try:
            return await operation
        except DRIVER_ERRORS as error:
            if not isinstance(error, PyMongoError):
                for raw in sent:
                    check_storable(raw)
            final = translated(error, self.spec.name)
            if final is error:
                raise
            raise final from error


def _after(position: Position) -> dict[str, Any]:
    moment, oid = position
    if moment is None:
        return {"createdAt": None, "_id": {"$lt": oid}}
    return {"$or": [{"createdAt": {"$lt": moment}}, {"createdAt": moment, "_id": {"$lt": oid}}, {"createdAt": None}]}


def _position(raw: Mapping[str, Any]) -> Position:
    """Where a document stands in a page's order. One that cannot be read may have anything for `createdAt` and `_id`; what
    follows it must be found all the same."""
    created, oid = raw.get("createdAt"), raw["_id"]
    if not isinstance(oid, ObjectId):
        oid = _FIRST_ID
    if isinstance(created, datetime) and created.year > 1:  # where the driver puts all that was before
        return EPOCH + (created - _EPOCH_NAIVE), oid
    if isinstance(created, Timestamp):
        return _LAST_MOMENT, _LAST_ID  # sorts before every time
    return None, oid if created is None else _LAST_ID


def _with_setter(setter: str | None, value: Any) -> Any:
    if setter is None:
        return value
    if isinstance(value, str):
        return getattr(value, setter)()
    if isinstance(value, Mapping):
        return {op: _with_setter(setter, operand) if op in _COMPARING else operand for op, operand in value.items()}
    if isinstance(value, list | tuple):
        return [_with_setter(setter, item) for item in value]
    return value


def _is_condition(value: Any) -> bool:
    """Whether a filter's value is more than an equality, so that an upsert takes nothing from it."""
    if isinstance(value, Mapping):
        return any(op.startswith("$") and op != "$eq" for op in value)
    return isinstance(value, re.Pattern | Regex)


def _undecided(defaults: Mapping[str, Any], decided: set[str], path: str = "") -> dict[str, Any]:
    """The values that nothing else decides, by path; a sub-document of which a part is decided gives its other parts."""
    rest: dict[str, Any] = {}
    for name, value in defaults.items():
        here = path + name
        if here in decided:
            continue
        if any(other.startswith(f"{here}.") for other in decided):
            if isinstance(value, dict):
                rest |= _undecided(value, decided, f"{here}.")
        else:
            rest[here] = value
    return rest


def _projection(into: type[Document] | None) -> dict[str, int] | None:
    return None if into is None else dict.fromkeys(into.__struct_encode_fields__, 1)


def _setters(spec: Collection[Any]) -> dict[str, str]:
    document: type[Document] = spec.document
    names = dict(zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True))
    return {names[attribute]: marks["setter"] for attribute, marks in extras(document).items() if "setter" in marks}
