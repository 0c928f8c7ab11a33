"""The ledger's rows: one a user, resource and hour, whatever it was that counted there.

A row's `amount` is all that was used in its hour. Each source of it keeps its own part of the row in `metadata`, and adds to
the amount what its part has gained, so that sources do not know of each other, and what another application adds to a row, or
writes into rows of its own, counts as well:

- `leased`, by the day on which the quota's period began: `units`, and some of them by `keys` and `routes`. Derived from the
  quota's hours by `write`: they only ever grow, so a row takes the larger of what it has and what it is told, whoever writes
  it, how often, or in which order.
- `recorded` (`recorded`) and `changed` (`changes`) are `add`ed to in numbered steps, and a part remembers
  the number of the latest, `through` which it has them. So a step that is taken again, in part or whole, counts once.

Invariant: an hour of which the ledger does not have all that was leased belongs to a quota with an open lease (a lease ends
only after its hours are written), so whoever forfeits the lease writes them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.quota import Quota
from ximler.schema.usage import ResourceType, Usage

__all__ = ["Addition", "Part", "add", "day_of", "hour_key_of", "leased", "row_id", "start_of", "write"]

Part = Literal["recorded", "changed"]
_HOUR = timedelta(hours=1)
_HOUR_MS = 3_600_000


class Addition(msgspec.Struct, frozen=True, kw_only=True):
    """What a numbered step adds to a row; `counts` are what the part itself counts up, by their path below it."""

    user_id: ObjectId
    resource: ResourceType
    hour: int  # since 1970
    number: int
    amount: int
    counts: Mapping[str, int] = {}


async def write(database: Database, quotas: Iterable[Quota]) -> int:
    """Write what was leased in all hours that these quotas were read with; returns how many. One command."""
    now = database.clock.now()
    changes = [_leased(quota, key, now) for quota in quotas for key in quota.hours]
    if changes:
        try:
            await database.usage.recompute_each(changes, upsert=True)
        except DocumentExists:  # somebody began a row at the same moment: now it is there to be found
            await database.usage.recompute_each(changes, upsert=True)
    return len(changes)


async def add(database: Database, part: Part, additions: Iterable[Addition]) -> None:
    """Add to the rows that do not have it yet. One command, one more when it may have been done before."""
    changes = [_added(part, addition) for addition in additions]
    try:
        await database.usage.upsert_each(changes)
    except DocumentExists:
        # A row that has the step already does not match, and is in the way of being made anew; but so is one that another
        # source has begun at the same moment.
        await database.usage.patch_each((where, update) for where, update, _ in changes)


def row_id(user_id: ObjectId, resource: ResourceType, hour: int) -> ObjectId:
    """In the order of time, as every ObjectId."""
    of_whom = hashlib.blake2b(user_id.binary + resource.encode(), digest_size=8, person=b"usage row")
    return ObjectId((hour * 3600).to_bytes(4, "big") + of_whom.digest())


def start_of(hour: int) -> datetime:
    return from_ms(hour * _HOUR_MS)


def hour_key_of(start: datetime) -> str:
    """The key, in a quota's hours, of the hour that begins then."""
    return f"h{to_ms(start) // _HOUR_MS}"


def day_of(period_start: datetime) -> str:
    """What stands for a quota in a row: periods begin at midnight."""
    return f"{period_start:%Y-%m-%d}"


def leased(metadata: Any) -> dict[str, int]:
    """Of a row's metadata: the units that quotas leased, by the day on which their period began."""
    parts = metadata.get("leased") if isinstance(metadata, dict) else None
    if not isinstance(parts, dict):
        return {}
    return {day: int(part.get("units") or 0) for day, part in parts.items() if isinstance(part, dict)}


def _leased(quota: Quota, key: str, now: datetime) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    where, start = _place(quota.user_id, quota.resource, int(key[1:]))
    part = f"metadata.leased.{day_of(quota.period_start)}"
    units = int(quota.hours[key])
    gained = {"$max": [0, {"$subtract": [units, {"$ifNull": [f"${part}.units", 0]}]}]}
    values: dict[str, Any] = {
        "amount": {"$add": [{"$ifNull": ["$amount", 0]}, gained]},
        "periodEnd": {"$ifNull": ["$periodEnd", start + _HOUR]},
        "createdAt": {"$ifNull": ["$createdAt", now]},
        f"{part}.units": _largest(f"{part}.units", units),
    }
    for kind, names in (quota.detail.get(key) or {}).items():
        values |= {f"{part}.{kind}.{name}": _largest(f"{part}.{kind}.{name}", int(n)) for name, n in names.items()}
    return where, [{"$set": values}]


def _largest(path: str, units: int) -> dict[str, Any]:
    return {"$max": [f"${path}", units]}


def _added(part: Part, addition: Addition) -> tuple[dict[str, Any], dict[str, dict[str, Any]], Usage]:
    where, start = _place(addition.user_id, addition.resource, addition.hour)
    fresh = Usage(
        id=where["_id"],
        user_id=addition.user_id,
        resource_type=addition.resource,
        amount=0,
        period_start=start,
        period_end=start + _HOUR,
    )
    where[f"metadata.{part}.through"] = {"$not": {"$gte": addition.number}}
    counts = {f"metadata.{part}.{path}": units for path, units in addition.counts.items()}
    update = {"$inc": {"amount": addition.amount, **counts}, "$set": {f"metadata.{part}.through": addition.number}}
    return where, update, fresh


def _place(user_id: ObjectId, resource: ResourceType, hour: int) -> tuple[dict[str, Any], datetime]:
    """A row by its `_id` and the whole shard key, so that a cluster asks one shard."""
    start = start_of(hour)
    where = {"_id": row_id(user_id, resource, hour), "userId": user_id, "resourceType": resource, "periodStart": start}
    return where, start
