"""Erasure of a user: an account is anonymised in place 30 days after it was closed.

The marks on fields in `schema` say which are kept, erased or replaced. Domains handle the parts that need
logic (files, running subscriptions, the audit log). Erasure is a job of idempotent steps: after an
interruption it runs again from the start. Payments, subscriptions, usage amounts and the audit log are kept
without the person.
"""

from typing import Any

from bson import ObjectId

from ximler.accounts import anonymisation as accounts
from ximler.accounts import closing
from ximler.audit import erasure as audit
from ximler.billing import erasure as billing
from ximler.database import Database, outbox
from ximler.projects import assets_storage, sharing
from ximler.schema import CATALOGUE
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.document import Collection

__all__ = ["erase"]


@closing.ANONYMISE
async def erase(payload: closing.Closed, *, database: Database) -> bool:
    """The job behind `closing.close`, 30 days later. False if the account was reopened since."""
    user_id = payload.user_id
    user = await accounts.begin(database, user_id, closed_at=payload.closed_at)
    if user is None:
        return False
    await billing.end_subscriptions(database, user_id)
    await billing.forget_cards(database, user_id)
    await assets_storage.erase(database, user_id)
    await sharing.erase(database, user_id, user.email)
    for collection in CATALOGUE:
        if collection is not AUDIT_LOGS:
            await _erase_from(database, collection, user_id)
    await outbox.forget(database, user_id, user.email)
    await accounts.finish(database, user_id)
    await audit.erase(database, user_id)  # last, because it may have to wait until another connection is configured
    return True


async def _erase_from(database: Database, collection: Collection[Any], user_id: ObjectId) -> None:
    theirs = {collection.user_field or "": user_id}
    match collection.erasure:
        case "documents":
            await database[collection].delete_many(theirs)
        case "fields":
            await database[collection].keep_only(theirs, collection.kept, collection.replacements)
