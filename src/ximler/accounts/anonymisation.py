"""Anonymisation of an account in place: personal data is removed, and the id stays for payments and the audit
log.

`begin` and `finish` enclose the erasure in the other domains. After `begin` the account cannot be reopened;
until `finish` the address remains available for look-ups. Both are idempotent.
"""

from datetime import datetime

from bson import ObjectId

from ximler.accounts import avatars
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import SYSTEM
from ximler.database import Database
from ximler.database.updates import Update
from ximler.schema.user import USERS, User

__all__ = ["begin", "finish"]

_NO_PASSWORD = "erased"  # noqa: S105 (no hash: nothing matches it)


async def begin(database: Database, user_id: ObjectId, *, closed_at: datetime) -> User | None:
    """Remove the account's password and sessions. Returns the account, or None if it has been reopened."""
    # Without `closedAt` it can neither be reopened nor get a password reset. A repeat finds it in this state.
    begun = [{"closedAt": closed_at}, {"password": _NO_PASSWORD}]
    update: Update = {
        "$set": {"password": _NO_PASSWORD},
        "$unset": {"closedAt": "", "passwordResetToken": "", "passwordResetExpires": ""},
    }
    user = await database.users.find_and_patch(
        {"_id": user_id, "deletedAt": closed_at, "$or": begun}, update, deleted=True
    )
    if user is not None:
        await avatars.erase(database, user_id)
    return user


async def finish(database: Database, user_id: ObjectId) -> None:
    """Remove all personal data, whichever application wrote it, and audit the erasure."""
    email = f"erased-{user_id}@erased.invalid"

    async def write(transaction: Database) -> None:
        left = await transaction.users.keep_only(
            {"_id": user_id, "email": {"$ne": email}},
            USERS.kept,
            {**USERS.replacements, "email": email},
            deleted=True,
        )
        if left:
            await records.write(
                transaction, SYSTEM, Action.ACCOUNT_ERASED, resource="users", resource_id=user_id, user_id=user_id
            )

    await database.transaction(write)
