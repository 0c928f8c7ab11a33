"""Refusals in the audit log: counted per address and minute, so that a flood cannot fill it.

Entries are never changed, so the log cannot hold a running count. It records the 1st, 10th, 100th … refusal
of a kind within a minute: seven entries for a flood of a million, the last of which gives its size to within
a factor of ten. Of callers without an account, an hour has 5,000 entries, and then the 10,000th, 100,000th …
that there would be: an attacker with many networks cannot fill the log either.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import EPOCH, to_ms
from ximler.core.networks import subscriber
from ximler.database import Database
from ximler.schema.refusal import REFUSALS

__all__ = ["count", "trim"]

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_MOST = 5_000  # entries an hour


async def count(
    database: Database,
    actor: Actor,
    action: Action,
    *,
    resource: str,
    resource_id: object | None = None,
    user_id: ObjectId | None = None,
    subject: str = "",
    reason: str | None = None,
) -> None:
    """Audit a refusal, outside any transaction, because the refused transaction aborts. One command, plus one
    per entry, two if the caller has no account.

    Subjects are counted separately; their number must be bounded, because each may have entries.
    """
    now = database.clock.now()
    counted = f"{action}|{subscriber(actor.address)}|{to_ms(now) // _MINUTE_MS}|{subject}"
    times = await _counted(database, counted, now + timedelta(minutes=2))
    if not _is_power_of_ten(times):
        return
    details: dict[str, Any] = {"count": times} | ({"reason": reason} if reason else {})
    if actor.user_id is None:
        entries = await _counted(database, f"entries|{to_ms(now) // _HOUR_MS}", now + timedelta(hours=1))
        if entries > _MOST:
            if not _is_power_of_ten(entries):
                return
            details["entries_of_hour"] = entries
    await records.write(database, actor, action, resource=resource, resource_id=resource_id, user_id=user_id, **details)


async def trim(database: Database, most: int) -> int:
    """Remove counters above `most`, those of single refusals first. Returns how many."""
    everything = {"expiresAt": {"$gt": EPOCH}}
    return await database[REFUSALS].trim(most, where=everything, order=[("count", -1), ("expiresAt", -1)])


async def _counted(database: Database, counted: str, until: datetime) -> int:
    """How many times, this one included."""
    before = await database[REFUSALS].recompute(
        {"_id": hashlib.sha256(counted.encode(errors="surrogatepass")).digest()},
        [{"$set": {"count": {"$add": [{"$ifNull": ["$count", 0]}, 1]}, "expiresAt": until}}],
        upsert=True,
    )
    return before.count + 1 if before else 1


def _is_power_of_ten(number: int) -> bool:
    return str(number).rstrip("0") == "1"
