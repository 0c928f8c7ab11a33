"""Signing in and out, and knowing who comes with a token."""

import asyncio
from datetime import timedelta

import msgspec

from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import address
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.schema.session import SESSIONS, Session
from ximler.schema.user import User

__all__ = ["BadCredentials", "SessionExpired", "SignedIn", "authenticate", "sign_in", "sign_out"]


class BadCredentials(Unauthenticated):
    code = "BAD_CREDENTIALS"


class SessionExpired(Unauthenticated):
    code = "SESSION_EXPIRED"


class SignedIn(msgspec.Struct, frozen=True):
    """`token` is shown here and nowhere else again."""

    token: str
    session: Session
    user: User


async def sign_in(
    database: Database, keyring: Keyring, settings: Settings, actor: Actor, *, email: str, password: str
) -> SignedIn:
    """A session for the right password. Raises BadCredentials, the same and as fast for an unknown address."""
    try:
        email = address(email)
    except Invalid:
        email = ""  # nobody's: and it takes as long as anybody's
    user = await database.users.find_one({"email": email})
    if not await keyring.verify_password(user.password if user else None, password) or user is None:
        raise BadCredentials("The e-mail address or the password is not right")
    now = database.clock.now()
    token, token_id = keyring.new_token()
    session = Session(
        id=token_id,
        user_id=user.id,
        expires_at=now + timedelta(days=settings.session_days),
        address=actor.address,
        user_agent=actor.user_agent,
    )
    touch: dict[str, object] = {"lastLogin": now}
    if fresh := await keyring.rehash(user.password, password):
        touch["password"] = fresh
    session, _ = await asyncio.gather(
        database[SESSIONS].insert(session),
        database.users.patch({"_id": user.id, "password": user.password}, {"$set": touch}),
    )
    return SignedIn(token, session, user)


async def sign_out(database: Database, actor: Actor) -> bool:
    """End the actor's own session; False when it was over already."""
    if actor.session_id is None:
        raise Unauthenticated("You are not signed in")
    return await database[SESSIONS].delete({"_id": actor.session_id})


async def authenticate(database: Database, keyring: Keyring, token: str) -> tuple[Session, User]:
    """The session and its user, with one command. Raises SessionExpired for anything but a live session of a live user."""
    ids = keyring.token_ids(token)
    found = (
        await database[SESSIONS].aggregate(
            [
                {"$match": {"_id": {"$in": ids}, "expiresAt": {"$gt": database.clock.now()}}},
                {"$lookup": {"from": "users", "localField": "userId", "foreignField": "_id", "as": "user"}},
            ]
        )
        if ids
        else []
    )
    users = [user for row in found for user in row.pop("user") if user.get("deletedAt") is None]
    if not users:
        raise SessionExpired("This session has ended: sign in again")
    return codec_of(Session).decode(found[0]), codec_of(User).decode(users[0])
