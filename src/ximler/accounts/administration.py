"""Account administration: operators find, view, verify and lock accounts, and end their sessions.

Every function requires an operator and audits the access as well as the change: reading a page writes an
entry that names the users on it by id. Verifying, locking, unlocking and ending sessions require a recent
sign-in.
"""

import re
from collections.abc import Sequence
from datetime import datetime

import msgspec
from bson import ObjectId

from ximler.accounts import addresses, sessions, step_up, strength
from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import AccountExists
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.failures import DocumentExists
from ximler.database.updates import Update
from ximler.schema.audit_log import AuditLog
from ximler.schema.credential import CREDENTIALS, Credential, Role
from ximler.schema.session import SESSIONS, Session
from ximler.schema.user import User

__all__ = [
    "Account",
    "Event",
    "create",
    "get",
    "history",
    "lock",
    "open_sessions",
    "page",
    "revoke_sessions",
    "unlock",
    "verify",
]

_MAX_REASON = 500
_MAX_SEARCH = 320
_LAST = "\U0010ffff"
_HISTORY = (
    Action.SESSION_STARTED,
    Action.SIGN_IN_FAILED,
    Action.SIGN_IN_REFUSED,
    Action.CODE_REFUSED,
    Action.RECOVERY_CODE_USED,
    Action.SESSIONS_REVOKED,
    Action.USER_LOCKED,
    Action.USER_UNLOCKED,
)


class Account(msgspec.Struct, frozen=True):
    """A user, with role, lock and second factor."""

    user: User
    role: Role | None = None
    locked_at: datetime | None = None
    lock_reason: str | None = None
    second_factor: bool = False


class Event(msgspec.Struct, frozen=True):
    """A sign-in event of an account. `count` is the number of refusals within a minute."""

    at: datetime
    action: str
    address: str | None
    user_agent: str | None
    count: int
    reason: str | None


async def create(
    database: Database, keyring: Keyring, actor: Actor, *, name: str, email: str, password: str, verified: bool = True
) -> User:
    """Create an account without a confirmation link.
    Raises Invalid, WeakPassword, AccountExists, Forbidden."""
    actor.require_operator()
    name, email = names.checked(name, most=names.MAX_PERSON), addresses.normalised(email)
    await strength.check(keyring, password, own=(name, email))
    user = User(name=name, email=email, password=await keyring.hash_password(password), email_verified=verified)

    async def write(transaction: Database) -> User:
        made = await transaction.users.insert(user)
        await _note(transaction, actor, Action.USER_CREATED, made.id, after={"emailVerified": verified})
        return made

    try:
        return await database.transaction(write)
    except DocumentExists:
        raise AccountExists(
            f"There is an account with the address {user.email} already", fields={"email": "is taken"}
        ) from None


async def page(
    database: Database,
    actor: Actor,
    *,
    search: str | None = None,
    first: int = 20,
    after: Position | None = None,
) -> Page[Account]:
    """Users, newest first. `search` matches an id, or the beginning of an e-mail address or name.

    Raises Invalid, Forbidden.
    """
    actor.require_operator()
    found = await database.users.page(_matching(search), first=first, after=after)
    accounts = await _accounts(database, found.items)
    seen = [user.id for user in found.items]
    await records.write(database, actor, Action.USERS_LISTED, resource="users", seen=seen)
    return Page(accounts, found.cursors, has_next=found.has_next)


async def get(database: Database, actor: Actor, user_id: ObjectId) -> Account:
    """One account, open or closed. Raises NotFound, Forbidden."""
    actor.require_operator()
    user = await database.users.get(user_id, deleted=True)
    await _note(database, actor, Action.USER_VIEWED, user_id)
    return (await _accounts(database, [user]))[0]


async def verify(database: Database, actor: Actor, user_id: ObjectId) -> Account:
    """Mark the e-mail address as verified by an operator. Raises NotFound, Forbidden."""
    actor.require_operator()
    step_up.require(database, actor)

    async def write(transaction: Database) -> None:
        if await transaction.users.patch({"_id": user_id, "emailVerified": {"$ne": True}}, _VERIFIED):
            await _note(
                transaction,
                actor,
                Action.USER_VERIFIED,
                user_id,
                before={"emailVerified": False},
                after=_VERIFIED["$set"],
            )

    await database.transaction(write)
    return await _account(database, user_id)


async def lock(database: Database, actor: Actor, user_id: ObjectId, *, reason: str) -> Account:
    """Lock the account. Its sessions and pending links end in the same transaction.

    A concurrent sign-in writes the same document, so one of the two is retried and sees the other. Raises
    NotFound, Invalid without a reason, Conflict for one's own account, Forbidden.
    """
    actor.require_operator()
    step_up.require(database, actor)
    reason = reason.strip()
    if not 0 < len(reason) <= _MAX_REASON:
        raise Invalid.field("reason", f"is required, in 1 to {_MAX_REASON} characters: the next operator reads it")
    if user_id == actor.user_id:
        raise Conflict("Your own account cannot be locked by yourself: ask another operator")

    async def write(transaction: Database) -> None:
        await _touch(transaction, user_id, _NO_LINKS)
        locked = {"lockedAt": transaction.clock.now(), "lockReason": reason}
        await transaction[CREDENTIALS].upsert({"_id": user_id}, {"$set": locked}, fresh=Credential(id=user_id))
        ended = await sessions.revoke_all(transaction, user_id)
        await _note(transaction, actor, Action.USER_LOCKED, user_id, reason=reason, sessions=ended)

    await database.transaction(write)
    return await _account(database, user_id)


async def unlock(database: Database, actor: Actor, user_id: ObjectId) -> Account:
    """Unlock the account. Raises NotFound, Forbidden."""
    actor.require_operator()
    step_up.require(database, actor)

    async def write(transaction: Database) -> None:
        await _touch(transaction, user_id)
        before = await transaction[CREDENTIALS].find_and_patch(
            {"_id": user_id, "lockedAt": {"$ne": None}}, {"$unset": {"lockedAt": "", "lockReason": ""}}, before=True
        )
        if before is not None:
            await _touch(transaction, user_id, _NO_LINKS)  # a session that ended with the lock may have requested one
            await _note(transaction, actor, Action.USER_UNLOCKED, user_id, reason=before.lock_reason)

    await database.transaction(write)
    return await _account(database, user_id)


async def open_sessions(database: Database, actor: Actor, user_id: ObjectId) -> list[Session]:
    """The user's open sessions, newest first. Raises NotFound, Forbidden."""
    actor.require_operator()
    await database.users.get(user_id, deleted=True)
    await _note(database, actor, Action.USER_VIEWED, user_id, part="sessions")
    where = {"userId": user_id, "replacedAt": None, "expiresAt": {"$gt": database.clock.now()}}
    return sorted(await database[SESSIONS].find(where), key=lambda session: session.created_at, reverse=True)


async def revoke_sessions(database: Database, actor: Actor, user_id: ObjectId) -> int:
    """End every session of a user; returns how many. Raises NotFound, Forbidden."""
    actor.require_operator()
    step_up.require(database, actor)

    async def write(transaction: Database) -> int:
        await _touch(transaction, user_id)
        ended = await sessions.revoke_all(transaction, user_id)
        await records.write(
            transaction,
            actor,
            Action.SESSIONS_REVOKED,
            resource="users",
            resource_id=user_id,
            user_id=user_id,
            count=ended,
        )
        return ended

    return await database.transaction(write)


async def history(
    database: Database, actor: Actor, user_id: ObjectId, *, first: int = 20, after: Position | None = None
) -> Page[Event]:
    """The user's sign-ins, including failed ones, newest first, from the audit log. Raises NotFound,
    Forbidden.
    """
    actor.require_operator()
    await database.users.get(user_id, deleted=True)
    await _note(database, actor, Action.USER_VIEWED, user_id, part="history")
    where = {"userId": user_id, "action": {"$in": list(_HISTORY)}}
    page = await database.audit_logs.page(where, first=first, after=after)
    return Page([_event(entry) for entry in page.items], page.cursors, has_next=page.has_next)


def _event(entry: AuditLog) -> Event:
    details = entry.metadata or {}
    return Event(
        at=entry.created_at,
        action=entry.action,
        address=entry.ip_address,
        user_agent=entry.user_agent,
        count=details.get("count", 1),
        reason=details.get("reason"),
    )


# An attacker whose access caused the lock may have requested a change of address.
_NO_LINKS: Update = {
    "$unset": dict.fromkeys(("passwordResetToken", "passwordResetExpires", "emailVerificationToken"), "")
}
_VERIFIED = {"$set": {"emailVerified": True}}


def _matching(search: str | None) -> dict[str, object]:
    text = (search or "").strip()
    if len(text) > _MAX_SEARCH:
        raise Invalid.field("search", f"is longer than {_MAX_SEARCH} characters")
    if not text:
        return {}
    if "@" not in text and ObjectId.is_valid(text):
        return {"_id": ObjectId(text)}
    # Ranges instead of patterns use an index for any input. Names match as typed and in common
    # capitalisation.
    names = {text, text.title(), text.capitalize()}
    # Other applications store capitals, and domains as A-labels. Patterns, because `find` converts other
    # operands to lower case.
    others = {text, *addresses.alternatives(text)} - {text.lower()}
    found = [_beginning("email", text.lower()), *({"email": {"$regex": f"^{re.escape(each)}"}} for each in others)]
    return {"$or": [*found, *(_beginning("name", name) for name in sorted(names))]}


def _beginning(field: str, text: str) -> dict[str, object]:
    return {field: {"$gte": text, "$lt": text + _LAST}}


async def _touch(transaction: Database, user_id: ObjectId, change: Update | None = None) -> None:
    """Write the user's document, so that concurrent decisions about the user are retried. Raises NotFound."""
    if not await transaction.users.patch({"_id": user_id}, change or {}, deleted=True):
        raise NotFound("No such user")


async def _note(database: Database, actor: Actor, action: Action, user_id: ObjectId, **details: object) -> None:
    await records.write(
        database,
        actor,
        action,
        resource="users",
        resource_id=user_id,
        user_id=user_id,
        **details,  # type: ignore[arg-type]  # `before` and `after` are mappings
    )


async def _account(database: Database, user_id: ObjectId) -> Account:
    return (await _accounts(database, [await database.users.get(user_id, deleted=True)]))[0]


async def _accounts(database: Database, users: Sequence[User]) -> list[Account]:
    found = await database[CREDENTIALS].find({"_id": {"$in": [user.id for user in users]}}) if users else []
    by_id = {credential.id: credential for credential in found}
    return [_joined(user, by_id.get(user.id)) for user in users]


def _joined(user: User, credential: Credential | None) -> Account:
    if credential is None:
        return Account(user)
    return Account(
        user,
        role=credential.role,
        locked_at=credential.locked_at,
        lock_reason=credential.lock_reason,
        second_factor=credential.totp_secret is not None,
    )
