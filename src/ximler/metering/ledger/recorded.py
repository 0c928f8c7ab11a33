"""The ledger's part for recorded events, written only by settlements (see `metering.ledger.rows`).

A row's `metadata.recorded` has the units by the quota that they count against (`periods`, by the first day of
its period), and by the events' `sources`. These sums are the only record of amounts: stored events have none.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson import ObjectId
from msgspec import field

from ximler.database import Database
from ximler.metering.ledger import rows
from ximler.schema.document import Document, Mixed
from ximler.schema.usage import ResourceType

__all__ = ["MAX_SOURCES", "OTHER", "Sums", "add", "by_period"]

MAX_SOURCES = 16  # named per row; the others are summed as
OTHER = "other"
_IN_KEYS = str.maketrans({".": "_", "$": "_", "\0": "_"})  # MongoDB reads dots as paths and dollars as operators

# Units by source, per user and hour (since 1970).
Sums = Mapping[tuple[ObjectId, int], Mapping[str, int]]


class _Named(Document, kw_only=True):
    """The sources named in a row."""

    id: ObjectId = field(name="_id")
    metadata: Mixed = field(default_factory=dict[str, Any])


async def add(
    database: Database,
    resource: ResourceType,
    sums: Sums,
    *,
    number: int,
    periods: Mapping[tuple[ObjectId, int], datetime],
) -> None:
    """Add a settlement's units to the rows that lack it. Two round trips; idempotent.

    `periods` has, for each user and hour, the start of the period that it counts in. A row names at most
    `MAX_SOURCES` sources.
    """
    ids = {place: rows.row_id(place[0], resource, place[1]) for place in sums}
    # With the users, so that a cluster queries only their shards.
    which = {"_id": {"$in": list(ids.values())}, "userId": {"$in": list({user for user, _ in sums})}}
    found = await database.usage.find(which, into=_Named, hint="_id_")
    named = {row.id: _sources(row.metadata) for row in found}
    changes = []
    for (user, hour), by_source in sums.items():
        amount = sum(by_source.values())
        counts = {f"periods.{rows.day_of(periods[user, hour])}": amount}
        counts |= _by_source(by_source, named.get(ids[user, hour], set()))
        values: dict[str, Any] = {
            path: {"$add": [{"$ifNull": [f"$metadata.recorded.{path}", 0]}, units]} for path, units in counts.items()
        }
        values["through"] = number
        changes.append(
            rows.change(
                database,
                user,
                resource,
                hour,
                "recorded",
                gained=amount,
                values=values,
                unless_through={"$gte": number},
            )
        )
    await rows.apply(database, changes)


def by_period(metadata: Any) -> dict[str, int]:
    """The units of recorded events in a row's metadata, by the first day of the period that they count in."""
    found = rows.part_of(metadata, "recorded").get("periods")
    return {day: rows.whole(units) for day, units in found.items()} if isinstance(found, dict) else {}


def _sources(metadata: Any) -> set[str]:
    found = rows.part_of(metadata, "recorded").get("sources")
    return set(found) if isinstance(found, dict) else set()


def _by_source(by_source: Mapping[str, int], named: set[str]) -> dict[str, int]:
    more: dict[str, int] = {}
    for source, amount in by_source.items():
        name = source.translate(_IN_KEYS) or "unnamed"
        if name not in named and len(named) >= MAX_SOURCES:
            name = OTHER
        named.add(name)
        path = f"sources.{name}"
        more[path] = more.get(path, 0) + amount
    return more
