"""Gauges: projects and bytes that exist now, reserved in the transaction of the write that makes them.

Invariant: a gauge never passes the limit it was reserved against. The limit is in the filter of one guarded update, so of any
number of racing reservations exactly as many succeed as fit.
"""

from collections.abc import Iterable
from typing import Any

from bson import ObjectId

from ximler.core.errors import LimitExceeded
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.metering.limits import Limits
from ximler.schema.gauge import GAUGES, Gauge

__all__ = ["QuotaExceeded", "count", "release", "reserve"]


class QuotaExceeded(LimitExceeded):
    """`fields` names the resource that is used up."""

    code = "QUOTA_EXCEEDED"


async def reserve(
    transaction: Database, user_id: ObjectId, limits: Limits, *, projects: int = 0, storage_bytes: int = 0
) -> None:
    """Take that many, or raise QuotaExceeded, which must abort the transaction.

    One round trip; a second the first time a user is seen, to count what exists already. Negative amounts give back, and
    always succeed, even above a limit that was lowered.
    """
    if transaction.session is None:
        raise RuntimeError("reserve belongs into the transaction of the write it is for")
    guards: dict[str, Any] = {}
    if projects > 0 and limits.projects >= 0:
        guards["projects"] = {"$lte": limits.projects - projects}
    if storage_bytes > 0 and limits.storage_bytes >= 0:
        guards["storageBytes"] = {"$lte": limits.storage_bytes - storage_bytes}
    change = {"$inc": {"projects": projects, "storageBytes": storage_bytes}}
    try:
        # A full gauge does not match, so the upsert tries to insert its `_id` again: that is how "full" is told from "new".
        is_new = await transaction[GAUGES].upsert({"_id": user_id, **guards}, change, fresh=Gauge(id=user_id))
    except DocumentExists:
        # The transaction is lost by now; what the gauge says is read beside it.
        gauge = await transaction.outside[GAUGES].get(user_id)
        raise _exceeded(
            limits, over_projects="projects" in guards and gauge.projects + projects > limits.projects
        ) from None
    if is_new:
        existing = (await count(transaction, [user_id]))[user_id]
        total_projects, total_bytes = existing.projects + projects, existing.storage_bytes + storage_bytes
        over_projects = "projects" in guards and total_projects > limits.projects
        if over_projects or ("storageBytes" in guards and total_bytes > limits.storage_bytes):
            raise _exceeded(limits, over_projects=over_projects)
        if existing.projects:
            await transaction[GAUGES].patch(
                {"_id": user_id}, {"$set": {"projects": total_projects, "storageBytes": total_bytes}}
            )


async def release(transaction: Database, user_id: ObjectId, *, projects: int = 0, storage_bytes: int = 0) -> None:
    """Give back. A user without a gauge has nothing to give back: it is counted when it is made."""
    await transaction[GAUGES].patch({"_id": user_id}, {"$inc": {"projects": -projects, "storageBytes": -storage_bytes}})


async def count(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, Gauge]:
    """What exists, counted document by document: other applications make projects without telling the gauge."""
    ids = list(user_ids)
    found = await database.projects.aggregate(
        [
            {"$match": {"userId": {"$in": ids}, "deletedAt": None}},
            {"$group": {"_id": "$userId", "projects": {"$sum": 1}, "bytes": {"$sum": "$storageSize"}}},
        ]
    )
    counted = {user_id: Gauge(id=user_id) for user_id in ids}
    for row in found:
        counted[row["_id"]] = Gauge(id=row["_id"], projects=int(row["projects"]), storage_bytes=int(row["bytes"]))
    return counted


def _exceeded(limits: Limits, *, over_projects: bool) -> QuotaExceeded:
    if over_projects:
        return QuotaExceeded(
            f"The plan {limits.plan_name} allows {limits.projects} projects, and they are used: "
            "delete a project or choose a larger plan",
            fields={"projects": f"limit {limits.projects} reached"},
        )
    return QuotaExceeded(
        f"The plan {limits.plan_name} allows {limits.storage_bytes:,} bytes of storage, and this would be more: "
        "delete something or choose a larger plan",
        fields={"storage": f"limit {limits.storage_bytes} reached"},
    )
