"""Caches of values read from the database, invalidated by the change feed.

An entry depends on documents, named by tags: `("users", id)`. A write to one of them, reported by the change
feed, evicts the entry. Entries do not expire by time. An entry is used only while the feed is fresh;
otherwise reads go to the database, so a cut or frozen connection costs speed and never serves a revoked
credential.

A read that overlaps with a change of one of its documents may have seen the old document: its value is used
once and not cached. The same holds for a read that began while the feed was not fresh, and for a read across
a gap.

Values never go back. A read past the cache, while the feed is not fresh, may bring a newer value than the
entry: the entry is evicted, so that a key that was refused once is not accepted again when the feed recovers.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from cachebox import LRUCache

from ximler.database.changes import Change, Feed

__all__ = ["ABSENT", "Cache", "Tag", "Watch"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Tag = tuple[str, Any]
_MOST_RECENT = 10_000  # evicted tags kept for concurrent reads: far more than change during one read


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """A collection that entries depend on.

    `by` is a field that documents are looked up by beside their `_id`: writing it evicts `(collection, its
    value)`, so that a key cached as absent is read again once it is inserted. Updates of only `indifferent`
    fields evict nothing.
    """

    collection: str
    by: str | None = None
    indifferent: frozenset[str] = frozenset()


class _Absent:
    """Cached knowledge that the key has no value."""


ABSENT = _Absent()
Load = Callable[[K], Awaitable[tuple[V | None, Sequence[Tag]]]]


class Cache(Generic[K, V]):
    """At most `entries` values and, separately, `absent` keys known to have none; the least recently used go
    first.
    """

    def __init__(self, feed: Feed, watches: Sequence[Watch], *, entries: int = 20_000, absent: int = 10_000) -> None:
        self._feed = feed
        self._watches = {watch.collection: watch for watch in watches}
        self._present: LRUCache[K, Any] = LRUCache(entries)
        self._missing: LRUCache[K, Any] = LRUCache(absent)
        self._keys: dict[Tag, set[K]] = {}
        self._recent: dict[Tag, int] = {}  # time of eviction, for concurrent reads
        self._reading = 0
        self._moment = 0
        self._void_before = 0
        feed.subscribe(self._watches, self._heard)
        feed.on_forget(self._forget)
        feed.on_gap(self.clear)

    def __len__(self) -> int:
        return len(self._present) + len(self._missing)

    def peek(self, key: K) -> V | _Absent | None:
        """The cached value, ABSENT, or None when it must be loaded. No I/O."""
        if not self._feed.fresh:
            return None
        found = self._present.get(key)
        if found is not None:
            value: V = found[0]
            return value
        return ABSENT if key in self._missing else None

    async def get(self, key: K, load: Load[K, V]) -> V | None:
        """The cached value, or the result of `load`.

        `load` reads the primary, outside any transaction, and returns the value with its tags, also for None.
        """
        known = self.peek(key)
        if known is not None:
            return None if isinstance(known, _Absent) else known
        began, listening = self._moment, self._feed.fresh
        self._reading += 1
        try:
            value, tags = await load(key)
        finally:
            self._reading -= 1
            recent = self._recent
            if not self._reading:
                self._recent = {}
        if listening and began >= self._void_before and all(recent.get(tag, 0) <= began for tag in tags):
            self._keep(key, value, tags)
        elif not listening:
            self._drop(key)
            for collection, name in tags:
                self._evict(collection, name)
        return value

    def clear(self) -> None:
        """Evict everything; the results of concurrent reads are not cached."""
        self._moment += 1
        self._void_before = self._moment
        self._present.clear()
        self._missing.clear()
        self._keys.clear()
        self._recent.clear()

    def _keep(self, key: K, value: V | None, tags: Sequence[Tag]) -> None:
        self._drop(key)
        shelf: LRUCache[K, Any] = self._missing if value is None else self._present
        if shelf.is_full():
            oldest, (_, stood_on) = shelf.popitem()
            self._unlink(oldest, stood_on)
        shelf.insert(key, (value, tags))
        for tag in tags:
            self._keys.setdefault(tag, set()).add(key)

    def _drop(self, key: K) -> None:
        shelf: LRUCache[K, Any]
        for shelf in (self._present, self._missing):
            found = shelf.pop(key, None)
            if found is not None:
                self._unlink(key, found[1])

    def _unlink(self, key: K, tags: Sequence[Tag]) -> None:
        for tag in tags:
            keys = self._keys.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys[tag]

    def _heard(self, change: Change) -> None:
        watch = self._watches[change.collection]
        if change.operation == "update":
            # A change of a sub-document's field is reported by its path.
            touched = {path.partition(".")[0] for path in (*change.updated, *change.removed)}
            if touched and touched <= watch.indifferent:
                return
        self._evict(change.collection, change.id)
        if watch.by is not None:
            value = (change.document or change.updated).get(watch.by)
            if value is not None:
                self._evict(change.collection, value)

    def _forget(self, collection: str, name: Any) -> None:
        if collection in self._watches:
            self._evict(collection, name)

    def _evict(self, collection: str, name: Any) -> None:
        tag = (collection, name)
        self._moment += 1
        if self._reading:
            self._recent[tag] = self._moment
            if len(self._recent) > _MOST_RECENT:
                self._recent.clear()
                self._void_before = self._moment
        for key in list(self._keys.get(tag, ())):
            self._drop(key)
