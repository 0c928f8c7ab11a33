"""Typed collections: documents in and out as Structs, at driver speed. Reading is in `reading`, writing here.

Every write stamps `createdAt` and `updatedAt` by the server's clock, applies setters, checks types and
updates only the fields that it names. Unique violations raise `DocumentExists`, a lost database
`DatabaseUnavailable`. Filters and updates are MongoDB's own, with MongoDB's field names.
"""

import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, overload

from bson import Regex
from pymongo import ReturnDocument, UpdateOne

from ximler.core.clock import EPOCH
from ximler.database import updates
from ximler.database.codec import Codec, codec_of
from ximler.database.failures import DocumentExists
from ximler.database.pages import MAX_PAGE, Page, T
from ximler.database.reading import D, Filter, ReadableCollection, Sort, V, projection_of

__all__ = ["MAX_PAGE", "Page", "TypedCollection"]

_AT_ONCE = 5_000


class TypedCollection(ReadableCollection[D]):
    """`database[USERS]` or `database.users`. Cheap to make;
    a view inside a transaction carries its session."""

    __slots__ = ()

    async def insert(self, document: D) -> D:
        """Insert a document and return it as stored. Raises Invalid, DocumentExists."""
        raw = self._codec.encode(document, self._now_naive())
        await self._run(self.raw.insert_one(raw, session=self._session), sent=(raw,))
        self._changed(raw)
        return self._codec.decode(raw)

    async def insert_many(self, documents: Iterable[D], *, ordered: bool = True) -> int:
        """Insert many; returns how many. All are checked before the first is sent."""
        now, encode = self._now_naive(), self._codec.encode
        raws = [encode(document, now) for document in documents]
        await self.insert_encoded(raws, ordered=ordered)
        return len(raws)

    async def insert_encoded(self, raws: list[dict[str, Any]], *, ordered: bool = True) -> None:
        """Insert documents that the collection's codec has encoded."""
        if raws:
            await self._run(self.raw.insert_many(raws, ordered=ordered, session=self._session), sent=raws)

    async def insert_each(self, documents: Sequence[D]) -> list[bool]:
        """Insert those that no unique index rejects;
        returns for each whether it was inserted. One command."""
        try:
            await self.insert_many(documents, ordered=False)
        except DocumentExists as some:
            return [position not in some.positions for position in range(len(documents))]
        return [True] * len(documents)

    async def patch(self, where: Filter, update: updates.Update, *, deleted: bool = False) -> bool:
        """Update the first match; False when there is none. Guards in the filter make it compare-and-swap."""
        built = updates.build(self.spec, update, self._clock.now())
        final = self._where(where, deleted)
        result = await self._update(final, self.raw.update_one(final, built, session=self._session))
        return result.matched_count == 1

    async def patch_many(self, where: Filter, update: updates.Update, *, deleted: bool = False) -> int:
        """Update every match; returns how many. Not retried by the driver when a connection breaks."""
        built = updates.build(self.spec, update, self._clock.now())
        final = self._where(where, deleted)
        result = await self._update(final, self.raw.update_many(final, built, session=self._session))
        return result.matched_count

    async def upsert(self, where: Filter, update: updates.Update, *, fresh: D) -> bool:
        """Update the match, or insert `fresh` with the update in place of its own values. True when it was
        inserted.

        The filter's equalities are inserted as well. Raises DocumentExists if the insert meets a unique
        index: the document is soft-deleted, another process inserted it at the same moment, or the filter's
        guards exclude it.
        """
        final, built = self._upsertion(where, update, fresh, self._clock.now())
        result = await self._update(final, self.raw.update_one(final, built, upsert=True, session=self._session))
        return result.upserted_id is not None

    async def patch_each(self, changes: Iterable[tuple[Filter, updates.Update]]) -> int:
        """Each update on the first match of its own filter, unordered, with one command; returns how many
        matched.

        A lost connection may leave some of them applied: a guard in each filter makes the batch safe to
        repeat.
        """
        now = self._clock.now()
        return await self._each(
            [UpdateOne(self._where(where, False), updates.build(self.spec, update, now)) for where, update in changes]
        )

    async def upsert_each(self, changes: Iterable[tuple[Filter, updates.Update, D]]) -> int:
        """As `patch_each`; without a match, the third is inserted with the
        update in place of its own values."""
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

        Outside a transaction the server stores an image of the whole document for retries: prefer `patch` for
        large documents.
        """
        codec: Codec[Any] = self._codec if into is None else codec_of(into)
        built = updates.build(self.spec, update, self._clock.now())
        final = self._where(where, deleted)
        raw = await self._update(
            final,
            self.raw.find_one_and_update(
                final,
                built,
                projection=projection_of(into),
                sort=sort,
                return_document=ReturnDocument.BEFORE if before else ReturnDocument.AFTER,
                session=self._session,
            ),
        )
        return None if raw is None else codec.decode(raw)

    async def recompute(self, where: Filter, stages: Sequence[Mapping[str, Any]], *, upsert: bool = False) -> D | None:
        """Update the match by an aggregation pipeline and return it as it was *before*.

        With `upsert` an absent document is inserted from the filter and the pipeline, and None is returned.
        Nothing is checked or stamped: for counters whose next value follows from their last, in collections
        of ours.
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
        """Each pipeline on the match of its own filter, unordered, with one command; returns how many
        matched.

        As with `recompute`, nothing is checked or stamped. As with `patch_each`, the batch must be safe to
        send again.
        """
        return await self._each(
            [UpdateOne(self._where(where, False), list(stages), upsert=upsert) for where, stages in changes]
        )

    async def rewrite(
        self,
        where: Filter,
        update: updates.Update | Sequence[Mapping[str, Any]],
        *,
        array_filters: Sequence[Mapping[str, Any]] | None = None,
    ) -> bool:
        """As `patch`, by operators or a pipeline that the caller has checked and stamped: for paths inside
        Mixed fields that `build` does not accept.
        """
        final = self._where(where, deleted=False)
        change = update if isinstance(update, Mapping) else list(update)
        changing = self.raw.update_one(final, change, array_filters=array_filters, session=self._session)
        return (await self._update(final, changing)).matched_count == 1

    async def delete(self, where: Filter) -> bool:
        """Delete the first match permanently, soft-deleted or not."""
        result = await self._run(self.raw.delete_one(self._set(where), session=self._session))
        self._changed(where)
        return result.deleted_count == 1

    async def delete_many(self, where: Filter) -> int:
        """Delete every match permanently, soft-deleted or not; returns how many."""
        result = await self._run(self.raw.delete_many(self._set(where), session=self._session))
        return result.deleted_count

    async def trim(self, most: int, *, where: Filter, order: Sort, by: str | None = None) -> int:
        """Delete the last of more than `most` matches, so that nine tenths of `most` remain; returns how
        many.

        With `by`, the first document of every value of that field comes before the second of any: documents
        of the values with the most documents are deleted. One command, more if there is something to delete.
        """
        if await self._run(self.raw.count_documents(where, limit=most + 1)) <= most:
            return 0
        stages: list[dict[str, Any]] = [{"$match": where}]
        if by is not None:
            rank = {"partitionBy": f"${by}", "sortBy": dict(order), "output": {"rank": {"$documentNumber": {}}}}
            stages.append({"$setWindowFields": rank})
            order = [("rank", 1), *order]
        stages += [{"$sort": dict(order)}, {"$skip": most * 9 // 10}, {"$project": {"_id": 1}}]
        ids = [row["_id"] for row in await self.aggregate(stages)]
        removed = 0
        for start in range(0, len(ids), _AT_ONCE):
            removed += await self.delete_many({**where, "_id": {"$in": ids[start : start + _AT_ONCE]}})
        return removed

    async def keep_only(
        self,
        where: Filter,
        fields: Sequence[str],
        values: Mapping[str, Any] | None = None,
        *,
        deleted: bool = False,
    ) -> int:
        """Remove every other field of the matches, and set `values`; returns how many. For erasing personal
        data only.

        Unlike every other update of ours it also removes fields of other applications, which may hold
        personal data.
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

    async def _update(self, where: Filter, operation: Awaitable[T]) -> T:
        result = await self._run(operation)
        self._changed(where)
        return result

    def _changed(self, where: Filter) -> None:
        """Evict the document from this process's caches at once, if the filter names one by `_id`."""
        name = where.get("_id")
        if name is not None and not isinstance(name, Mapping):
            self._forget(self.spec.name, name)

    def _now_naive(self) -> datetime:
        return self._clock.now().replace(tzinfo=None)


def _is_condition(value: Any) -> bool:
    """Whether a filter's value is more than an equality: an upsert does not insert it."""
    if isinstance(value, Mapping):
        return any(op.startswith("$") and op != "$eq" for op in value)
    return isinstance(value, re.Pattern | Regex)


def _undecided(defaults: Mapping[str, Any], decided: set[str], path: str = "") -> dict[str, Any]:
    """The defaults of undecided paths; of a partly decided sub-document, those of its other parts."""
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
