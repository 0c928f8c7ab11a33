"""The ledger's rows of recorded events: one a user, resource and hour, added to by settlements alone.

The rows of what leases handed out are others (`metering.ledger`): those are derived, these are the only account there is.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from bson import ObjectId
from pymongo import UpdateOne

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.schema.usage import ResourceType

__all__ = ["MAX_SOURCES", "OTHER", "RECORDED", "add", "row_id"]

MAX_SOURCES = 16  # named in one row; the others are added up as
OTHER = "other"
RECORDED = "events"  # metadata.source of the rows written here
_HOUR = timedelta(hours=1)
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
    rows = {place: row_id(place[0], resource, _start(place[1])) for place in sums}
    usage, now = transaction.usage.raw, transaction.clock.now()
    known = usage.find(
        {"_id": {"$in": list(rows.values())}},
        {"metadata.sources": 1},
        session=transaction.session,
        batch_size=len(rows) + 1,
    )
    named = {raw["_id"]: set((raw.get("metadata") or {}).get("sources") or ()) async for raw in known}
    updates = []
    for place, _id in rows.items():
        user, start = place[0], _start(place[1])
        # The whole shard key, so that a cluster asks one shard.
        where = {"_id": _id, "userId": user, "resourceType": resource, "periodStart": start}
        fresh = {"periodEnd": start + _HOUR, "metadata.source": RECORDED, "createdAt": now}
        more = _more(sums[place], named.get(_id, set()))
        updates.append(UpdateOne(where, {"$inc": more, "$setOnInsert": fresh}, upsert=True))
    # Not through the typed collection: thousands of updates, all of this one form.
    await usage.bulk_write(updates, ordered=False, session=transaction.session)


def _more(by_source: Mapping[str, int], named: set[str]) -> dict[str, int]:
    more: dict[str, int] = {"amount": sum(by_source.values())}
    for source, amount in by_source.items():
        name = source.translate(_IN_KEYS) or "unnamed"
        if name not in named and len(named) >= MAX_SOURCES:
            name = OTHER
        named.add(name)
        path = f"metadata.sources.{name}"
        more[path] = more.get(path, 0) + amount
    return more


def _start(hour: int) -> datetime:
    return from_ms(hour * 3_600_000)
