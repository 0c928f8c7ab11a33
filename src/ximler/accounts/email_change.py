"""Change of e-mail address: requested with a recent sign-in, confirmed from the new address, announced to the
old one.

As in a registration, the link proves access to the mailbox and the password proves the identity of the
requester: a stranger's click on the link confirms nothing. `request` does not read whether the new address
has an account.
"""

import hashlib
from datetime import timedelta
from typing import Any

from bson import ObjectId

from ximler.accounts import addresses, attempts, notices, sessions, step_up, throttle
from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import AccountExists
from ximler.accounts.throttle import Rule
from ximler.audit import records, refusals
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.failures import DocumentExists
from ximler.notifications.email import Mailer, compose
from ximler.schema.credential import CREDENTIALS
from ximler.schema.document import Document
from ximler.schema.email_change import EMAIL_CHANGES, EmailChange
from ximler.schema.user import User

__all__ = ["ChangeRequested", "cancel", "confirm", "is_open", "request", "send_link"]

_PURPOSE = "email"
_VALIDITY = timedelta(hours=24)
_MAX_ATTEMPTS = 5
_ACCOUNT = Rule(
    name="email, account", free=10, window=timedelta(hours=24), first_s=60
)  # protects mailboxes against floods
_MAILBOX = Rule(name="email, mailbox", free=5, window=timedelta(hours=1), first_s=60)


async def request(database: Database, keyring: Keyring, actor: Actor, user: User, *, email: str) -> None:
    """Send a link to the new address and a notice to the current one. The commands do not depend on whether
    the address has an account.

    A new request replaces a pending one. Raises StepUpRequired, Throttled, and Invalid if it is not an
    address or is the user's own.
    """
    step_up.require(database, actor)
    new = addresses.normalised(email)
    if new == user.email:
        raise Invalid.field("email", "is your address already")
    keys = [throttle.key(keyring, _ACCOUNT, str(user.id)), throttle.key(keyring, _MAILBOX, new)]
    await throttle.spend(database, keys)
    asked = ObjectId()
    change = EmailChange(
        id=user.id,
        request_id=asked,
        email=new,
        session_id=actor.session_id,
        expires_at=database.clock.now() + _VALIDITY,
    )
    values = {"requestId": asked, "email": new, "attempts": 0, "expiresAt": change.expires_at}

    async def write(transaction: Database) -> None:
        hashed = _stored(keyring.sign(_PURPOSE, asked))
        if not await transaction.users.patch({"_id": user.id}, {"$set": {"emailVerificationToken": hashed}}):
            raise NotFound("No such user")
        await transaction[EMAIL_CHANGES].upsert(
            {"_id": user.id}, {"$set": values | {"sessionId": actor.session_id}}, fresh=change
        )
        await send_link.enqueue(transaction, ChangeRequested(user_id=user.id, request_id=asked))
        await notices.notify(transaction, user.id, "email_requested", to=user.email, address=new)
        await _record(transaction, actor, user.id, Action.EMAIL_CHANGE_REQUESTED, before=user.email, after=new)

    await database.transaction(write)


class ChangeRequested(Document, kw_only=True):
    user_id: ObjectId
    request_id: ObjectId


@outbox.job("accounts.send_email_change", ChangeRequested)
async def send_link(
    payload: ChangeRequested, *, database: Database, keyring: Keyring, settings: Settings, mailer: Mailer
) -> None:
    """The job behind `request`. An address with an account receives a notice instead of the link."""
    found = await database[EMAIL_CHANGES].find_one({"_id": payload.user_id, "requestId": payload.request_id})
    user = await database.users.find_one({"_id": payload.user_id})
    if found is None or user is None:
        return
    taken = await addresses.holder(database, found.email)
    key = f"email:{payload.request_id}"
    if taken is not None:
        message = compose(
            "email_taken", settings, to=found.email, subject="This address has an account already", key=key
        )
    else:
        message = compose(
            "email_change",
            settings,
            to=found.email,
            subject="Confirm your new e-mail address",
            key=key,
            link=f"{settings.base_url}/email?token={keyring.sign(_PURPOSE, payload.request_id)}",
            label="Use this address",
            hours=_VALIDITY // timedelta(hours=1),
        )
    await mailer.send(message)


async def is_open(database: Database, keyring: Keyring, token: str) -> bool:
    """Whether the link of a change still works."""
    request_id = keyring.verify(_PURPOSE, token)
    user = await database.users.find_one({"emailVerificationToken": _stored(token)}) if request_id else None
    if user is None or request_id is None:
        return False
    return await database[EMAIL_CHANGES].find_one(_live(database, user, request_id)) is not None


def _live(database: Database, user: User, request_id: ObjectId) -> dict[str, Any]:
    return {
        "_id": user.id,
        "requestId": request_id,
        "expiresAt": {"$gt": database.clock.now()},
        "attempts": {"$lt": _MAX_ATTEMPTS},
    }


async def confirm(database: Database, keyring: Keyring, actor: Actor, token: str, *, password: str) -> User:
    """Replace the account's address, with the link's token and the account's password. Works once, for 24
    hours.

    Ends all sessions except the requesting one, and cancels a password reset that was mailed to the old
    address. Raises Invalid for a token that is unknown, replaced, used or expired, or a wrong password (after
    five the link is void), AccountExists if the address has an account by now, and AccountLocked.
    """
    spent = Invalid.field("token", "is not valid, or was used, or is older than 24 hours: ask for another")
    request_id = keyring.verify(_PURPOSE, token)
    if request_id is None:
        raise spent
    hashed = _stored(token)
    user = await database.users.find_one({"emailVerificationToken": hashed})
    if user is None:
        raise spent
    change = await database[EMAIL_CHANGES].find_and_patch(_live(database, user, request_id), {"$inc": {"attempts": 1}})
    if change is None:
        raise spent
    if not await keyring.verify_password(user.password, password):
        await refusals.count(
            database,
            actor,
            Action.PASSWORD_REFUSED,
            resource="users",
            resource_id=user.id,
            user_id=user.id,
            subject=str(user.id),
        )
        raise Invalid.field("password", "is not the password of the account that asked for this: try again")
    old, asked = user, change

    async def write(transaction: Database) -> None:
        same = {"_id": old.id, "email": old.email, "password": old.password, "emailVerificationToken": hashed}
        update: dict[str, dict[str, object]] = {
            "$set": {"email": asked.email, "emailVerified": True},
            "$unset": {"emailVerificationToken": "", "passwordResetToken": "", "passwordResetExpires": ""},
        }
        if not await transaction.users.patch(same, update):
            raise spent
        credential = await transaction[CREDENTIALS].find_one({"_id": old.id})
        if credential and credential.locked_at:
            raise attempts.locked()
        await transaction[EMAIL_CHANGES].delete({"_id": old.id})
        await sessions.revoke_all(transaction, old.id, but=asked.session_id)
        await notices.notify(transaction, old.id, "email_changed", to=old.email, address=asked.email)
        await _record(transaction, actor, old.id, Action.EMAIL_CHANGED, before=old.email, after=asked.email)

    try:
        await database.transaction(write)
    except DocumentExists:
        raise AccountExists(
            "There is an account with this address already", fields={"email": "has an account"}
        ) from None
    return await database.users.get(old.id)


async def cancel(database: Database, actor: Actor) -> bool:
    """Cancel a pending change and void its link. False if there is none."""
    user_id = actor.require_user()

    async def write(transaction: Database) -> bool:
        waiting = {"_id": user_id, "emailVerificationToken": {"$exists": True}}
        if not await transaction.users.patch(waiting, {"$unset": {"emailVerificationToken": ""}}):
            return False
        await transaction[EMAIL_CHANGES].delete({"_id": user_id})
        await records.write(
            transaction, actor, Action.EMAIL_CHANGE_CANCELLED, resource="users", resource_id=user_id, user_id=user_id
        )
        return True

    return await database.transaction(write)


async def _record(
    transaction: Database, actor: Actor, user_id: ObjectId, action: Action, *, before: str, after: str
) -> None:
    await records.write(
        transaction,
        actor,
        action,
        resource="users",
        resource_id=user_id,
        user_id=user_id,
        before={"email": before},
        after={"email": after},
    )


def _stored(token: str) -> str:
    """The stored form of the link's token."""
    return hashlib.sha256(token.encode()).hexdigest()
