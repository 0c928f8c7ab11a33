"""Pages of a search: projects whose names match come before those whose descriptions do, and newer ones first.

An index cannot return prefixes in the order of time. One command therefore reads the projects with the longest word, of
which most users have few, and the server sorts the matches. Where there are many, the words' keys in the index are counted
first. For a frequent word the list's index is walked from its newest end, where a page is full after few documents. The
keys of any other word have the times of creation: they are sorted, and only the documents of the page are read. Of several
words the documents with the rarest are read, because the server compares only one word with the keys. The index is named,
because the server's planner tries both, and remembers its choice for other users.
"""

import asyncio
from typing import Any, Generic, TypeVar

import cachebox
import msgspec
from bson import ObjectId

from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.reading import Cursors, beyond, check_size, projection_of
from ximler.projects import search
from ximler.schema.document import Created, Identified
from ximler.schema.project import BY_TERM, NEWEST

__all__ = ["page"]

V = TypeVar("V", bound=Created)
_FEW = 600  # matches of a word
_FREQUENT = 2000  # keys of a word
_SPARE = 20  # candidates beyond a page, for those that are deleted
_LATEST = {"createdAt": -1, "_id": -1}

# Users who had more than a few matches of a word: their searches begin with the counts.
_with_many: "cachebox.TTLCache[ObjectId, bool]" = cachebox.TTLCache(10_000, 3600.0)


class _Asked(msgspec.Struct, frozen=True):
    """A search, and how much of it."""

    mine: dict[str, Any]
    query: str
    words: list[str]
    first: int
    after: Position | None
    names_passed: bool  # the cursor is behind the names that match

    @property
    def owner(self) -> dict[str, Any]:
        return {"userId": self.mine["userId"]}

    @property
    def named(self) -> dict[str, Any]:
        return search.having(_named(self.words))

    def in_names(self, ordered: list[str]) -> dict[str, Any]:
        return {"$and": [self.mine, search.having(ordered)]}

    def elsewhere(self, ordered: list[str]) -> dict[str, Any]:
        return {**self.mine, **search.condition(self.query, ordered), "$nor": [self.named]}


async def page(
    database: Database, mine: dict[str, Any], query: str, *, into: type[V], first: int, after: Position | None
) -> Page[V]:
    """The projects of the filter `mine` that match a query with words. Raises Invalid for a wrong `first`.

    One command, and one more after a cursor. For users with many matches three steps of a few commands at once.
    """
    check_size(first)
    words, owner = search.words(query), mine["userId"]
    names_passed = False
    if after is not None:
        place = {"_id": after[1], "userId": owner, **search.having(_named(words))}
        names_passed = await database.projects.find_one(place, into=Identified, deleted=True) is None
    asked = _Asked(mine, query, words, first, after, names_passed)
    if owner not in _with_many and (found := await _at_once(database, asked, into)) is not None:
        return found
    return await _by_counts(database, asked, into)


async def _at_once(database: Database, asked: _Asked, into: type[V]) -> Page[V] | None:
    """The page by one command; None if the word has many matches, or a document is unreadable."""
    owner, limit = asked.mine["userId"], asked.first + 1
    top, rest = asked.in_names(_named(asked.words)), asked.elsewhere(asked.words)
    parts = [rest] if asked.names_passed else [top, rest]
    if asked.after is not None:
        parts[0] = {"$and": [parts[0], beyond(asked.after, "createdAt")]}
    ending = [{"$sort": _LATEST}, {"$limit": limit}, {"$project": _fields(into)}]
    pages = {f"page{n}": [{"$match": {"deletedAt": None, **part}}, *ending] for n, part in enumerate(parts)}
    rows = await database.projects.aggregate(
        [
            {"$match": {"userId": owner, **search.having_or_none(max(asked.words, key=len))}},
            {"$limit": _FEW + 1},
            {"$facet": {"read": [{"$count": "n"}], **pages}},
            # A document of its own for each: together they might be larger than a document may be.
            {"$project": {"read": {"$first": "$read.n"}, "found": {"$concatArrays": [f"${name}" for name in pages]}}},
            {"$unwind": {"path": "$found", "preserveNullAndEmptyArrays": True}},
        ],
        hint=BY_TERM,
    )
    if rows[0].get("read", 0) > _FEW:
        _with_many[owner] = True
        return None
    raws = [row["found"] for row in rows if "found" in row][:limit]
    places = [(raw.get("createdAt"), raw["_id"]) for raw in raws]  # decoding consumes the dicts
    items = database.projects.readable(raws, into=into)
    if len(items) < len(raws):
        return None
    return Page(items[: asked.first], Cursors(places[: asked.first]), has_next=len(items) > asked.first)


async def _by_counts(database: Database, asked: _Asked, into: type[V]) -> Page[V]:
    names = _named(asked.words)
    *counts, foreign = await asyncio.gather(
        *(_count(database, asked, search.having([term]), _FREQUENT) for term in [*names, *asked.words]),
        _count(database, asked, {"searchTerms": None}, 1),
    )
    top = _Part(database, asked, into, names, counts[: len(names)], complete=True)
    rest = _Part(database, asked, into, asked.words, counts[len(names) :], complete=not foreign, but=asked.named)
    if asked.names_passed:
        return await rest.page(asked.after)
    if top.least > asked.first + _SPARE:
        first = await top.page(asked.after)
        if first.has_next:
            return first
        then = await rest.page(None)
    else:
        first, then = await asyncio.gather(top.page(asked.after), rest.page(None))
    room = asked.first - len(first.items)
    return Page(
        [*first.items, *then.items[:room]],
        [*first.cursors, *then.cursors[:room]],
        has_next=first.has_next or then.has_next or len(then.items) > room,
    )


async def _count(database: Database, asked: _Asked, where: dict[str, Any], most: int) -> int:
    return await database.projects.count_keys({**asked.owner, **where}, most=most, index=BY_TERM)


class _Part(Generic[V]):
    """The matches in names, or all others. `complete`: all of them have terms."""

    def __init__(
        self,
        database: Database,
        asked: _Asked,
        into: type[V],
        terms: list[str],
        counts: list[int],
        *,
        complete: bool,
        but: dict[str, Any] | None = None,
    ) -> None:
        self._database, self._asked, self._into = database, asked, into
        self.least, self._rarest = min(zip(counts, terms, strict=True))
        # The first condition decides which part of the index is read.
        ordered = [term for _, term in sorted(zip(counts, terms, strict=True))]
        having = search.having(ordered) if complete else search.condition(asked.query, ordered)
        self._where = {"$and": [asked.mine, having, *([] if but is None else [{"$nor": [but]}])]}
        self._complete = complete

    async def page(self, after: Position | None) -> Page[V]:
        alone = self._complete and len(self._asked.words) == 1
        if self.least < _FREQUENT and alone and (found := await self._by_keys(after)) is not None:
            return found
        hint = BY_TERM if self.least < _FREQUENT else NEWEST
        first = self._asked.first
        return await self._database.projects.page(self._where, into=self._into, first=first, after=after, hint=hint)

    async def _by_keys(self, after: Position | None) -> Page[V] | None:
        """The page; None if too many of the newest candidates are none of its projects."""
        asked, projects = self._asked, self._database.projects
        keys: dict[str, Any] = {**asked.owner, **search.having([self._rarest])}
        if after is not None:
            keys = {"$and": [keys, beyond(after, "createdAt")]}
        limit = asked.first + 1 + _SPARE
        found = await projects.aggregate(
            [{"$match": keys}, {"$sort": _LATEST}, {"$limit": limit}, {"$project": {"createdAt": 1}}], hint=BY_TERM
        )
        if not found:
            return Page([], [], has_next=False)
        ids = [each["_id"] for each in found]
        where = {"deletedAt": None, **asked.owner, "_id": {"$in": ids}, **self._where}
        read = await projects.aggregate([{"$match": where}, {"$project": _fields(self._into)}], hint="_id_")
        raws = {each["_id"]: each for each in read}
        page = _page(self._database, [raws[each] for each in ids if each in raws], asked.first, self._into)
        return None if len(found) == limit and not page.has_next else page


def _page(database: Database, raws: list[dict[str, Any]], first: int, into: type[V]) -> Page[V]:
    """A page of the first documents that can be read."""
    items: list[V] = []
    places: list[tuple[Any, Any]] = []
    for raw in raws:
        place = (raw.get("createdAt"), raw["_id"])  # decoding consumes the dict
        for item in database.projects.readable([raw], into=into):
            items.append(item)
            places.append(place)
        if len(items) > first:
            break
    return Page(items[:first], Cursors(places[:first]), has_next=len(items) > first)


def _fields(into: type[Created]) -> dict[str, int]:
    return {**(projection_of(into) or {}), "createdAt": 1}


def _named(words: list[str]) -> list[str]:
    return [search.in_name(word) for word in words]
