"""The ledger's rows of recorded events: one a user, resource and hour, added to by settlements alone.

The rows of what leases handed out are others (`metering.ledger`): those are derived, these are the only account there is.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId
from msgspec import field

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.metering.ledger import RECORDED
from ximler.schema.document import Document, Mixed
from ximler.schema.usage import ResourceType, Usage

__all__ = ["MAX_SOURCES", "OTHER", "Sums", "add", "row_id"]

MAX_SOURCES = 16  # named in one row; the others are added up as
OTHER = "other"
_HOUR = timedelta(hours=1)
_IN_KEYS = str.maketrans({".": "_", "$": "_", "\0": "_"})  # MongoDB takes dots for paths and dollars for operators

# By user and hour (since 1970), and in each by source: units.
Sums = Mapping[tuple[ObjectId, int], Mapping[str, int]]


class _Named(Document, kw_only=True):
    """What of a row says which sources it names."""

    id: ObjectId = field(name="_id")
    metadata: Mixed = field(default_factory=dict[str, Any])


def row_id(user_id: ObjectId, resource: ResourceType, hour: datetime) -> ObjectId:
    """The `_id` of a row of recorded events."""
    of_whom = hashlib.blake2b(b"recorded" + user_id.binary + resource.encode(), digest_size=8)
    return ObjectId((to_ms(hour) // 1000).to_bytes(4, "big") + of_whom.digest())


async def add(database: Database, resource: ResourceType, sums: Sums, *, number: int) -> None:
    """Add a settlement's units to the rows that do not have it yet. Two round trips; may be done again.

    A row names sources as `metadata.sources`, `MAX_SOURCES` at most.
    """
    rows = {place: row_id(place[0], resource, _start(place[1])) for place in sums}
    # The users, too, so that a cluster asks only the shards that have them.
    which = {"_id": {"$in": list(rows.values())}, "userId": {"$in": list({user for user, _ in sums})}}
    found = await database.usage.find(which, into=_Named, hint="_id_")
    named = {row.id: set((row.metadata or {}).get("sources") or ()) for row in found}
    changes = []
    for place, _id in rows.items():
        user, start = place[0], _start(place[1])
        fresh = Usage(
            id=_id,
            user_id=user,
            resource_type=resource,
            amount=0,
            period_start=start,
            period_end=start + _HOUR,
            metadata={"source": RECORDED},
        )
        where = {
            # The whole shard key, so that a cluster asks one shard.
            "_id": _id,
            "userId": user,
            "resourceType": resource,
            "periodStart": start,
            "metadata.through": {"$not": {"$gte": number}},
        }
        more = _more(sums[place], named.get(_id, set()))
        changes.append((where, {"$inc": more, "$set": {"metadata.through": number}}, fresh))
    # A row that has the settlement does not match, and is in the way of being made anew.
    with contextlib.suppress(DocumentExists):
        await database.usage.upsert_each(changes)


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
