"""Pages of a search: projects whose names match come before those whose descriptions do,
and newer ones first.

One command reads the projects that have the longest word's key, of which most users have few, and the server
sorts the matches. If there are many, names and descriptions are read concurrently, each in the order of the
index of `searchKeys`, until the page is full. Several words are searched by the key of the rarest. The
commands name the index, because the server would otherwise reuse its choice for other words and other users.
"""

import asyncio
from typing import Any, TypeVar

import cachebox
import msgspec
from bson import ObjectId

from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.pages import LATEST, Cursors, Order, beyond, check_size
from ximler.database.reading import projection_of
from ximler.projects import search
from ximler.schema.document import Created, Identified
from ximler.schema.project import BY_KEY

__all__ = ["page", "sorted_page"]

V = TypeVar("V", bound=Created)
_FEW = 600  # projects that the server sorts
_MOST = 1500  # keys that are counted

# Users who had more than a few matches of a word: their searches walk the index.
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
    def named(self) -> dict[str, Any]:
        return _named(self.words)

    @property
    def in_names(self) -> dict[str, Any]:
        return {"$and": [self.mine, self.named]}

    @property
    def elsewhere(self) -> dict[str, Any]:
        return {**self.mine, **search.condition(self.query), "$nor": [self.named]}


async def page(
    database: Database, mine: dict[str, Any], query: str, *, into: type[V], first: int, after: Position | None
) -> Page[V]:
    """The projects of the filter `mine` that match a query with words. Raises Invalid for a wrong `first`.

    One command, and one more after a cursor. For users with many matches, two concurrent ones, after one for
    each word if there are several.
    """
    check_size(first)
    words, owner = search.words(query), mine["userId"]
    names_passed = False
    if after is not None:
        place = {"_id": after[1], "userId": owner, **_named(words)}
        names_passed = await database.projects.find_one(place, into=Identified, deleted=True) is None
    asked = _Asked(mine, query, words, first, after, names_passed)
    # The page of a collection continues at any stored time.
    at_once = owner not in _with_many and (after is None or not LATEST.is_inexact(after))
    if at_once and (found := await _at_once(database, asked, into)) is not None:
        return found
    return await _in_order(database, asked, into)


async def sorted_page(
    database: Database, mine: dict[str, Any], query: str, *, into: type[V], first: int, after: Any, order: Order
) -> Page[V]:
    """As `page`, but in an order that does not depend on the words.

    Concurrent commands, one for each word, then one more. Few matches are sorted. For many, the index of the
    order is scanned, which fills a page after few documents.
    """
    count, rarest = await _rarest(database, mine["userId"], search.words(query))
    where, hint = {**mine, **search.condition(query)}, None
    if count < _FEW or order is LATEST:
        where, hint = {"$and": [where, search.keyed(rarest)]}, BY_KEY
    return await database.projects.page(where, into=into, first=first, after=after, order=order, hint=hint)


async def _at_once(database: Database, asked: _Asked, into: type[V]) -> Page[V] | None:
    """The page by one command; None if the word has many matches, or a document is unreadable."""
    owner, limit = asked.mine["userId"], asked.first + 1
    parts = [asked.elsewhere] if asked.names_passed else [asked.in_names, asked.elsewhere]
    if asked.after is not None:
        parts[0] = {"$and": [parts[0], beyond(asked.after, "createdAt")]}
    ending = [
        {"$sort": dict(LATEST.sort)},
        {"$limit": limit},
        {"$project": {**(projection_of(into) or {}), "createdAt": 1}},
    ]
    pages = {f"page{n}": [{"$match": {"deletedAt": None, **part}}, *ending] for n, part in enumerate(parts)}
    rows = await database.projects.aggregate(
        [
            {"$match": {"userId": owner, **search.keyed(max(asked.words, key=len))}},
            {"$limit": _FEW + 1},
            {"$facet": {"read": [{"$count": "n"}], **pages}},
            # A document of its own for each: together they might be larger than a document may be.
            {"$project": {"read": {"$first": "$read.n"}, "found": {"$concatArrays": [f"${name}" for name in pages]}}},
            {"$unwind": {"path": "$found", "preserveNullAndEmptyArrays": True}},
        ],
        hint=BY_KEY,
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


async def _in_order(database: Database, asked: _Asked, into: type[V]) -> Page[V]:
    first = asked.first
    rarest = asked.words[0]
    if len(asked.words) > 1:
        _, rarest = await _rarest(database, asked.mine["userId"], asked.words)

    async def found(where: dict[str, Any], position: Position | None, *, name: bool = False) -> Page[V]:
        where = {"$and": [where, search.keyed(rarest, name=name)]}
        return await database.projects.page(where, into=into, first=first, after=position, hint=BY_KEY)

    if asked.names_passed:
        return await found(asked.elsewhere, asked.after)
    top, rest = await asyncio.gather(found(asked.in_names, asked.after, name=True), found(asked.elsewhere, None))
    room = first - len(top.items)
    return Page(
        [*top.items, *rest.items[:room]],
        [*top.cursors, *rest.cursors[:room]],
        has_next=top.has_next or rest.has_next or len(rest.items) > room,
    )


def _named(words: list[str]) -> dict[str, Any]:
    return search.having([search.in_name(word) for word in words])


async def _rarest(database: Database, owner: Any, words: list[str]) -> tuple[int, str]:
    """The word whose key the fewest projects have, and how many, without reading them."""
    counts = await asyncio.gather(
        *(
            database.projects.count_keys({"userId": owner, "searchKeys": search.key(word)}, most=_MOST, index=BY_KEY)
            for word in words
        )
    )
    return min(zip(counts, words, strict=True), key=lambda each: (each[0], -len(each[1])))
