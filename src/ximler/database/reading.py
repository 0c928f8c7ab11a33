"""Reading typed collections: documents out as Structs, at driver speed.

Soft-deleted documents are left out unless `deleted=True`. A document that cannot be decoded is left out of
lists, logged and counted; a query for it alone raises `UnreadableDocument`. Filters are MongoDB's own, with
MongoDB's field names.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

import structlog
from bson import ObjectId
from bson.codec_options import DatetimeConversion
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from ximler.core.errors import NotFound
from ximler.core.ids import Position
from ximler.core.rows import Rows
from ximler.database import filters, monitoring, wire
from ximler.database.batches import RawBatches
from ximler.database.codec import Codec, UnreadableDocument, check_storable, codec_of, few_at_a_time
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.database.pages import LATEST, MAX_PAGE, Cursors, Order, Page, T, check_size
from ximler.schema.document import Collection, Document, extras

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

    from ximler.core.clock import Clock

__all__ = [
    "D",
    "Filter",
    "ReadableCollection",
    "Sort",
    "V",
    "projection_of",
]

D = TypeVar("D", bound=Document)
V = TypeVar("V", bound=Document)
Filter = Mapping[str, Any]
Sort = Sequence[tuple[str, int]]

_BATCH = 4000
_MAJORITY = ReadConcern("majority")
_EMPTY: Mapping[str, int] = {}
_WRITING = frozenset({"$out", "$merge"})
_LOGICAL = frozenset({"$and", "$or", "$nor"})
_COMPARING = frozenset({"$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte"})
_log = structlog.get_logger("ximler.database")


class ReadableCollection(Generic[D]):
    """The reading half of `TypedCollection`."""

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
        self._setters = _setters(spec.document)

    @property
    def committed(self) -> Self:
        """This collection, read with majority read concern: no failover rolls back a document that it
        returns.

        For reads that decide about a write to another document, outside a transaction.
        """
        raw = self.raw.with_options(read_concern=_MAJORITY)
        return type(self)(self.spec, raw, self._clock, self._session, self._forget)

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
        found = await self._run(self._few(self._query(where, into, sort, 1, deleted, None)))
        return codec.decode(found[0]) if found else None

    async def get(self, where: Filter | ObjectId | str | bytes, *, deleted: bool = False) -> D:
        """As `find_one`, but raises NotFound instead of returning None.
        Anything but a mapping is an `_id`."""
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
        """All matches in one list. For results that do not fit in memory use `stream`."""
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        batches = self._batches(self._query(where, into, sort, limit, deleted, hint))
        found: list[Any] = []
        batch = await self._run(anext(batches, b""))
        while batches.alive:
            # The server prepares the next batch while this one is decoded.
            following = asyncio.create_task(self._run(anext(batches, b"")))
            try:
                await asyncio.sleep(0)  # the request is sent now
                found += self._decoded_batch(batch, codec)
            finally:
                batch = await following
        return found + self._decoded_batch(batch, codec)

    async def stream(
        self, where: Filter, *, sort: Sort | None = None, deleted: bool = False, batch: int = _BATCH
    ) -> AsyncGenerator[D, None]:
        """Matches one by one; one batch is in memory at a time."""
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
        """Matches grouped by `field`: one query for all `values`, a list for each. Populates virtuals."""
        asked = {value: _with_setter(self._setters.get(field), value) for value in values}
        if not asked:
            return {}
        attribute = self._attribute(field)
        grouped: dict[Any, list[D]] = {value: [] for value in asked.values()}
        query = self._query({**(where or {}), field: {"$in": list(grouped)}}, None, sort, 0, False, None)
        for document in self._decoded(await self._run(self._few(query)), self._codec):
            grouped[getattr(document, attribute)].append(document)
        return {value: grouped[stored] for value, stored in asked.items()}

    @overload
    async def page(
        self,
        where: Filter,
        *,
        first: int = 20,
        after: Position | None = None,
        deleted: bool = False,
        by: str = "createdAt",
    ) -> Page[D]: ...
    @overload
    async def page(
        self,
        where: Filter,
        *,
        into: type[V],
        first: int = 20,
        after: Any = None,
        deleted: bool = False,
        by: str = "createdAt",
        raw: bool = False,
        hint: str | None = None,
        order: Order | None = None,
    ) -> Page[V]: ...
    async def page(
        self,
        where: Filter,
        *,
        into: type[Any] | None = None,
        first: int = 20,
        after: Any = None,
        deleted: bool = False,
        by: str = "createdAt",
        raw: bool = False,
        hint: str | None = None,
        order: Order | None = None,
    ) -> Page[Any]:
        """Latest first, by the time `by` and `_id`, or in the `order` given;
        the cost does not grow with the distance from the start.

        Documents without the time come last. Unreadable documents are skipped, so a page is shorter than
        `first` only at the end of the list. With `raw` the items may be `Rows`. `hint` names the index.
        Raises Invalid when `first` is not between 1 and 100.
        """
        check_size(first)
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        order = (LATEST if by == LATEST.by else Order(by)) if order is None else order
        by = order.by
        if after is not None and order.is_inexact(after):
            after = await self._exact(where, after, by)
        # The order needs its field even if `into` does not.
        following = order.after(where, after, others=by in self.spec.document.FORGIVEN)
        filters.check(self.spec.document, where)  # and not `following`: a position may be of any type
        query = self._query(following, into, order.sort, first + 1, deleted, hint, {by: 1}, checked=True)
        if order.collation is not None:
            query["collation"] = order.collation
        raws = await self._run(self._few(query))
        if raw and codec.check is not None and all(map(codec.check, raws)):
            has_next = len(raws) > first
            del raws[first:]
            rows = cast("Any", Rows(raws, codec.decode, codec.keys))
            return Page(rows, Cursors(raws, lambda each: (each.get(by), each["_id"]), order), has_next)
        places = [(each.get(by), each["_id"]) for each in raws]  # decoding consumes the dicts
        try:
            items = [codec.decode(each) for each in raws]
        except UnreadableDocument:
            items, places = await self._run(self._readable_first(query, codec, by, first + 1))
        return Page(items[:first], Cursors(places[:first], order=order), has_next=len(items) > first)

    async def _readable_first(
        self, query: dict[str, Any], codec: Codec[Any], by: str, most: int
    ) -> tuple[list[Any], list[Any]]:
        """The first readable documents of a page's query, and their places. Few documents are unreadable."""
        while True:
            items: list[Any] = []
            places: list[Any] = []
            seen = 0
            query["limit"] *= 4
            async with self.raw.find(**{**query, "batch_size": MAX_PAGE}) as cursor:
                async for each in cursor:
                    seen += 1
                    place = each.get(by), each["_id"]
                    if found := self._decoded([each], codec):
                        items += found
                        places.append(place)
                        if len(items) == most:
                            return items, places
            if seen < query["limit"]:
                return items, places

    async def _exact(self, where: Filter, position: Position, by: str) -> tuple[Any, Any]:
        """The place of a document whose time a cursor cannot hold, as it is stored. One command."""
        options = self.raw.codec_options.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
        raw = self.raw.with_options(codec_options=options)
        this = self._where({"$and": [where, {"_id": position[1]}]}, deleted=True)
        found = await self._run(raw.find_one(this, {by: 1}, session=self._session))
        return position if found is None else (found.get(by), position[1])

    async def count(self, where: Filter, *, deleted: bool = False) -> int:
        return await self._run(self.raw.count_documents(self._where(where, deleted), session=self._session))

    async def roughly(self) -> int:
        """The number of documents by the server's metadata, which a crash may leave inexact."""
        return await self._run(self.raw.estimated_document_count())

    async def count_keys(self, where: Filter, *, most: int, index: str) -> int:
        """How many keys of an index match, deleted documents included, at most `most`:
        without reading a document."""
        found = await self.aggregate([{"$match": where}, {"$limit": most}, {"$count": "n"}], hint=index)
        return sum(each["n"] for each in found)

    async def aggregate(
        self, pipeline: Sequence[Mapping[str, Any]], *, hint: str | None = None
    ) -> list[dict[str, Any]]:
        """Run the pipeline unchanged: the caller leaves out soft-deleted documents. Datetimes come back
        naive. `hint` names the index.
        """
        return await self._run(self._aggregate(pipeline, hint))

    async def rows(self, where: Filter, *, projection: Mapping[str, Any], limit: int) -> list[dict[str, Any]]:
        """The first matches as the projection returns them, with computed fields.
        Datetimes come back naive."""
        query = self._query(where, None, None, limit, False, None)
        return await self._run(self._few({**query, "projection": projection}))

    def decoded(self, documents: Iterable[dict[str, Any]]) -> list[D]:
        """Documents that a pipeline of another collection returned, without those that cannot be read."""
        return self._decoded([dict(each) for each in documents], self._codec)

    # Inside

    async def _few(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        """All that a query finds, as dicts: for those that find little."""
        if self._session is None:
            command: dict[str, Any] = {"find": self.raw.name, "filter": query["filter"], "batchSize": _BATCH}
            if query["limit"]:
                command["limit"] = query["limit"]
                command["singleBatch"] = query["limit"] == 1  # a mongos would keep the cursor
            if query["projection"]:
                command["projection"] = query["projection"]
            if query["sort"]:
                command["sort"] = dict(query["sort"])
            if query["hint"]:
                command["hint"] = query["hint"]
            if "collation" in query:
                command["collation"] = query["collation"]
            found = await wire.ask(self.raw, command)
            if found is not None:
                return found
        return await self.raw.find(**query).to_list()

    async def _aggregate(self, pipeline: Sequence[Mapping[str, Any]], hint: str | None) -> list[dict[str, Any]]:
        options: dict[str, Any] = {} if hint is None else {"hint": hint}
        writes = bool(pipeline) and not _WRITING.isdisjoint(pipeline[-1])
        if self._session is None and not writes:
            command = {"aggregate": self.raw.name, "pipeline": pipeline, "cursor": {"batchSize": _BATCH}, **options}
            found = await wire.ask(self.raw, command)
            if found is not None:
                return found
        return await (await self.raw.aggregate(pipeline, session=self._session, **options)).to_list()

    def _where(self, where: Filter, deleted: bool, *, checked: bool = False) -> dict[str, Any]:
        """The filter, checked, with setters applied, without soft-deleted documents. Raises Invalid."""
        final = self._with_setters(where) if checked else self._set(where)
        if self.spec.soft_delete and not deleted:
            if "deletedAt" in final:
                return {"$and": [final, {"deletedAt": None}]}
            final["deletedAt"] = None
        return final

    def _set(self, where: Filter) -> dict[str, Any]:
        """The filter, checked, with the specification's setters applied to its operands, as Mongoose does.

        Raises Invalid.
        """
        filters.check(self.spec.document, where)
        return self._with_setters(where)

    def _with_setters(self, where: Filter) -> dict[str, Any]:
        if not self._setters:
            return dict(where)
        return {
            field: [self._with_setters(part) for part in value]
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
        *,
        checked: bool = False,
    ) -> dict[str, Any]:
        projection = projection_of(into)
        return {
            "filter": self._where(where, deleted, checked=checked),
            "projection": projection if projection is None else {**projection, **also},
            "limit": limit,
            "sort": sort,
            "hint": hint,
            "session": self._session,
            "batch_size": _BATCH,
        }

    def _batches(self, query: dict[str, Any]) -> Any:
        """A cursor over batches of BSON, which PyMongo's annotations call documents."""
        return RawBatches(self.raw, **query)

    @overload
    def readable(self, raws: list[dict[str, Any]]) -> list[D]: ...
    @overload
    def readable(self, raws: list[dict[str, Any]], *, into: type[V]) -> list[V]: ...
    def readable(self, raws: list[dict[str, Any]], *, into: type[Any] | None = None) -> list[Any]:
        """Documents that `aggregate` returned, decoded. An unreadable one is left out, logged and counted."""
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        return self._decoded(raws, codec)

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
                    if monitoring.first_time(self.spec.name, raw.get("_id")):
                        _log.warning(
                            "document left out",
                            collection=self.spec.name,
                            id=str(raw.get("_id")),
                            reason=problem.message,
                        )
            return readable

    def _attribute(self, field: str) -> str:
        document = self.spec.document
        return document.__struct_fields__[document.__struct_encode_fields__.index(field)]

    async def _run(self, operation: Awaitable[T], *, sent: Iterable[dict[str, Any]] = ()) -> T:
        """Await it, with errors translated. `sent`: documents to check when BSON could not encode one."""
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


def projection_of(into: type[Document] | None) -> dict[str, int] | None:
    return None if into is None else dict.fromkeys(into.__struct_encode_fields__, 1)


@cache  # each transaction makes its collections anew
def _setters(document: type[Document]) -> dict[str, str]:
    names = dict(zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True))
    return {names[attribute]: marks["setter"] for attribute, marks in extras(document).items() if "setter" in marks}
