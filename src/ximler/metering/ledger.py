"""The ledger's rows of recorded events: one document of `usage` for a user, resource and hour, with a deterministic `_id`.

They are added to, by settlements alone; the rows of what leases served are others, derived from the quotas.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo import UpdateOne

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.schema.usage import ResourceType

__all__ = ["MAX_SOURCES", "OTHER", "add", "row_id"]

MAX_SOURCES = 16  # named in one row; the others are added up as
OTHER = "other"
_HOUR_MS = 3_600_000
_IN_KEYS = str.maketrans({".": "_", "$": "_", "\0": "_"})  # MongoDB takes dots for paths and dollars for operators

_Place = tuple[ObjectId, int]  # a user, an hour since 1970


def row_id(user_id: ObjectId, resource: ResourceType, hour: datetime) -> ObjectId:
    """The `_id` of a row of recorded events."""
    of_whom = hashlib.blake2b(b"recorded" + user_id.binary + resource.encode(), digest_size=8)
    return ObjectId((to_ms(hour) // 1000).to_bytes(4, "big") + of_whom.digest())


async def add(transaction: Database, resource: ResourceType, sums: Mapping[_Place, Mapping[str, int]]) -> None:
    """Add units, by user and hour (since 1970) and in each by source, in the transaction that nobody else's row is in.

    Two round trips. A row names sources as `metadata.sources`, `MAX_SOURCES` at most.
    """
    rows = {place: row_id(place[0], resource, from_ms(place[1] * _HOUR_MS)) for place in sums}
    usage, now = transaction.usage.raw, transaction.clock.now()
    named = {
        raw["_id"]: set((raw.get("metadata") or {}).get("sources") or ())
        async for raw in usage.find(
            {"_id": {"$in": list(rows.values())}},
            {"metadata.sources": 1},
            session=transaction.session,
            batch_size=len(rows) + 1,
        )
    }
    # Not through the typed collection: thousands of updates, all of this one form, which is checked here.
    await usage.bulk_write(
        [
            UpdateOne({"_id": _id}, _update(place, resource, sums[place], named.get(_id, set()), now), upsert=True)
            for place, _id in rows.items()
        ],
        ordered=False,
        session=transaction.session,
    )


def _update(
    place: _Place, resource: ResourceType, by_source: Mapping[str, int], named: set[str], now: datetime
) -> dict[str, Any]:
    user, hour = place
    start = from_ms(hour * _HOUR_MS)
    named = set(named)
    more: dict[str, int] = {"amount": sum(by_source.values())}
    for source, amount in by_source.items():
        name = source.translate(_IN_KEYS) or "unnamed"
        if name not in named and len(named) >= MAX_SOURCES:
            name = OTHER
        named.add(name)
        path = f"metadata.sources.{name}"
        more[path] = more.get(path, 0) + amount
    fresh = {
        "userId": user,
        "resourceType": resource,
        "periodStart": start,
        "periodEnd": start + timedelta(hours=1),
        "createdAt": now,
    }
    return {"$inc": more, "$setOnInsert": fresh}
