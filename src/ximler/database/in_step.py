"""One transaction for steps of several users, whose commands go together.

    results = await in_step(database, [step_of_ada, step_of_bob])

Each step is written as if it were alone: it gets a `Database` bound to the transaction, and awaits its reads
and writes. All steps run concurrently. When each of them waits for a command, those of the same kind on the
same collection go to the server as one. So the steps must not share documents, and must not use `raw`.

The server's answer to several updates in one command is a sum: `delete_many` and `patch_many` return that of
all steps. If it does not show that every other update matched, or if a step raises, the transaction is
aborted and `OutOfStep` is raised: the caller runs the steps one by one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

from bson import ObjectId
from pymongo import DeleteMany, UpdateMany, UpdateOne

from ximler.core.errors import Conflict, Unavailable, XimlerError
from ximler.database import updates
from ximler.database.codec import codec_of
from ximler.database.collection import TypedCollection
from ximler.database.connection import Database
from ximler.database.reading import D, Filter, projection_of
from ximler.schema.document import Collection

__all__ = ["OutOfStep", "in_step", "in_step_or_alone"]

T = TypeVar("T")
A = TypeVar("A")
Perform = Callable[[list[Any]], Awaitable[Sequence[Any]]]
_SCALARS = (ObjectId, str, int)
_BATCH = 1000  # documents of an answer; the server's default of 101 would take another command


class OutOfStep(Conflict):
    """The steps cannot be taken together. Nothing was written."""


async def in_step(database: Database, steps: Sequence[Callable[[Database], Awaitable[T]]]) -> list[T]:
    """Run the steps in one transaction; returns their results. Raises OutOfStep, DatabaseUnavailable."""
    tried = False

    async def write(transaction: Database) -> list[T]:
        nonlocal tried
        if tried:  # after a conflict with another process
            raise OutOfStep("Another process changes one of these documents")
        tried = True
        return await _conduct(transaction, steps)

    return await database.transaction(write)


async def in_step_or_alone(database: Database, steps: Sequence[Callable[[Database], Awaitable[T]]]) -> list[T]:
    """The results of steps that need no transaction each: in one if possible, else one by one without."""
    if len(steps) > 1:
        try:
            return await in_step(database, steps)
        except Unavailable:
            raise
        except XimlerError:
            pass
    return [await step(database) for step in steps]


async def _conduct(transaction: Database, steps: Sequence[Callable[[Database], Awaitable[T]]]) -> list[T]:
    conductor = _Conductor(len(steps))
    bound = _Bound(transaction, conductor)

    async def run(step: Callable[[Database], Awaitable[T]]) -> T:
        try:
            return await step(bound)
        except Exception as problem:
            conductor.problem = conductor.problem or problem
            raise
        finally:
            conductor.left()

    tasks = [asyncio.create_task(run(step)) for step in steps]
    try:
        await conductor.conduct()
        return [task.result() for task in tasks]
    finally:
        for task in tasks:  # none is in the middle of a command
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Conductor:
    """Collects commands until every step waits for one, then performs one group of them."""

    def __init__(self, running: int) -> None:
        self._running = running
        self._waiting = 0
        self._groups: dict[Hashable, tuple[Perform, list[tuple[Any, asyncio.Future[Any]]]]] = {}
        self._ready = asyncio.Event()
        self.problem: Exception | None = None

    async def together(self, key: Hashable, perform: Perform, argument: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._groups.setdefault(key, (perform, []))[1].append((argument, future))
        self._waiting += 1
        self._look()
        return await future

    def left(self) -> None:
        self._running -= 1
        self._look()

    def _look(self) -> None:
        if self._waiting >= self._running:
            self._ready.set()

    async def conduct(self) -> None:
        while self._running:
            await self._ready.wait()
            self._ready.clear()
            if self.problem is not None:
                raise OutOfStep(f"One of the steps failed: {self.problem}") from self.problem
            if not self._groups:
                continue
            # The smallest first: steps that need an additional command rejoin the others.
            key = min(self._groups, key=lambda key: len(self._groups[key][1]))
            perform, waiting = self._groups.pop(key)
            results = await perform([argument for argument, _ in waiting])
            self._waiting -= len(waiting)
            for (_, future), result in zip(waiting, results, strict=True):
                future.set_result(result)


class _Bound(Database):
    """The database of the steps."""

    def __init__(self, transaction: Database, conductor: _Conductor) -> None:
        super().__init__(
            transaction.client,
            transaction.name,
            clock=transaction.clock,
            state=transaction.state,
            session=transaction.session,
            entry_keys=transaction.entry_keys,
            audit_uri=transaction.audit_uri,
            business=transaction.business,
        )
        self._transaction = transaction
        self._conductor = conductor
        self.forget = transaction.forget  # type: ignore[method-assign]  # evicted at the end of the transaction

    def __getitem__(self, spec: Collection[D]) -> TypedCollection[D]:
        found = self._collections.get(spec.name)
        if found is None:
            found = _InStep(spec, self.raw[spec.name], self.clock, self.session, self.forget)
            found.conductor = self._conductor
            self._collections[spec.name] = found
        return found

    async def together(self, perform: Callable[[Database, list[A]], Awaitable[Sequence[T]]], argument: A) -> T:
        key = ("together", perform)
        return cast("T", await self._conductor.together(key, lambda some: perform(self._transaction, some), argument))


class _InStep(TypedCollection[D]):
    """Operations on one document, which are grouped. Any other is performed by itself."""

    __slots__ = ("conductor",)
    conductor: _Conductor

    async def insert(self, document: D) -> D:
        raw = self._codec.encode(document, self._now_naive())
        await self.insert_encoded([raw])
        self._changed(raw)
        return self._codec.decode(raw)

    async def insert_encoded(self, raws: list[dict[str, Any]], *, ordered: bool = True) -> None:  # noqa: ARG002 (in a transaction all are inserted, or none)
        if raws:
            await self._together("insert", self._insert_lists, raws)

    async def patch(self, where: Filter, update: updates.Update, *, deleted: bool = False) -> bool:
        request = UpdateOne(self._where(where, deleted), updates.build(self.spec, update, self._clock.now()))
        matched = await self._together("patch", self._patch_all, request)
        self._changed(where)
        return bool(matched)

    async def patch_many(self, where: Filter, update: updates.Update, *, deleted: bool = False) -> int:
        request = UpdateMany(self._where(where, deleted), updates.build(self.spec, update, self._clock.now()))
        result: int = await self._together("patch many", self._patch_every, request)
        self._changed(where)
        return result

    async def delete_many(self, where: Filter) -> int:
        result: int = await self._together("delete many", self._delete_every, DeleteMany(self._set(where)))
        return result

    async def rewrite(self, where: Filter, update: Any, **options: Any) -> bool:
        if options:
            return await super().rewrite(where, update, **options)
        matched = await self._together("patch", self._patch_all, UpdateOne(self._where(where, False), update))
        self._changed(where)
        return bool(matched)

    async def find_one(
        self, where: Filter, *, into: type[Any] | None = None, deleted: bool = False, sort: Any = None
    ) -> Any:
        final = self._where(where, deleted)
        named = isinstance(final.get("_id"), _SCALARS)
        if sort is not None or not named:
            return await super().find_one(where, into=into, deleted=deleted, sort=sort)  # type: ignore[arg-type]  # an overload
        key = ("find", into, *sorted(final))
        raw = await self._together(key, lambda some: self._find_all(some, into), final)
        return None if raw is None else (self._codec if into is None else codec_of(into)).decode(raw)

    async def find_and_patch(self, where: Filter, update: updates.Update, **options: Any) -> Any:
        if any(options.values()) or not isinstance(where.get("_id"), _SCALARS):
            return await super().find_and_patch(where, update, **options)
        if not await self.patch(where, update):
            return None
        names = {"_id", *(name for name, _ in self.spec.shard_key.fields)}
        return await self.find_one({name: where[name] for name in names if name in where}, deleted=True)

    # Inside

    async def _together(self, kind: Hashable, perform: Perform, argument: Any) -> Any:
        return await self.conductor.together((self.spec.name, kind), perform, argument)

    async def _run(self, operation: Awaitable[T], *, sent: Any = ()) -> T:
        """An operation that is not grouped: no other command is sent meanwhile."""

        async def perform(_: list[Any]) -> list[T]:
            return [await super(_InStep, self)._run(operation, sent=sent)]

        try:
            return cast("T", await self.conductor.together(object(), perform, None))
        finally:
            if asyncio.iscoroutine(operation):
                operation.close()  # it was not performed if the transaction was aborted before

    async def _alone(self, operation: Awaitable[T], *, sent: Any = ()) -> T:
        return await super()._run(operation, sent=sent)

    async def _insert_lists(self, lists: list[list[dict[str, Any]]]) -> list[None]:
        raws = [raw for raws in lists for raw in raws]
        await self._alone(self.raw.insert_many(raws, session=self._session), sent=raws)
        return [None] * len(lists)

    async def _patch_all(self, requests: list[UpdateOne]) -> list[bool]:
        result = await self._alone(self.raw.bulk_write(requests, ordered=False, session=self._session))
        if len(requests) == 1:
            return [result.matched_count == 1]
        if result.matched_count != len(requests):
            raise OutOfStep(f"Not every update of {self.spec.name} matched")
        return [True] * len(requests)

    async def _patch_every(self, requests: list[UpdateMany]) -> list[int]:
        result = await self._alone(self.raw.bulk_write(requests, ordered=False, session=self._session))
        return [result.matched_count] * len(requests)

    async def _delete_every(self, requests: list[DeleteMany]) -> list[int]:
        result = await self._alone(self.raw.bulk_write(requests, ordered=False, session=self._session))
        return [result.deleted_count] * len(requests)

    async def _find_all(self, filters: list[dict[str, Any]], into: type[Any] | None) -> list[dict[str, Any] | None]:
        varied = _varied(filters)
        if varied is None:
            found = [await self._first(where, into) for where in filters]
            return [each[0] if each else None for each in found]
        merged = filters[0] | {name: {"$in": list({where[name] for where in filters})} for name in varied}
        by_id = {raw["_id"]: raw for raw in await self._first(merged, into, limit=0)}
        return [
            raw
            if (raw := by_id.get(where["_id"])) is not None and all(raw.get(n) == where[n] for n in varied)
            else None
            for where in filters
        ]

    async def _first(self, where: dict[str, Any], into: type[Any] | None, limit: int = 1) -> list[dict[str, Any]]:
        cursor = self.raw.find(where, projection_of(into), limit=limit, batch_size=_BATCH, session=self._session)
        return await self._alone(cursor.to_list())


def _varied(filters: list[dict[str, Any]]) -> set[str] | None:
    """The fields whose values differ; None where they cannot be merged."""
    first = filters[0]
    varied = {name for name in first if any(where[name] != first[name] for where in filters)}
    values: list[Any] = [where[name] for where in filters for name in varied]
    mergeable = all(isinstance(value, _SCALARS) for value in values)
    distinct = len({where["_id"] for where in filters}) == len(filters)
    return varied if mergeable and distinct else None
