"""Seeds: documents that a new database starts with. Their owners define them; `ximler.setup` passes them in.

A database of ours gets each seed once. The stamp remembers the seeds that were inserted, so one that an
operator deleted is not restored at the next start.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Collection as Some
from datetime import datetime
from typing import Any

import msgspec

from ximler.database.connection import Database
from ximler.database.failures import DocumentExists
from ximler.schema.document import Collection, Document

__all__ = ["Seeds", "insert", "missing"]


class Seeds(msgspec.Struct, frozen=True, kw_only=True):
    """The seeds of one collection. `key` is the unique field that identifies one; `make` takes the time of
    insertion.
    """

    collection: Collection[Any]
    key: str
    make: Callable[[datetime], Sequence[Document]]
    needed: bool = False  # Ximler needs at least one of them

    def names(self, now: datetime) -> dict[str, Document]:
        return {getattr(document, self.key): document for document in self.make(now)}

    def label(self, name: str) -> str:
        return f"{self.collection.name}:{name}"


async def missing(database: Database, seeds: Iterable[Seeds], *, known: Some[str] = ()) -> dict[str, list[str]]:
    """The names of absent seeds by collection, without the `known` labels. One query a collection."""
    absent = {}
    for some in seeds:
        wanted = some.names(database.clock.now())
        there = {
            raw[some.key]
            async for raw in database.raw[some.collection.name].find({some.key: {"$in": list(wanted)}}, {some.key: 1})
        }
        absent[some.collection.name] = [n for n in wanted if n not in there and some.label(n) not in known]
    return absent


async def insert(database: Database, seeds: Iterable[Seeds], *, known: Some[str] = ()) -> dict[str, list[str]]:
    """Insert the absent seeds, without the `known` labels; returns the names of the new ones by collection.

    Existing documents stay as they are. Safe to race: a unique index decides.
    """
    seeds = tuple(seeds)
    inserted: dict[str, list[str]] = {}
    for some in seeds:
        wanted = some.names(database.clock.now())
        new = inserted.setdefault(some.collection.name, [])
        for name in (await missing(database, [some], known=known))[some.collection.name]:
            try:
                await database[some.collection].insert(wanted[name])
            except DocumentExists:
                continue
            new.append(name)
    return inserted
