"""Forgetting a person: an account whose 30 days are over is anonymised in place, everywhere.

Each domain erases what it owns, here is the order. It is a job: whatever ends it in the middle, it runs again from the start,
and every step may. What others must still count or answer for stays and loses the person: payments, subscriptions, amounts
used, the audit log.
"""

from datetime import datetime

from bson import ObjectId

from ximler.accounts import anonymisation as accounts
from ximler.apikeys import erasure as apikeys
from ximler.audit import erasure as audit
from ximler.billing import erasure as billing
from ximler.database import Database, outbox
from ximler.metering import erasure as metering
from ximler.notifications import inbox
from ximler.projects import erasure as projects

__all__ = ["erase"]


async def erase(database: Database, *, user_id: ObjectId, closed_at: datetime) -> bool:
    """The job behind `closing.close`, 30 days later. False when there is nothing to do: the account was reopened since."""
    user = await accounts.begin(database, user_id, closed_at=closed_at)
    if user is None:
        return False
    await apikeys.erase(database, user_id)
    await projects.erase(database, user_id)
    await metering.erase(database, user_id)
    await billing.erase(database, user_id)
    await inbox.erase(database, user_id)
    await outbox.forget(database, user_id, user.email)
    await accounts.finish(database, user_id)
    await audit.erase(database, user_id)  # last: it may want a database user of its own, and wait for one to be set up
    return True
