"""Pages of a search: projects whose names match come before those whose descriptions do,
and newer ones first.

An index cannot return prefixes in the order of time. One command therefore reads the projects with the
longest word, of which most users have few, and the server puts the matches in order. Where there are many,
the words' keys in the index are counted first. The matches of the rarest word are put in order if they are
few. Otherwise the list's index is walked from its newest end, where a page is full after few documents. The
index is named, because the server's planner tries both, and remembers its choice for other users.
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
from ximler.schema.project import BY_TERM, NEWEST

__all__ = ["page", "sorted_page"]

V = TypeVar("V", bound=Created)
_FEW = 600  # matches of a word
_FEW_OF_SEVERAL = 1500  # of the rarest of several words: few of them have the others, too
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

    def in_names(self, ordered: list[str]) -> dict[str, Any]:
        return {"$and": [self.mine, search.having(ordered)]}

    def elsewhere(self, ordered: list[str]) -> dict[str, Any]:
        return {**self.mine, **search.condition(self.query, ordered), "$nor": [search.having(_named(self.words))]}


async def page(
    database: Database, mine: dict[str, Any], query: str, *, into: type[V], first: int, after: Position | None
) -> Page[V]:
    """The projects of the filter `mine` that match a query with words. Raises Invalid for a wrong `first`.

    One command, and one more after a cursor. For users with many matches one for each word at once, and then
    two at once; for frequent words up to two more of each.
    """
    check_size(first)
    words, owner = search.words(query), mine["userId"]
    names_passed = False
    if after is not None:
        place = {"_id": after[1], "userId": owner, **search.having(_named(words))}
        names_passed = await database.projects.find_one(place, into=Identified, deleted=True) is None
    asked = _Asked(mine, query, words, first, after, names_passed)
    # The page of a collection continues at any stored time.
    at_once = owner not in _with_many and (after is None or not LATEST.is_inexact(after))
    if at_once and (found := await _at_once(database, asked, into)) is not None:
        return found
    return await _by_counts(database, asked, into)


async def sorted_page(
    database: Database, mine: dict[str, Any], query: str, *, into: type[V], first: int, after: Any, order: Order
) -> Page[V]:
    """As `page`, but in an order that does not depend on the words.
    One command for each word at once, and one."""
    ordered, index = await _plan(database, mine, search.words(query))
    where = {**mine, **search.condition(query, ordered)}
    hint = BY_TERM if index == BY_TERM else None
    return await database.projects.page(where, into=into, first=first, after=after, order=order, hint=hint)


async def _at_once(database: Database, asked: _Asked, into: type[V]) -> Page[V] | None:
    """The page by one command; None if the word has many matches, or a document is unreadable."""
    owner, limit = asked.mine["userId"], asked.first + 1
    top, rest = asked.in_names(_named(asked.words)), asked.elsewhere(asked.words)
    parts = [rest] if asked.names_passed else [top, rest]
    if asked.after is not None:
        parts[0] = {"$and": [parts[0], beyond(asked.after, "createdAt")]}
    ending = [{"$sort": _LATEST}, {"$limit": limit}, {"$project": {**(projection_of(into) or {}), "createdAt": 1}}]
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
    first = asked.first

    async def found(where: dict[str, Any], position: Position | None, index: str) -> Page[V]:
        return await database.projects.page(where, into=into, first=first, after=position, hint=index)

    ordered, index = await _plan(database, asked.mine, asked.words)
    elsewhere = asked.elsewhere(ordered)
    if asked.names_passed:
        return await found(elsewhere, asked.after, index)
    if index == BY_TERM:
        in_names = asked.in_names(_named(ordered))
        top, rest = await asyncio.gather(found(in_names, asked.after, index), found(elsewhere, None, index))
    else:
        named, names_index = await _plan(database, asked.mine, _named(asked.words))
        top = await found(asked.in_names(named), asked.after, names_index)
        if top.has_next:
            return top
        rest = await found(elsewhere, None, index)
    room = first - len(top.items)
    return Page(
        [*top.items, *rest.items[:room]],
        [*top.cursors, *rest.cursors[:room]],
        has_next=top.has_next or rest.has_next or len(rest.items) > room,
    )


def _named(words: list[str]) -> list[str]:
    return [search.in_name(word) for word in words]


async def _plan(database: Database, mine: dict[str, Any], terms: list[str]) -> tuple[list[str], str]:
    """The terms, the rarest first, because the first condition decides which part
    of the index is read; and the index."""
    few = _FEW if len(terms) == 1 else _FEW_OF_SEVERAL
    owner = {"userId": mine["userId"]}
    counts = await asyncio.gather(
        *(database.projects.count_keys({**owner, **search.having([term])}, most=few, index=BY_TERM) for term in terms)
    )
    ordered = [term for _, term in sorted(zip(counts, terms, strict=True))]
    return ordered, BY_TERM if min(counts) < few else NEWEST
