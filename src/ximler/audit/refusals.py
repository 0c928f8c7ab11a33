"""Refusals in the audit log: counted per address and minute, so that a flood cannot fill it.

Entries are never changed, so the log cannot hold a running count. It records the 1st, 10th, 100th … refusal
of a kind within a minute: seven entries for a flood of a million, the last of which gives its size to within
a factor of ten.
"""

import hashlib
from datetime import timedelta
from typing import Any

from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.networks import subscriber
from ximler.database import Database
from ximler.schema.refusal import REFUSALS

__all__ = ["count"]

_MINUTE_MS = 60_000
_KEPT = timedelta(minutes=2)


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
    per entry.

    Subjects are counted separately; their number must be bounded, because each may have entries.
    """
    now = database.clock.now()
    counted = f"{action}|{subscriber(actor.address)}|{to_ms(now) // _MINUTE_MS}|{subject}"
    before = await database[REFUSALS].recompute(
        {"_id": hashlib.sha256(counted.encode(errors="surrogatepass")).digest()},
        [{"$set": {"count": {"$add": [{"$ifNull": ["$count", 0]}, 1]}, "expiresAt": now + _KEPT}}],
        upsert=True,
    )
    times = before.count + 1 if before else 1
    if str(times).rstrip("0") != "1":
        return
    details: dict[str, Any] = {"count": times} | ({"reason": reason} if reason else {})
    await records.write(database, actor, action, resource=resource, resource_id=resource_id, user_id=user_id, **details)
