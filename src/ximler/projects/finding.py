"""Pages of a search: projects whose names match come before those whose descriptions do, and newer ones first.

An index cannot return prefixes in the order of time. The index of terms finds all matches of the rarest word, which the
server puts in order; if they are many, the list's index is walked from its newest end, where a page is full after few
documents. The index is named, because the server's planner tries both, and remembers its choice for other users.
"""

import asyncio
from typing import Any, TypeVar

from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.projects import search
from ximler.schema.document import Created, Identified
from ximler.schema.project import BY_TERM, NEWEST

__all__ = ["page"]

V = TypeVar("V", bound=Created)
_FEW = 600  # matches of a word
_FEW_OF_SEVERAL = 1500  # of the rarest of several words: few of them have the others, too


async def page(
    database: Database, mine: dict[str, Any], query: str, *, into: type[V], first: int, after: Position | None
) -> Page[V]:
    """The projects of the filter `mine` that match a query with words. Raises Invalid for a wrong `first`.

    A command for each word at once, and then two at once; for frequent words up to two more of each. One more after a cursor.
    """
    words, index = await _plan(database, mine, search.words(query))
    named = [search.in_name(word) for word in words]
    in_names = {**mine, **search.having(named)}
    elsewhere = {**mine, **search.condition(query, words), "$nor": [search.having(named)]}

    async def found(where: dict[str, Any], position: Position | None, index: str) -> Page[V]:
        return await database.projects.page(where, into=into, first=first, after=position, hint=index)

    if after is not None:
        place = {"_id": after[1], "userId": mine["userId"], **search.having(named)}
        if await database.projects.find_one(place, into=Identified, deleted=True) is None:  # the names are passed
            return await found(elsewhere, after, index)
    if index == BY_TERM:
        top, rest = await asyncio.gather(found(in_names, after, index), found(elsewhere, None, index))
    else:
        ordered, names_index = await _plan(database, mine, named)
        top = await found({**mine, **search.having(ordered)}, after, names_index)
        if top.has_next:
            return top
        rest = await found(elsewhere, None, index)
    room = first - len(top.items)
    return Page(
        [*top.items, *rest.items[:room]],
        [*top.cursors, *rest.cursors[:room]],
        has_next=top.has_next or rest.has_next or len(rest.items) > room,
    )


async def _plan(database: Database, mine: dict[str, Any], terms: list[str]) -> tuple[list[str], str]:
    """The terms, the rarest first, because the first condition decides which part of the index is read; and the index."""
    few = _FEW if len(terms) == 1 else _FEW_OF_SEVERAL
    owner = {"userId": mine["userId"]}
    counts = await asyncio.gather(
        *(database.projects.count_keys({**owner, **search.having([term])}, most=few, index=BY_TERM) for term in terms)
    )
    ordered = [term for _, term in sorted(zip(counts, terms, strict=True))]
    return ordered, BY_TERM if min(counts) < few else NEWEST
