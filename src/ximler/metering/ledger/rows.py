"""The ledger's rows: one per user, resource and hour, and the only code that adds usage to them.

A row's `amount` is all usage of its hour. Each source has its own part in `metadata`, and adds the part's
increase to the amount in the same update. So sources are independent of each other, and usage that another
application adds to a row, or writes into its own rows, counts as well.

- `leased` (`write`), by the first day of the quota's period: `units`, and some of them by `keys` and
  `routes`. Derived from the quota's hours, which only grow, so a row keeps the larger value.
- `changed` (`changes`): `units` of projects or bytes, signed, derived from the gauge's hours;
  a row keeps the latest version.
- `recorded` (`recorded`): added by numbered settlements; a row has them up to the number `through`.

Invariant: changes are idempotent. A change may be repeated, delayed and reordered with others, and counts
once.

Invariant: an hour of leased usage that the ledger lacks belongs to a quota with an open lease, because a
lease ends only after its hours are written. So the process that forfeits a lease writes them.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import structlog
from bson import ObjectId

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.database.failures import DocumentExists, RefusedChanges
from ximler.schema.quota import Quota
from ximler.schema.usage import ResourceType

__all__ = [
    "WHOLE_AMOUNT", "Change", "apply", "change", "day_of", "hour_key_of", "hour_of_key", "leased", "part_of", "row_id",
    "start_of", "whole", "write",
]  # fmt: skip

_HOUR = timedelta(hours=1)
_HOUR_MS = 3_600_000
_SHARD_KEY = ("userId", "resourceType", "periodStart")  # in the filter of every update: a cluster then asks one shard
_log = structlog.get_logger("ximler.metering")

Change = tuple[dict[str, Any], list[dict[str, Any]]]
"""The filter and the pipeline of an update of one row."""

# A row's amount as an integer; another application may have stored another kind of number, or none.
WHOLE_AMOUNT = {"$convert": {"input": "$amount", "to": "long", "onError": 0, "onNull": 0}}


def change(
    database: Database,
    user_id: ObjectId,
    resource: ResourceType,
    hour: int,
    part: str,
    *,
    gained: Any,
    values: Mapping[str, Any],
    unless_through: Mapping[str, Any] | None = None,
) -> Change:
    """Add the expression `gained` to the row's amount and set `values` below its `metadata.{part}`.

    `unless_through` is a condition on the part's number; the row stays unchanged if it holds. The arithmetic
    must fail on non-numbers, so that a row with a value of a wrong type is found and repaired.
    """
    start = start_of(hour)
    where: dict[str, Any] = {"_id": row_id(user_id, resource, hour)}
    where |= dict(zip(_SHARD_KEY, (user_id, resource, start), strict=True))
    if unless_through is not None:
        where[f"metadata.{part}.through"] = {"$not": dict(unless_through)}
    fields: dict[str, Any] = {
        "amount": {"$add": [{"$ifNull": ["$amount", 0]}, gained]},
        "periodEnd": {"$ifNull": ["$periodEnd", start + _HOUR]},
        "createdAt": {"$ifNull": ["$createdAt", database.clock.now()]},
    }
    fields |= {f"metadata.{part}.{path}": value for path, value in values.items()}
    return where, [{"$set": {"metadata": {"$mergeObjects": ["$metadata"]}}}, {"$set": fields}]  # fails on non-objects


async def apply(database: Database, changes: Sequence[Change]) -> None:
    """Apply each change to its row, or to a new row. One command; one more if some may have been applied
    before.

    A row with a value of a wrong type is logged and repaired, with three more commands, and does not hold up
    the others.
    """
    try:
        await database.usage.recompute_each(changes, upsert=True)
    except (DocumentExists, RefusedChanges):
        # A row that has the change already does not match, so its upsert is a duplicate; so is that of a row
        # that another source inserted concurrently.
        try:
            await database.usage.recompute_each(changes)
        except RefusedChanges as problem:
            await _repair(database, [changes[position] for position in problem.reasons])


async def write(database: Database, quotas: Iterable[Quota]) -> int:
    """Write the leased usage of all hours in these quotas; returns how many. One command."""
    changes = [
        _leased(database, quota, key) for quota in quotas for key in quota.units_by_hour if hour_of_key(key) is not None
    ]
    await apply(database, changes)
    return len(changes)


def row_id(user_id: ObjectId, resource: ResourceType, hour: int) -> ObjectId:
    """The row's id, ordered by time like every ObjectId."""
    of_whom = hashlib.blake2b(user_id.binary + resource.encode(), digest_size=8, person=b"usage row")
    return ObjectId((hour * 3600).to_bytes(4, "big") + of_whom.digest())


def start_of(hour: int) -> datetime:
    return from_ms(hour * _HOUR_MS)


def hour_key_of(start: datetime) -> str:
    """The key in `hours` of a quota or gauge for the hour that begins then."""
    return f"h{to_ms(start) // _HOUR_MS}"


def hour_of_key(key: str) -> int | None:
    """The hour since 1970 of a key in `hours`; None if it is not such a key."""
    return int(key[1:]) if key[:1] == "h" and key[1:].isdecimal() and len(key) < 8 else None


def day_of(period_start: datetime) -> str:
    """A quota's key in a row: the first day of its period."""
    return f"{period_start:%Y-%m-%d}"


def part_of(metadata: Any, part: Literal["leased", "recorded"]) -> dict[str, Any]:
    """A source's part of a row's metadata; empty if there is none."""
    found = metadata.get(part) if isinstance(metadata, dict) else None
    return found if isinstance(found, dict) else {}


def leased(metadata: Any) -> dict[str, int]:
    """The leased units in a row's metadata, by the first day of their period."""
    parts = part_of(metadata, "leased")
    return {day: whole(part.get("units")) for day, part in parts.items() if isinstance(part, dict)}


def whole(value: Any) -> int:
    """A stored number as an int; 0 for other types."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _leased(database: Database, quota: Quota, key: str) -> Change:
    day = day_of(quota.period_start)
    part = f"$metadata.leased.{day}"
    units = whole(quota.hours[key])
    gained = {"$max": [0, {"$subtract": [units, {"$ifNull": [f"{part}.units", 0]}]}]}
    values = {f"{day}.units": {"$max": [f"{part}.units", units]}}
    detail = quota.detail.get(key) if isinstance(quota.detail, dict) else None
    for kind, names in detail.items() if isinstance(detail, dict) else ():
        for name, n in names.items() if isinstance(names, dict) else ():
            values[f"{day}.{kind}.{name}"] = {"$max": [f"{part}.{kind}.{name}", whole(n)]}
    hour = int(key[1:])
    return change(database, quota.user_id, quota.resource, hour, "leased", gained=gained, values=values)


async def _repair(database: Database, changes: list[Change]) -> None:
    """Repair rows so that their changes apply: a wrong amount becomes the number that reports read from it, a
    wrong value on a change's path is removed.
    """
    ids = [where["_id"] for where, _ in changes]
    theirs = {"_id": {"$in": ids}, "userId": {"$in": [where["userId"] for where, _ in changes]}}
    found = {row["_id"]: row for row in await database.usage.aggregate([{"$match": theirs}])}
    for where, stages in changes:
        wrong = [path for path, kind in _paths(stages).items() if _is_wrong(found.get(where["_id"]), path, kind)]
        _log.warning("ledger row repaired", id=str(where["_id"]), fields=wrong)
    await database.usage.recompute_each(
        ({name: where[name] for name in ("_id", *_SHARD_KEY)}, _repairs(stages)) for where, stages in changes
    )
    try:
        await database.usage.recompute_each(changes)
    except RefusedChanges as problem:
        for position, reason in problem.reasons.items():
            _log.error("ledger row left out", id=str(ids[position]), reason=reason)


def _paths(stages: list[dict[str, Any]]) -> dict[str, type]:
    """The expected type at every path that the change reads, outer paths first."""
    leaves = [path for path in stages[-1]["$set"] if path.startswith("metadata.")]
    above = {path.rsplit(".", depth)[0] for path in leaves for depth in range(1, path.count(".") + 1)}
    return {"amount": int, **dict.fromkeys(sorted(above, key=len), dict), **dict.fromkeys(leaves, int)}


def _is_wrong(value: Any, path: str, kind: type) -> bool:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None and not isinstance(value, dict if kind is dict else int | float)


def _repairs(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    repairs = []
    for path, kind in _paths(stages).items():
        fits = {"$eq": [{"$type": f"${path}"}, "object"]} if kind is dict else {"$isNumber": f"${path}"}
        instead = WHOLE_AMOUNT if path == "amount" else {} if kind is dict else "$$REMOVE"
        repairs.append({"$set": {path: {"$cond": [fits, f"${path}", instead]}}})
    return repairs
