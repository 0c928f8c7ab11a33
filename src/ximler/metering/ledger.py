"""The ledger's rows of what leases handed out: one a quota and hour, derived from the quota's hours.

Hours only ever grow, so a row takes the larger of what it has and what it is told: it does not matter who writes it, how
often, or in which order. Invariant: an hour that the ledger does not have in full belongs to a quota with an open lease (a
lease ends only after its hours are written), so whoever forfeits the lease writes them.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.quota import Quota
from ximler.schema.usage import Usage

__all__ = ["LEASED", "RECORDED", "hour_key_of", "row_id", "write"]

# A row's metadata.source: those written here, and those of events that were recorded. Any other row is somebody else's.
LEASED = "leases"
RECORDED = "events"
_HOUR = timedelta(hours=1)


async def write(database: Database, quotas: Iterable[Quota]) -> int:
    """Write the rows of all hours that these quotas were read with; returns how many. One command."""
    changes = [_row(quota, key) for quota in quotas for key in quota.hours]
    if changes:
        try:
            await database.usage.upsert_each(changes)
        except DocumentExists:  # another process began a row at the same moment: now it is there to be found
            await database.usage.upsert_each(changes)
    return len(changes)


def row_id(quota_id: str, hour: int) -> ObjectId:
    """The same for the same hour of the same quota; in the order of time, as every ObjectId."""
    digest = hashlib.sha256(f"{quota_id}:{hour}".encode()).digest()
    return ObjectId((hour * 3600).to_bytes(4, "big") + digest[:8])


def hour_key_of(start: datetime) -> str:
    """The key, in a quota's hours, of the hour that begins then."""
    return f"h{to_ms(start) // 3_600_000}"


def _row(quota: Quota, key: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]], Usage]:
    hour = int(key[1:])
    start = from_ms(hour * 3_600_000)
    fresh = Usage(
        id=row_id(quota.id, hour),
        user_id=quota.user_id,
        resource_type=quota.resource,
        amount=0,
        period_start=start,
        period_end=start + _HOUR,
        metadata={"source": LEASED, "quota": quota.id},
    )
    largest: dict[str, Any] = {"amount": int(quota.hours[key])}
    for kind, units in (quota.detail.get(key) or {}).items():
        largest |= {f"metadata.{kind}.{name}": int(count) for name, count in units.items()}
    # The whole shard key, so that a cluster asks one shard.
    where = {
        "_id": fresh.id,
        "userId": quota.user_id,
        "resourceType": quota.resource,
        "periodStart": start,
    }
    return where, {"$max": largest}, fresh
