"""Registration: `register`, a confirmation link, `confirm`.

`register` does not read the accounts: it stores a registration and responds in the same way and time for new,
taken and pending addresses. Only the owner of the mailbox learns more. A registration carries its own
password, which confirmation requires, so registering a victim's address gains an attacker nothing, whether or
not the victim follows the link.
"""

from datetime import timedelta
from typing import Any

from bson import ObjectId

from ximler.accounts import addresses, reopening, strength, throttle, unconfirmed
from ximler.accounts.keyring import Keyring, acceptable
from ximler.accounts.throttle import Rule
from ximler.audit import records, refusals
from ximler.audit.actions import Action
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, all_of
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.failures import DocumentExists
from ximler.notifications.email import Mailer, compose
from ximler.schema.document import Document
from ximler.schema.registration import REGISTRATIONS, Registration
from ximler.schema.user import User

__all__ = ["AccountExists", "Registered", "confirm", "is_open", "register", "send_link"]

_PURPOSE = "confirm"
_VALIDITY = timedelta(hours=24)
_ADDRESS = Rule(name="register, address", free=30, window=timedelta(hours=1))
_MAILBOX = Rule(name="register, mailbox", free=5, window=timedelta(hours=1), first_s=60)
_MAX_ATTEMPTS = 5


class AccountExists(Conflict):
    code = "ACCOUNT_EXISTS"


async def register(database: Database, keyring: Keyring, actor: Actor, *, name: str, email: str, password: str) -> None:
    """Accept a registration and mail its link. Six commands for every address.

    Raises Invalid for an invalid name, address or password, WeakPassword, Throttled.
    """
    name, email, _ = all_of(
        lambda: names.checked(name, most=names.MAX_PERSON),
        lambda: addresses.normalised(email),
        lambda: acceptable(password),
    )
    await throttle.spend(
        database, throttle.at_address(keyring, _ADDRESS, actor.address)
    )  # before the password, whose checks take time
    await strength.check(keyring, password, own=(name, email))
    await throttle.spend(database, [throttle.key(keyring, _MAILBOX, email)])
    registration = Registration(
        name=name,
        email=email,
        password=await keyring.hash_password(password),
        expires_at=database.clock.now() + _VALIDITY,
        network=unconfirmed.network(keyring, actor.address),
    )

    async def write(transaction: Database) -> None:
        await transaction[REGISTRATIONS].insert(registration)
        await send_link.enqueue(transaction, Registered(registration_id=registration.id, network=registration.network))

    await database.transaction(write)


class Registered(Document, kw_only=True):
    registration_id: ObjectId
    network: str = ""


@outbox.job("accounts.send_confirmation", Registered, kept=False)
async def send_link(
    payload: Registered, *, database: Database, keyring: Keyring, settings: Settings, mailer: Mailer
) -> None:
    """The job behind `register`: mail the link. Owners of an account are notified that it exists or can be
    reopened.

    A repeat sends the same message and link. Nothing is sent for an expired registration.
    """
    found = await database[REGISTRATIONS].find_one({"_id": payload.registration_id})
    if found is None:
        return
    await addresses.random_pause()
    holder = await addresses.holder(database, found.email)
    if holder is not None and holder.closed_at is not None and holder.can_reopen:
        message = compose(
            "reopen_offer",
            settings,
            to=found.email,
            subject="Your account can be reopened",
            key=f"reopen:{found.id}",
            until=reopening.day(reopening.erased_at(holder.closed_at)),
            link=settings.base_url,
            label="Reopen my account",
        )
    elif holder is not None:
        message = compose(
            "account_exists",
            settings,
            to=found.email,
            subject="You have an account already",
            key=f"exists:{found.id}",
            link=settings.base_url,
            label="Sign in",
        )
    else:
        message = compose(
            "confirm",
            settings,
            to=found.email,
            subject="Confirm your e-mail address",
            key=f"confirm:{found.id}",
            label="Create my account",
            link=f"{settings.base_url}/confirm?token={keyring.sign(_PURPOSE, found.id)}",
            hours=_VALIDITY // timedelta(hours=1),
        )
    await mailer.send(message)


async def is_open(database: Database, keyring: Keyring, token: str) -> bool:
    """Whether the link of a confirmation still works."""
    registration_id = keyring.verify(_PURPOSE, token)
    if registration_id is None:
        return False
    return await database[REGISTRATIONS].find_one(_waiting(database, registration_id)) is not None


def _waiting(database: Database, registration_id: ObjectId) -> dict[str, Any]:
    return {
        "_id": registration_id,
        "expiresAt": {"$gt": database.clock.now()},
        "attempts": {"$not": {"$gte": _MAX_ATTEMPTS}},
    }


async def confirm(database: Database, keyring: Keyring, actor: Actor, token: str, *, password: str) -> User:
    """Create the registration's account, given the link's token and the password of the registration.

    Both are needed: the link proves access to the mailbox, the password that the same person registered.
    Otherwise an attacker could have a stranger confirm an account with the attacker's password. The link
    works once and accepts five passwords, because the owner of a mistyped address must not guess the
    password.

    Raises Invalid for a token that is unknown, used or expired, or a wrong password, AccountExists if the
    address has an account by now.
    """
    registration_id = keyring.verify(_PURPOSE, token)
    spent = Invalid.field("token", "is not valid, or was used, or is older than 24 hours: register again")
    if registration_id is None:
        raise spent
    waiting = _waiting(database, registration_id)
    found = await database[REGISTRATIONS].find_and_patch(waiting, {"$inc": {"attempts": 1}})
    if found is None:
        raise spent
    if not await keyring.verify_password(found.password, password):
        await refusals.count(
            database,
            actor,
            Action.PASSWORD_REFUSED,
            resource="registrations",
            resource_id=found.id,
            subject=str(found.id),
        )
        raise Invalid.field("password", "is not the password you registered with: try again")
    registered = found

    async def write(transaction: Database) -> User:
        if not await transaction[REGISTRATIONS].delete({"_id": registered.id}):
            raise spent
        user = await transaction.users.insert(
            User(name=registered.name, email=registered.email, password=registered.password, email_verified=True)
        )
        await records.write(
            transaction,
            actor,
            Action.REGISTRATION_CONFIRMED,
            resource="users",
            resource_id=user.id,
            user_id=user.id,
        )
        return user

    try:
        return await database.transaction(write)
    except DocumentExists:
        raise AccountExists(
            "There is an account with this address already: sign in instead", fields={"email": "has an account"}
        ) from None
