"""Sessions: sign in, sign out, exchange, list and revoke."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from bson import ObjectId

from ximler.accounts import account_status, attempts, origins, reopening, second_factor, session_authentication
from ximler.accounts.keyring import Keyring
from ximler.accounts.session_authentication import SessionExpired, family
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import shifted
from ximler.core.errors import NotFound, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.session import SESSIONS, Session
from ximler.schema.user import User

__all__ = [
    "MOST",
    "BadCredentials",
    "SessionExpired",
    "SignedIn",
    "authenticate",
    "mine",
    "refresh",
    "revoke",
    "revoke_all",
    "revoke_others",
    "sign_in",
    "sign_out",
    "start",
]


MOST = 1000  # sessions of an account, exchanged ones included


class BadCredentials(Unauthenticated):
    code = "BAD_CREDENTIALS"


class SignedIn(msgspec.Struct, frozen=True):
    """`token` is shown only here. `device` identifies this device at its next sign-in."""

    token: str
    session: Session
    user: User
    device: str

    def __repr__(self) -> str:
        return f"SignedIn({self.user!r})"


async def sign_in(
    database: Database,
    keyring: Keyring,
    settings: Settings,
    actor: Actor,
    *,
    email: str,
    password: str,
    code: str | None = None,
    device: str | None = None,
    reopen: bool = False,
) -> SignedIn:
    """Start a session, given the password and, if the account has a second factor, its code.

    `device` is the token of an earlier sign-in; with it, throttling by other devices' failures does not
    apply. Raises Throttled, BadCredentials, with the same timing for unknown addresses; only after the right
    password AccountLocked, AccountClosed (unless `reopen`), SecondFactorRequired, WrongCode, TooManyCodes.
    """
    async with keyring.turn():
        attempt = await attempts.begin(database, keyring, actor, email=email, device=device)
        user, credential = attempt.user, attempt.credential
        if not await keyring.verify_password(user.password if user else None, password) or user is None:
            await attempts.fail(database, actor, attempt)
            raise BadCredentials("The e-mail address or the password is not right")
    known = user
    attempts.refuse_too_many(attempt)
    if credential and credential.locked_at:
        await attempts.refuse_locked(database, actor, attempt)
    if user.can_reopen and not reopen:
        raise reopening.refusal(user)
    await second_factor.prove(database, keyring, actor, credential, code)

    async def check(transaction: Database) -> dict[str, Any]:
        now = await second_factor.still_proved(transaction, known.id, credential)
        if now and now.locked_at:
            raise attempts.locked()
        if attempt.sessions >= MOST:
            await _end_oldest(transaction, known.id)
        return await origins.recognise(
            transaction,
            known,
            now,
            place=origins.place_of(settings, actor.address),
            browser=attempts.family(actor.user_agent),
            known_device=attempt.known_device,
        )

    signed_in = await start(
        database,
        keyring,
        settings,
        actor,
        user,
        fresh_hash=await keyring.rehash(user.password, password),
        check=check,
        device=attempt.device,
        returns=attempt.returns,
    )
    await attempts.succeed(database, attempt)
    return signed_in


async def _end_oldest(transaction: Database, user_id: ObjectId) -> None:
    """Make room for one more session: exchanged ones first, then those unused for longest."""
    found = await transaction[SESSIONS].find({"userId": user_id})
    found.sort(key=lambda session: (session.replaced_at is None, session.expires_at))
    oldest = [session.id for session in found[: 1 - MOST]]
    for session_id in oldest:
        transaction.forget(SESSIONS.name, session_id)
    await transaction[SESSIONS].delete_many({"userId": user_id, "_id": {"$in": oldest}})


async def start(
    database: Database,
    keyring: Keyring,
    settings: Settings,
    actor: Actor,
    user: User,
    *,
    fresh_hash: str | None = None,
    check: Callable[[Database], Awaitable[Mapping[str, Any]]] | None = None,
    device: ObjectId | None = None,
    returns: bool = False,
) -> SignedIn:
    """Start a session for a user whose password was just verified. Raises BadCredentials if it has changed
    since.

    One transaction, guarded by the password, so that a sign-in with an old password cannot survive a change
    of password, which ends all sessions. `check` runs in it after the user's document is written, and
    returns fields for the credential. A closed account is reopened. `device` is known already (`returns`:
    not shown before); another is remembered.
    """
    now = database.clock.now()
    token, token_id = keyring.new_token()
    session = Session(
        id=token_id,
        user_id=user.id,
        expires_at=_expiry(settings, now, now),
        ends_at=now + timedelta(days=settings.session_max_days),
        authenticated_at=now,
        address=actor.address,
        user_agent=actor.user_agent,
        place=origins.place_of(settings, actor.address),
        device=device or attempts.new_device(now, token_id),
    )
    touch = {"lastLogin": now} | ({"password": fresh_hash} if fresh_hash else {})

    async def write(transaction: Database) -> Session:
        if user.can_reopen:
            await reopening.reopen(transaction, actor, user)
        if not await transaction.users.patch({"_id": user.id, "password": user.password}, {"$set": touch}):
            raise BadCredentials("The e-mail address or the password is not right")
        remembered = await check(transaction) if check is not None else {}
        await attempts.keep(transaction, session, remembered, is_new=device is None, returns=returns)
        await records.write(
            transaction,
            actor,
            Action.SESSION_STARTED,
            resource="sessions",
            resource_id=session.public_id,
            user_id=user.id,
        )
        return await transaction[SESSIONS].insert(session)

    begun = await database.transaction(write)
    return SignedIn(token, begun, user, attempts.remember(keyring, begun, fresh_hash or user.password))


async def mine(database: Database, actor: Actor) -> list[Session]:
    """The actor's live sessions, newest first."""
    where = {"userId": actor.require_user(), "replacedAt": None, "expiresAt": {"$gt": database.clock.now()}}
    return sorted(await database[SESSIONS].find(where), key=lambda session: session.created_at, reverse=True)


async def revoke(database: Database, actor: Actor, public_id: str) -> Session:
    """End one of the actor's sessions. Raises NotFound."""
    found = next((session for session in await mine(database, actor) if session.public_id == public_id), None)
    if found is None:
        raise NotFound("No such session")

    async def write(transaction: Database) -> None:
        if not await transaction[SESSIONS].delete_many(family(found)):
            raise NotFound("No such session")
        transaction.forget(SESSIONS.name, found.id)
        await records.write(
            transaction, actor, Action.SESSION_REVOKED, resource=SESSIONS.name, resource_id=found.public_id
        )

    await database.transaction(write)
    return found


async def revoke_others(database: Database, actor: Actor) -> int:
    """End all of the actor's sessions except the current one; returns how many."""
    user_id = actor.require_user()

    async def write(transaction: Database) -> int:
        count = await revoke_all(transaction, user_id, but=actor.session_id)
        if count:
            await records.write(
                transaction, actor, Action.SESSIONS_REVOKED, resource="users", resource_id=user_id, count=count
            )
        return count

    return await database.transaction(write)


async def revoke_all(transaction: Database, user_id: ObjectId, *, but: bytes | None = None) -> int:
    """End every session of a user, or all but one, in the caller's transaction; returns how many."""
    account_status.forget(transaction, user_id)
    return await transaction[SESSIONS].delete_many({"userId": user_id} | ({"_id": {"$ne": but}} if but else {}))


async def sign_out(database: Database, actor: Actor) -> bool:
    """End the actor's own session. False if it had ended already."""
    if actor.session_id is None:
        raise Unauthenticated("You are not signed in")
    return await database[SESSIONS].delete({"_id": actor.session_id})


async def refresh(database: Database, keyring: Keyring, settings: Settings, actor: Actor, user: User) -> SignedIn:
    """Exchange the actor's token for a new one with the same sign-in and expiry. The old token is rejected
    from now on.

    A concurrently revoked session is not revived, and of racing exchanges one succeeds. Raises
    SessionExpired.
    """
    if actor.session_id is None:
        raise Unauthenticated("You are not signed in")
    now = database.clock.now()
    token, token_id = keyring.new_token()

    async def write(transaction: Database) -> Session:
        live = {"_id": actor.session_id, "userId": user.id, "replacedAt": None, "expiresAt": {"$gt": now}}
        old = await transaction[SESSIONS].find_and_patch(live, {"$set": {"replacedAt": now}}, before=True)
        if old is None:
            raise SessionExpired("This session has ended, or its token was exchanged already")
        fresh = Session(
            id=token_id,
            user_id=user.id,
            created_at=old.created_at,
            expires_at=_expiry(settings, old.created_at, now),
            ends_at=old.ends_at or shifted(old.created_at, timedelta(days=settings.session_max_days)),
            family=old.sign_in_id,
            authenticated_at=old.proved_at,
            address=actor.address,
            user_agent=actor.user_agent,
            place=origins.place_of(settings, actor.address),
            device=old.device,
        )
        return await transaction[SESSIONS].insert(fresh)

    exchanged = await database.transaction(write)
    return SignedIn(token, exchanged, user, attempts.remember(keyring, exchanged, user.password))


async def authenticate(database: Database, keyring: Keyring, token: str) -> tuple[Session, User]:
    """The session and its user, with one command. Raises SessionExpired unless both are live.

    Requests use the cache of `session_authentication.SessionAuthenticator` instead.
    """
    ids = keyring.token_ids(token)
    found = await session_authentication.admit(
        database, (await session_authentication.read(database, ids))[0] if ids else None, Actor()
    )
    return found.session, found.account.user


def _expiry(settings: Settings, began: datetime, now: datetime) -> datetime:
    """The expiry of an unused session."""
    return min(
        shifted(now, timedelta(days=settings.session_days)), shifted(began, timedelta(days=settings.session_max_days))
    )
