"""Passwords: changing a known one, resetting a forgotten one.

Both end every session of the account and cancel a pending change of address, in the same transaction.
`request_reset` does not read accounts: it enqueues a job, and responds in the same way and time for every
address.
"""

import hashlib
from datetime import timedelta
from typing import Any

from bson import ObjectId

from ximler.accounts import addresses, attempts, reopening, sessions, step_up, strength, throttle, unconfirmed
from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import Rule
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.notifications.email import Mailer, compose, greeting
from ximler.schema.credential import CREDENTIALS
from ximler.schema.document import Document
from ximler.schema.user import User

__all__ = [
    "PasswordChanged", "ResetRequested", "change", "is_open", "request_reset", "reset", "send_changed", "send_reset",
]  # fmt: skip

_PURPOSE = "reset"
_VALIDITY = timedelta(hours=1)
_ADDRESS = Rule(name="reset, address", free=20, window=timedelta(hours=1))
_MAILBOX = Rule(name="reset, mailbox", free=5, window=timedelta(hours=1), first_s=60)


async def change(
    database: Database, keyring: Keyring, settings: Settings, actor: Actor, user: User, *, current: str, new: str
) -> sessions.SignedIn:
    """Change the password of the signed-in user, who proves the current one. Ends every session; returns a
    new one.

    Raises StepUpRequired, Throttled, Forbidden for a wrong current password, Invalid or WeakPassword for an
    unacceptable new one, AccountLocked.
    """
    step_up.require(database, actor)
    await step_up.prove_password(database, keyring, actor, user, current, field="current")
    await strength.check(keyring, new, field="new", own=(user.name, user.email))
    hashed = await keyring.hash_password(new, field="new")
    guard = {"_id": user.id, "password": user.password}
    if not await _replace(database, actor, guard, user.id, hashed, Action.PASSWORD_CHANGED):
        raise Forbidden(
            "The password was changed at the same moment: sign in again", fields={"current": "is not right"}
        )
    changed = await database.users.get(user.id)

    async def unlocked(transaction: Database) -> dict[str, Any]:
        """A concurrent lock would not find the new session."""
        credential = await transaction[CREDENTIALS].find_one({"_id": user.id})
        if credential and credential.locked_at:
            raise attempts.locked()
        return {}

    return await sessions.start(database, keyring, settings, actor, changed, check=unlocked)


async def request_reset(database: Database, keyring: Keyring, actor: Actor, *, email: str) -> None:
    """Mail a reset link if the address has an account. Four commands in either case.

    Raises Invalid, Throttled.
    """
    normal = addresses.normalised(email)
    # By address first, so that a throttled caller does not use up the budgets of other mailboxes.
    await throttle.spend(database, throttle.at_address(keyring, _ADDRESS, actor.address))
    await throttle.spend(database, [throttle.key(keyring, _MAILBOX, normal)])
    network = unconfirmed.network(keyring, actor.address)
    await send_reset.enqueue(database, ResetRequested(email=normal, typed=email.strip(), network=network))


class ResetRequested(Document, kw_only=True):
    """`typed` is the address before normalisation; jobs of older versions do not have it."""

    email: str
    typed: str | None = None
    network: str = ""


@outbox.job("accounts.send_reset", ResetRequested, kept=False)
async def send_reset(
    payload: ResetRequested,
    *,
    job: outbox.Job,
    database: Database,
    keyring: Keyring,
    settings: Settings,
    mailer: Mailer,
) -> None:
    """The job behind `request_reset`. A repeat sends the same message and link; a newer request replaces the
    link.
    """
    token = keyring.sign(_PURPOSE, job.id)
    update = {"passwordResetToken": _stored(token), "passwordResetExpires": database.clock.now() + _VALIDITY}
    # The owner of a closed account may need a new password to reopen it.
    await addresses.random_pause()
    user = await addresses.holder(database, payload.typed or payload.email, reopening.THEIRS)
    # An unknown address costs the same work, so that the delay of other requests does not tell it apart.
    known = await database.users.patch({"_id": user.id if user else job.id}, {"$set": update}, deleted=True)
    message = compose(
        "reset",
        settings,
        to=user.email if user else payload.email,
        subject="Choose a new password",
        key=f"reset:{job.id}",
        greeting=greeting(user) if user else "",
        link=f"{settings.base_url}/reset?token={token}",
        label="Choose a new password",
        minutes=_VALIDITY // timedelta(minutes=1),
    )
    if user is not None and known:
        await mailer.send(message)


async def is_open(database: Database, keyring: Keyring, token: str) -> bool:
    """Whether the link of a reset still works."""
    if keyring.verify(_PURPOSE, token) is None:
        return False
    return await database.users.find_one(_awaited(database, token), deleted=True) is not None


def _awaited(database: Database, token: str) -> dict[str, Any]:
    now = database.clock.now()
    return {"passwordResetToken": _stored(token), "passwordResetExpires": {"$gt": now}, **reopening.THEIRS}


async def reset(database: Database, keyring: Keyring, actor: Actor, *, token: str, password: str) -> None:
    """Set a new password with a link that works once and for one hour. Ends every session.

    Clears the account's failed sign-ins, so that an owner who is throttled by an attack can sign in. Raises
    Invalid for a token that is unknown, used or expired, or an unacceptable password, WeakPassword.
    """
    spent = Invalid.field("token", "is not valid, or was used, or is older than an hour: ask for another")
    if keyring.verify(_PURPOSE, token) is None:
        raise spent
    where = _awaited(database, token)
    user = await database.users.find_one(where, deleted=True)
    if user is None:
        raise spent
    await strength.check(keyring, password, own=(user.name, user.email))
    hashed = await keyring.hash_password(password)
    guard = {"_id": user.id, **where}
    if not await _replace(database, actor, guard, user.id, hashed, Action.PASSWORD_RESET, closed=True):
        raise spent
    await throttle.forgive(database, attempts.account_key(keyring, addresses.alternatives(user.email)[0]))


class PasswordChanged(Document, kw_only=True):
    user_id: ObjectId


@outbox.job("accounts.send_password_changed", PasswordChanged)
async def send_changed(
    payload: PasswordChanged, *, job: outbox.Job, database: Database, settings: Settings, mailer: Mailer
) -> None:
    """The job behind every change: notify the owner, who may not have made it."""
    user = await database.users.find_one({"_id": payload.user_id, **reopening.THEIRS}, deleted=True)
    if user is None:
        return
    message = compose(
        "password_changed",
        settings,
        to=user.email,
        subject="Your password was changed",
        key=f"password_changed:{job.id}",
        greeting=greeting(user),
        link=f"{settings.base_url}/reset",
        label="Choose a new password",
    )
    await mailer.send(message)


async def _replace(
    database: Database,
    actor: Actor,
    guard: dict[str, object],
    user_id: ObjectId,
    hashed: str,
    action: Action,
    *,
    closed: bool = False,
) -> bool:
    """Set the password, cancel pending links, end all sessions and enqueue a mail, in one transaction. False
    if the guard no longer holds.
    """

    async def write(transaction: Database) -> bool:
        links = ("passwordResetToken", "passwordResetExpires", "emailVerificationToken")
        update = {"$set": {"password": hashed}, "$unset": dict.fromkeys(links, "")}
        if not await transaction.users.patch(guard, update, deleted=closed):
            return False
        await sessions.revoke_all(transaction, user_id)
        await records.write(transaction, actor, action, resource="users", resource_id=user_id, user_id=user_id)
        await send_changed.enqueue(transaction, PasswordChanged(user_id=user_id))
        return True

    return await database.transaction(write)


def _stored(token: str) -> str:
    """The stored form of a reset token."""
    return hashlib.sha256(token.encode()).hexdigest()
