"""Gauges: counts of projects and stored bytes, reserved in the transaction of the write that creates them.

Invariant: a gauge never exceeds the limit of its reservation. The limit is in the filter of one guarded
update, so of racing reservations exactly as many succeed as fit.

The same update records the change with its hour, at no cost; `metering.ledger.changes` adds it to the ledger
later. Invariant: the recorded changes add up to the gauge.
"""

from typing import Any

from bson import ObjectId

from ximler.core.clock import EPOCH
from ximler.core.errors import LimitExceeded
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.failures import DocumentExists
from ximler.metering.ledger import rows
from ximler.metering.limits.plans import PLAN_STAGES, Limits, limits_from
from ximler.schema.gauge import GAUGES, Gauge

__all__ = [
    "CHARGED_BYTES",
    "GAUGE_STAGES",
    "QuotaExceeded",
    "gauge_from",
    "miscounted",
    "note",
    "recount",
    "release",
    "require_room",
    "reserve",
    "room_of",
]

# The bytes that count for a project: its size, and the room reserved beyond it.
# Another application may have stored another kind of number.
CHARGED_BYTES = {
    "$add": [
        {"$convert": {"input": f"${name}", "to": "long", "onError": 0, "onNull": 0}}
        for name in ("storageSize", "storageRoom")
    ]
}

# A deleted project does not count as a project; its bytes count until it is purged.
_PLACE = {"$cond": [{"$eq": [{"$ifNull": ["$deletedAt", None]}, None]}, 1, 0]}
_COUNT: list[dict[str, Any]] = [
    {"$group": {"_id": "$userId", "projects": {"$sum": _PLACE}, "storageBytes": {"$sum": CHARGED_BYTES}}},
]

# After these, a user's row has `gauge` and `counted`, for `gauge_from`. Projects are counted only for users
# without a gauge: for the others `uncounted` is a value that no userId has, so the index finds nothing.
GAUGE_STAGES: list[dict[str, Any]] = [
    {"$lookup": {"from": "gauges", "localField": "_id", "foreignField": "_id", "as": "gauge"}},
    {"$set": {"uncounted": {"$cond": [{"$eq": ["$gauge", []]}, "$_id", "nobody"]}}},
    {
        "$lookup": {
            "from": "projects",
            "localField": "uncounted",
            "foreignField": "userId",
            "pipeline": _COUNT,
            "as": "counted",
        }
    },
]


class QuotaExceeded(LimitExceeded):
    """`fields` names the exhausted resource. `month` is the limit of the
    month's calls, if that is reached."""

    code = "QUOTA_EXCEEDED"
    month: int | None = None


async def room_of(database: Database, user_id: ObjectId) -> tuple[Limits, Gauge]:
    """The user's limits and gauge. One round trip. Raises NoFreePlan."""
    found = await database.users.aggregate(
        [{"$match": {"_id": user_id}}, {"$project": {"_id": 1}}, *PLAN_STAGES, *GAUGE_STAGES]
    )
    limits = limits_from(found[0] if found else {}, database.clock.now())
    return limits, gauge_from(found[0]) if found else Gauge(id=user_id)


async def require_room(database: Database, user_id: ObjectId, storage_bytes: int) -> None:
    """Raises QuotaExceeded if there is no room for so many bytes, which are reserved later, part by part."""
    limits, gauge = await room_of(database, user_id)
    if 0 <= limits.storage_bytes < gauge.storage_bytes + storage_bytes:
        raise _exceeded(limits, over_projects=False)


async def reserve(
    transaction: Database,
    user_id: ObjectId,
    limits: Limits,
    *,
    projects: int = 0,
    storage_bytes: int = 0,
    existing: Gauge | None = None,
) -> None:
    """Reserve projects and bytes before they are written. Raises QuotaExceeded, which must abort the
    transaction.

    One round trip. For a user without a gauge a second one counts existing projects, unless `room_of` has
    just counted them (`existing`), and another one adds them if there are any; concurrent operations create a
    gauge too, and then conflict. Negative amounts release, and always succeed, even above a lowered limit.
    """
    guards: dict[str, Any] = {}
    if projects > 0 and limits.projects >= 0:
        guards["projects"] = {"$lte": limits.projects - projects}
    if storage_bytes > 0 and limits.storage_bytes >= 0:
        guards["storageBytes"] = {"$lte": limits.storage_bytes - storage_bytes}
    try:
        # A full gauge does not match, so the upsert raises a duplicate key, which distinguishes "full" from
        # "new".
        is_new = await _change(transaction, user_id, guards, projects, storage_bytes)
    except DocumentExists:
        # The transaction is aborted by now. The gauge is read outside it, and may have changed since.
        gauge = await transaction.outside[GAUGES].find_one({"_id": user_id}) or Gauge(id=user_id)
        over_projects = "storageBytes" not in guards or gauge.projects + projects > limits.projects
        raise _exceeded(limits, over_projects="projects" in guards and over_projects) from None
    if is_new:
        if existing is None:
            existing = await _count(transaction, user_id)
        total_projects, total_bytes = existing.projects + projects, existing.storage_bytes + storage_bytes
        over_projects = "projects" in guards and total_projects > limits.projects
        if over_projects or ("storageBytes" in guards and total_bytes > limits.storage_bytes):
            raise _exceeded(limits, over_projects=over_projects)
        if existing.projects or existing.storage_bytes:
            await _set(transaction, user_id, total_projects, total_bytes)


async def release(transaction: Database, user_id: ObjectId, *, projects: int = 0, storage_bytes: int = 0) -> None:
    """Release projects and bytes after their removal. One round trip; three more to recount if the user has
    no gauge, or if projects of another application, which the gauge has not counted, would take it below
    zero.

    A user without a gauge gets one, so that this transaction conflicts with one that counts the user's
    projects. Otherwise that one would count what this one removes.
    """
    enough = {"_id": user_id, "projects": {"$gte": projects}, "storageBytes": {"$gte": storage_bytes}}
    if not await transaction[GAUGES].patch(enough, _by(transaction, -projects, -storage_bytes)):
        await _change(transaction, user_id, {}, -projects, -storage_bytes)
        left = await _count(transaction, user_id)
        await _set(transaction, user_id, left.projects, left.storage_bytes)


async def recount(transaction: Database, user_id: ObjectId) -> tuple[Gauge, Gauge]:
    """Recount the user's projects and bytes; returns the gauge before and after. Four commands."""
    none = Gauge(id=user_id, number=transaction.clock.now_ms())
    was = await transaction[GAUGES].find_one({"_id": user_id}) or none
    await _change(transaction, user_id, {}, 0, 0)  # conflicts with concurrent writes
    now = await _count(transaction, user_id)
    await _set(transaction, user_id, now.projects, now.storage_bytes)
    return was, now


async def miscounted(
    database: Database, *, after: ObjectId | None = None, limit: int
) -> tuple[list[ObjectId], ObjectId | None]:
    """Users with deleted projects and a wrong gauge, among the `limit` gauges after a user's.

    Also returns the last user examined, None after the end.
    """
    trash = [{"$match": {"deletedAt": {"$gt": EPOCH}}}, {"$limit": 1}, {"$project": {"_id": 1}}]
    projects = {"from": "projects", "localField": "_id", "foreignField": "userId"}
    right = {"$and": [{"$eq": [f"${name}", {"$first": f"$counted.{name}"}]} for name in ("projects", "storageBytes")]}
    found = await database[GAUGES].aggregate(
        [
            {"$match": {} if after is None else {"_id": {"$gt": after}}},
            {"$sort": {"_id": 1}},
            {"$limit": limit},
            {"$lookup": {**projects, "pipeline": trash, "as": "trash"}},
            {"$set": {"counting": {"$cond": [{"$eq": ["$trash", []]}, "nobody", "$_id"]}}},
            {"$lookup": {**projects, "localField": "counting", "pipeline": _COUNT, "as": "counted"}},
            {"$project": {"wrong": {"$and": [{"$ne": ["$trash", []]}, {"$not": [right]}]}}},
        ]
    )
    return [each["_id"] for each in found if each["wrong"]], found[-1]["_id"] if found else None


async def note(transaction: Database, user_id: ObjectId, *, projects: int, storage_bytes: int) -> None:
    """Record a change that was not recorded when it was made; the ledger has it in this hour. One command."""
    recorded = _by(transaction, projects, storage_bytes)
    del recorded["$inc"]["projects"], recorded["$inc"]["storageBytes"]
    await transaction[GAUGES].patch({"_id": user_id}, recorded)


def gauge_from(row: dict[str, Any]) -> Gauge:
    """The gauge in a row of `GAUGE_STAGES`."""
    found = row["gauge"] or row["counted"]
    return codec_of(Gauge).decode(found[0] | {"_id": row["_id"]}) if found else Gauge(id=row["_id"])


async def _change(
    transaction: Database, user_id: ObjectId, guards: dict[str, Any], projects: int, storage_bytes: int
) -> bool:
    """Apply the change. True if the gauge is new, so that existing projects must be counted."""
    if transaction.session is None:
        raise RuntimeError("a gauge changes in the transaction of the write that it is for")
    change = _by(transaction, projects, storage_bytes)
    # Numbered above any earlier gauge of the user, because the ledger's rows may have its versions.
    fresh = Gauge(id=user_id, number=transaction.clock.now_ms())
    return await transaction[GAUGES].upsert({"_id": user_id, **guards}, change, fresh=fresh)


def _by(transaction: Database, projects: int, storage_bytes: int) -> dict[str, dict[str, Any]]:
    """The update that changes the gauge and records the change."""
    now = transaction.clock.now()
    hour = f"hours.{rows.hour_key_of(now)}"
    change: dict[str, dict[str, Any]] = {"$inc": {"projects": projects, "storageBytes": storage_bytes}}
    if projects:
        change["$inc"][f"{hour}.projects"] = projects
    if storage_bytes:
        change["$inc"][f"{hour}.storage"] = storage_bytes
    if projects or storage_bytes:
        change["$inc"]["steps"] = 1
        change["$set"] = {"due": now}
    return change


async def _set(transaction: Database, user_id: ObjectId, projects: int, storage_bytes: int) -> None:
    """Set the gauge, and record the difference from its previous value."""
    now = transaction.clock.now()
    hour = f"hours.{rows.hour_key_of(now)}"
    values: dict[str, Any] = {"projects": projects, "storageBytes": storage_bytes, "due": now, "updatedAt": now}
    values["steps"] = {"$add": [{"$ifNull": ["$steps", 0]}, 1]}
    for count, name in (("projects", f"{hour}.projects"), ("storageBytes", f"{hour}.storage")):
        difference = {"$subtract": [values[count], {"$ifNull": [f"${count}", 0]}]}
        values[name] = {"$add": [{"$ifNull": [f"${name}", 0]}, difference]}
    await transaction[GAUGES].recompute_each([({"_id": user_id}, [{"$set": values}])])


async def _count(database: Database, user_id: ObjectId) -> Gauge:
    """Count the projects, because other applications create some without updating the gauge."""
    found = await database.projects.aggregate([{"$match": {"userId": user_id}}, *_COUNT])
    return codec_of(Gauge).decode(found[0]) if found else Gauge(id=user_id)


def _exceeded(limits: Limits, *, over_projects: bool) -> QuotaExceeded:
    if over_projects:
        return QuotaExceeded(
            f"The plan {limits.plan_name} allows {limits.projects} projects, and they are used: "
            "delete a project or choose a larger plan",
            fields={"projects": f"limit {limits.projects} reached"},
        )
    return QuotaExceeded(
        f"The plan {limits.plan_name} allows {limits.storage_bytes:,} bytes of storage, and this would be more: "
        "delete something, empty the trash or choose a larger plan",
        fields={"storage": f"limit {limits.storage_bytes} reached"},
    )
