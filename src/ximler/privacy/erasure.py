"""Erasure of a user: 30 days after an account was closed it is anonymised in place.

The fields' marks in `schema` say which stay, go or are replaced. Domains do the parts that need logic (files, running
subscriptions, the audit log). It is a job: interrupted anywhere, it runs again from the start, and every step may be repeated.
Payments, subscriptions, amounts used and the audit log stay, without the person.
"""

from typing import Any

from bson import ObjectId

from ximler.accounts import anonymisation as accounts
from ximler.accounts import closing
from ximler.audit import erasure as audit
from ximler.billing import erasure as billing
from ximler.database import Database, outbox
from ximler.schema import CATALOGUE
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.document import Collection

__all__ = ["erase"]


@closing.ANONYMISE
async def erase(payload: closing.Closed, *, database: Database) -> bool:
    """The job behind `closing.close`, 30 days later. False when there is nothing to do: the account was reopened since."""
    user_id = payload.user_id
    user = await accounts.begin(database, user_id, closed_at=payload.closed_at)
    if user is None:
        return False
    await billing.end_subscriptions(database, user_id)
    for collection in CATALOGUE:
        if collection is not AUDIT_LOGS:
            await _erase_from(database, collection, user_id)
    await outbox.forget(database, user_id, user.email)
    await accounts.finish(database, user_id)
    await audit.erase(database, user_id)  # last: it may need another connection, and wait until one is configured
    return True


async def _erase_from(database: Database, collection: Collection[Any], user_id: ObjectId) -> None:
    theirs = {collection.user_field or "": user_id}
    match collection.erasure:
        case "documents":
            await database[collection].delete_many(theirs)
        case "fields":
            await database[collection].keep_only(theirs, collection.kept, collection.replacements)
