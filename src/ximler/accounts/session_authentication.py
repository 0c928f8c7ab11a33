"""Session authentication: the user of a session token, from memory if it is cached, else by one read.

A session expires after `session_days` without use, and after `session_max_days` in any case. Its holder may
exchange its token (`sessions.refresh`). An exchanged token that is used again later is a copy, so every
session of that sign-in ends.
"""

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ximler.accounts import account_status
from ximler.accounts.account_status import AccountStatus
from ximler.accounts.keyring import Keyring
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated, Unavailable
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.cache import Cache, Tag, Watch
from ximler.database.changes import Feed
from ximler.database.codec import codec_of
from ximler.schema.session import SESSIONS, Session

__all__ = ["AuthenticatedSession", "SessionAuthenticator", "SessionExpired", "admit", "family", "read"]

_WATCHES = (Watch(collection=SESSIONS.name), *account_status.WATCHES)
_EXTEND_EVERY = timedelta(hours=1)
_WRITE_EVERY_S = 5.0
# Of two concurrent exchanges the second may still send the old token: it is rejected, and not treated as
# theft.
_LEEWAY = timedelta(seconds=10)


class SessionExpired(Unauthenticated):
    code = "SESSION_EXPIRED"


class AuthenticatedSession(msgspec.Struct, frozen=True, gc=False):
    """A session and its user's account status."""

    session: Session
    account: AccountStatus


class SessionAuthenticator:
    """One per process, on its change feed. `run` extends sessions in use."""

    def __init__(self, database: Database, keyring: Keyring, settings: Settings, feed: Feed) -> None:
        self._database = database
        self._keyring = keyring
        self._idle = timedelta(days=settings.session_days)
        self._cache: Cache[bytes, AuthenticatedSession] = Cache(feed, _WATCHES)
        self._used: dict[bytes, Session] = {}

    def at_hand(self, token: str) -> AuthenticatedSession | None:
        """The live session of a live user, if it is cached: as `authenticate`, without awaiting.

        None means unknown: call `authenticate`.
        """
        ids = self._keyring.token_ids(token)
        found = self._cache.peek(ids[0]) if ids else None
        if found.__class__ is not AuthenticatedSession:
            return None
        session, now = found.session, self._database.clock.now()
        if session.expires_at <= now or session.replaced_at is not None or found.account.locked:
            return None
        self._use(session, now)
        return found

    def _use(self, session: Session, now: datetime) -> None:
        if session.ends_at is not None and session.expires_at < min(session.ends_at, now + self._idle - _EXTEND_EVERY):
            self._used[session.id] = session

    async def authenticate(self, token: str, origin: Actor) -> AuthenticatedSession:
        """The live session of a live user. At most one round trip, none if it is cached.

        Raises SessionExpired, AccountLocked.
        """
        ids = self._keyring.token_ids(token)
        if not ids:
            raise SessionExpired("This session has ended: sign in again")

        async def load(_: bytes) -> tuple[AuthenticatedSession | None, list[Tag]]:
            return await read(self._database, ids)

        found = await admit(self._database, await self._cache.get(ids[0], load), origin)
        self._use(found.session, self._database.clock.now())
        return found

    async def run(self, stop: asyncio.Event) -> None:
        """Extend sessions until stopped, then those that are pending."""
        stopped = False
        while not stopped:
            stopped = await pause(stop, _WRITE_EVERY_S)
            with contextlib.suppress(Unavailable):
                await self.extend()

    async def extend(self) -> None:
        """Write the use of sessions, at most once an hour for each. Ended sessions stay ended."""
        used, self._used = self._used, {}
        now = self._database.clock.now()
        by_end: dict[datetime, list[bytes]] = {}
        for session in used.values():
            end = now + self._idle
            by_end.setdefault(end if session.ends_at is None else min(end, session.ends_at), []).append(session.id)
        try:
            for end, ids in by_end.items():
                alive = {"_id": {"$in": ids}, "replacedAt": None, "expiresAt": {"$gt": now}}
                await self._database[SESSIONS].patch_many(alive, {"$set": {"expiresAt": end}})
        except Exception:
            self._used = used | self._used
            raise


async def read(database: Database, ids: list[bytes]) -> tuple[AuthenticatedSession | None, list[Tag]]:
    """The session under one of these ids with its user's account status, and the cache tags of the result.
    One command.
    """
    tags: list[Tag] = [(SESSIONS.name, each) for each in ids]
    rows = await database[SESSIONS].aggregate(
        [{"$match": {"_id": {"$in": ids}}}, {"$limit": 1}, *account_status.lookups()]
    )
    if not rows:
        return None, tags
    session, owner = codec_of(Session).decode(rows[0]), account_status.read(rows[0])
    tags += account_status.tags(session.user_id)
    return None if owner is None else AuthenticatedSession(session, owner), tags


async def admit(database: Database, found: AuthenticatedSession | None, origin: Actor) -> AuthenticatedSession:
    """Admit the session if it is live. Raises SessionExpired, AccountLocked."""
    now = database.clock.now()
    if found is None or found.session.expires_at <= now:
        raise SessionExpired("This session has ended: sign in again")
    replaced = found.session.replaced_at
    if replaced is not None:
        if now - replaced < _LEEWAY:
            raise SessionExpired("This session's token was just exchanged: use the new one")
        await _end_family(database, found.session, origin)
        raise SessionExpired("This token was exchanged before and may be a copy: sign in again")
    found.account.require_unlocked()
    return found


def family(session: Session) -> dict[str, Any]:
    """Filter for every session of the same sign-in, including exchanged ones. Uses the index on `userId`."""
    first = session.sign_in_id
    return {"userId": session.user_id, "$or": [{"_id": first}, {"family": first}]}


async def _end_family(database: Database, session: Session, origin: Actor) -> None:
    async def write(transaction: Database) -> None:
        if not await transaction[SESSIONS].delete_many(family(session)):
            return
        await records.write(
            transaction, origin, Action.SESSION_REUSED, resource=SESSIONS.name,
            resource_id=session.public_id, user_id=session.user_id,
        )  # fmt: skip
        account_status.forget(transaction, session.user_id)

    await database.transaction(write)
