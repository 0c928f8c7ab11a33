"""Closing an account, and reopening it within 30 days.

A closed account has no sessions, its keys are rejected, and it is not found. Its address stays reserved.
After 30 days the job that `close` enqueues anonymises it (`privacy.erasure`).
"""

from datetime import datetime

from bson import ObjectId

from ximler.accounts import reopening, sessions, step_up
from ximler.accounts.keyring import Keyring
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.updates import Update
from ximler.notifications.email import Mailer, compose, greeting
from ximler.schema.document import Document
from ximler.schema.user import User

__all__ = ["ANONYMISE", "Closed", "close", "reopen", "send_closed"]


class Closed(Document, kw_only=True):
    user_id: ObjectId
    closed_at: datetime


ANONYMISE = outbox.job("accounts.anonymise", Closed)  # done by `privacy.erasure`


async def close(database: Database, actor: Actor, user: User) -> datetime:
    """Close the actor's own account; returns when it will be erased. Every session ends.

    Raises StepUpRequired without a recent sign-in, Conflict if the password was changed concurrently.
    """
    step_up.require(database, actor)
    if user.id != actor.require_user():
        raise NotFound("No such user")
    now = database.clock.now()

    async def write(transaction: Database) -> None:
        # Guarded by the password: a concurrent change of password ends this session and wins.
        update: Update = {
            "$set": {"deletedAt": now, "closedAt": now},
            "$unset": {"passwordResetToken": "", "passwordResetExpires": ""},
        }
        if not await transaction.users.patch({"_id": user.id, "password": user.password}, update):
            raise Conflict("The account was changed at the same moment: sign in again")
        await sessions.revoke_all(transaction, user.id)
        closed = Closed(user_id=user.id, closed_at=now)
        await send_closed.enqueue(transaction, closed)
        await ANONYMISE.enqueue(transaction, closed, run_at=reopening.erased_at(now))
        await records.write(
            transaction,
            actor,
            Action.ACCOUNT_CLOSED,
            resource="users",
            resource_id=user.id,
            after={"deletedAt": now},
        )

    await database.transaction(write)
    return reopening.erased_at(now)


async def reopen(
    database: Database,
    keyring: Keyring,
    settings: Settings,
    actor: Actor,
    *,
    email: str,
    password: str,
    code: str | None = None,
    device: str | None = None,
) -> sessions.SignedIn:
    """Sign in, and reopen the account in the same transaction if it is closed.

    Same requirements and errors as a sign-in.
    """
    return await sessions.sign_in(
        database, keyring, settings, actor, email=email, password=password, code=code, device=device, reopen=True
    )


@outbox.job("accounts.send_closed", Closed)
async def send_closed(
    payload: Closed, *, job: outbox.Job, database: Database, settings: Settings, mailer: Mailer
) -> None:
    """The job behind `close`: mail the owner the deadline for reopening, or that an operator closed the
    account.
    """
    user = await database.users.find_one({"_id": payload.user_id}, deleted=True)
    if user is None or user.closed_at is None:
        return  # reopened since
    message = compose(
        "account_closed",
        settings,
        to=user.email,
        subject="Your account is closed",
        key=f"account_closed:{job.id}",
        greeting=greeting(user),
        until=reopening.day(reopening.erased_at(user.closed_at)),
        link=settings.base_url,
        label="Reopen my account",
    )
    await mailer.send(message)
