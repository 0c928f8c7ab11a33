"""Usage alerts: a user is notified once per period and threshold.

Code that adds to a quota calls `look` with the usage before and after. The job sends the notification, and
ensures that it is sent once, by recording the alert in the quota.
"""

from collections.abc import Sequence

from ximler.core.errors import NotFound
from ximler.database import Database, outbox
from ximler.notifications import inbox
from ximler.schema.document import Document
from ximler.schema.plan import UNLIMITED
from ximler.schema.quota import QUOTAS, Quota

__all__ = ["THRESHOLDS", "Alert", "due", "look", "send"]

THRESHOLDS = (80, 100)  # per cent of the limit


def due(before: int, after: int, limit: int, thresholds: Sequence[int] = THRESHOLDS) -> list[int]:
    """The thresholds, in per cent of the limit, that were reached between `before` and `after`; none without
    a limit.

    A limit of 0 has no thresholds, because there is no usage.
    """
    if limit <= UNLIMITED + 1:
        return []
    return [threshold for threshold in thresholds if before * 100 < limit * threshold <= after * 100]


async def look(
    database: Database,
    quota_id: str,
    *,
    before: int,
    after: int,
    limit: int,
    thresholds: Sequence[int] = THRESHOLDS,
) -> None:
    """Enqueue the alert of the highest threshold that was reached between the two. No command if there is
    none.

    Idempotent: a repeated step enqueues one job, and the user is notified once.
    """
    if reached := due(before, after, limit, thresholds):
        highest = max(reached)
        alert = Alert(quota_id=quota_id, threshold=highest)
        await send.enqueue(database, alert, dedupe_key=f"{send.name}:{quota_id}:{highest}")


class Alert(Document, kw_only=True):
    quota_id: str
    threshold: int


@outbox.job("metering.alert", Alert)
async def send(payload: Alert, *, job: outbox.Job, database: Database) -> None:
    """The job: notify the user, unless that was done in this period or the limit has been raised since."""
    quota_id, threshold = payload.quota_id, payload.threshold
    quota = await database[QUOTAS].find_one({"_id": quota_id})
    if quota is None:
        raise NotFound(f"There is no quota {quota_id}")
    limit = quota.limit_at(database.clock.now())
    user = await database.users.find_one({"_id": quota.user_id})
    if user is None or quota.alerted >= threshold or not due(0, quota.used, limit, [threshold]):
        return

    async def once(transaction: Database) -> None:
        mark = {"_id": quota_id, "alerted": {"$not": {"$gte": threshold}}}
        if await transaction[QUOTAS].patch(mark, {"$set": {"alerted": threshold}}):
            title, message = _words(quota, limit, threshold)
            metadata = {
                "resource": quota.resource,
                "threshold": threshold,
                "used": quota.used,
                "limit": limit,
                "periodEnd": quota.period_end,
            }
            await inbox.notify(transaction, user, "BILLING", title, message, metadata, occasion=job.id)

    await database.transaction(once)


def _words(quota: Quota, limit: int, threshold: int) -> tuple[str, str]:
    until = f"{quota.period_end:%-d %B %Y}, 00:00 UTC"
    said = f"You have used {quota.used:,} of {limit:,} API calls."
    if threshold >= 100:
        refused = f"{said} Further calls are refused until {until}, unless you choose a larger plan."
        return "Your API calls of this period are used up", refused
    return f"You have used {threshold} % of your API calls", f"{said} The count resets on {until}."
