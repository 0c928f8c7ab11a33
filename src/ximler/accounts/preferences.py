"""Notification preferences, changed by the unsubscribe links in mails."""

from ximler.accounts.keyring import Keyring
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.notifications.inbox import UNSUBSCRIBE

__all__ = ["unsubscribe"]


async def unsubscribe(database: Database, keyring: Keyring, actor: Actor, token: str) -> None:
    """Disable product mail, by the link in every such mail; no sign-in needed (RFC 8058). Idempotent.

    Raises Invalid for a forged link. The response does not reveal whether the account still exists.
    """
    user_id = keyring.verify(UNSUBSCRIBE, token)
    if user_id is None:
        raise Invalid.field("token", "is not valid: open the link exactly as it is in the message")
    wanted = "notificationSettings.email.productUpdates"

    async def write(transaction: Database) -> None:
        still = {"_id": user_id, wanted: {"$ne": False}}
        if await transaction.users.patch(still, {"$set": {wanted: False}}):
            await records.write(
                transaction,
                actor,
                Action.NOTIFICATIONS_CHANGED,
                resource="users",
                resource_id=user_id,
                user_id=user_id,
                before={"productUpdates": True},
                after={"productUpdates": False},
            )

    await database.transaction(write)
