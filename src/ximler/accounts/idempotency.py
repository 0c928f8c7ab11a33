"""`Idempotency-Key`: a request repeated within 24 hours receives the stored response and has no further
effect.

A key belongs to its sender: a user, an API key or, without authentication, the network address. It is claimed
before the work and answered after it, with one command each. The response to a request that ended its own
session is also stored under that session's token (`answered`): for sessions, one command looks for such a
response and one checks that the session still exists. Responses may contain secrets that are shown once
(session tokens, API keys), so they are encrypted under the secret key *and* the client's key, which is not
stored: neither the database nor the server can read them before the client repeats the request.

Limit: a process that dies between the work and the response leaves a claim that expires after a minute; a
repeat then runs the work again.
"""

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ximler.accounts import unconfirmed
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid
from ximler.core.networks import subscriber
from ximler.database import Database
from ximler.database.connection import commits
from ximler.database.failures import DocumentExists
from ximler.schema.reply import REPLIES, Reply
from ximler.schema.session import SESSIONS

__all__ = ["LEASE", "MAX_ANSWER", "Answer", "AnswerNotKept", "KeyInUse", "KeyReused", "answered", "once"]

LEASE = timedelta(seconds=60)
MAX_ANSWER = 32_000  # bytes: responses of mutations are small, but a day of them is stored without metering
_MAX_ANONYMOUS = 4_000
_OTHERS = 5  # other requests under a key, which may be guesses of a password in the first
_NOT_KEPT = b"not kept"  # the work was done; its response was too large or lost
_KEPT = timedelta(hours=24)
_KEY = re.compile(r"[!-~]{1,255}")  # visible ASCII
_NONCE_BYTES = 12
_RETRY_S = 1.0


class KeyReused(Conflict):
    code = "IDEMPOTENCY_KEY_REUSED"


class AnswerNotKept(Conflict):
    code = "IDEMPOTENT_ANSWER_NOT_KEPT"


class KeyInUse(Conflict):
    code = "IDEMPOTENCY_KEY_IN_USE"


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`final` is false if the request changed nothing, so that a repeat runs it again. It is not stored."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = []
    final: bool = True


async def once(
    database: Database,
    keyring: Keyring,
    actor: Actor,
    *,
    key: str,
    request: bytes,
    work: Callable[[], Awaitable[Answer]],
) -> tuple[Answer, bool]:
    """The response of `work`, or the stored one of this key; and whether it is the stored one. Two commands
    more than the work, three for a session.

    Raises Invalid for a malformed key, KeyReused if it was used for another request, KeyInUse (with the
    seconds to wait) while the first request is running, AnswerNotKept if the response is larger than
    `MAX_ANSWER` (4 kB for a caller without an account) or the work failed after one of its transactions was
    committed.
    """
    anonymous = actor.user_id is None and actor.api_key_id is None
    place = _Place(keyring, _whose(actor), key, request, most=_MAX_ANONYMOUS if anonymous else MAX_ANSWER)
    claim = await _claim(database, place, unconfirmed.network(keyring, actor.address) if anonymous else None)
    if claim.answer is not None:
        return place.open(claim.answer), True
    mine = {"_id": place.id, "leasedUntil": claim.leased_until}
    with commits() as committed:
        try:
            answer = await work()
        except BaseException as error:
            if committed:  # it failed after a part was committed
                await database[REPLIES].patch(mine, {"$set": {"answer": _NOT_KEPT}})
            elif isinstance(error, Exception):
                await database[REPLIES].delete(mine)
            raise
    if not answer.final and not committed:
        await database[REPLIES].delete(mine)
        return answer, False
    await database[REPLIES].patch(mine, {"$set": {"answer": place.seal(answer)}})
    if actor.session_id is not None and await _has_ended(database, actor.session_id):
        # The work ended its own session: store the response under the session's token as well.
        now = database.clock.now()
        own = _Place(keyring, _session(actor.session_id), key, request)
        reply = Reply(
            id=own.id, request=own.fingerprint, answer=own.seal(answer), leased_until=now, expires_at=now + _KEPT
        )
        with contextlib.suppress(DocumentExists):
            await database[REPLIES].insert(reply)
    return answer, False


async def answered(database: Database, keyring: Keyring, token: str, *, key: str, request: bytes) -> Answer | None:
    """The stored response to a request that ended its own session, such as `signOut`, or None. One command.

    Call it before the token is authenticated, because an exchanged token would count as stolen. Raises
    KeyReused.
    """
    if not _KEY.fullmatch(key):
        return None
    places = [_Place(keyring, _session(session_id), key, request) for session_id in keyring.token_ids(token)]
    found = await database[REPLIES].find_one({"_id": {"$in": [place.id for place in places]}}) if places else None
    if found is None or found.answer is None or found.expires_at <= database.clock.now():
        return None
    place = next(place for place in places if place.id == found.id)
    place.require_same(found)
    return place.open(found.answer)


class _Place:
    """The reply of one sender and key: its id, fingerprint and encryption. Raises Invalid for a malformed
    key.
    """

    def __init__(self, keyring: Keyring, whose: str, key: str, request: bytes, *, most: int = MAX_ANSWER) -> None:
        if not _KEY.fullmatch(key):
            raise Invalid.field(
                "Idempotency-Key", "must be 1 to 255 visible ASCII characters: a random UUID, for example"
            )
        subject = f"{whose}|{key}"
        self.id = keyring.digest("reply", subject)
        self.fingerprint = hmac.new(keyring.digest("reply request", subject), request, hashlib.sha256).digest()
        self._most = most
        self._cipher = AESGCM(keyring.digest("reply answer", subject))

    def seal(self, answer: Answer) -> bytes:
        if not answer.final or len(answer.body) > self._most:
            return _NOT_KEPT
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, msgspec.msgpack.encode(answer), self.id)

    def open(self, sealed: bytes) -> Answer:
        """Raises AnswerNotKept."""
        if sealed == _NOT_KEPT:
            raise AnswerNotKept(
                "This request was carried out, but its response was not kept: read the current state instead"
            )
        opened = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self.id)
        return msgspec.msgpack.decode(opened, type=Answer)

    def is_same(self, found: Reply) -> bool:
        return hmac.compare_digest(found.request, self.fingerprint)

    def require_same(self, found: Reply) -> None:
        """Raises KeyReused if the key was used for another request, or for many others."""
        if found.others >= _OTHERS or not self.is_same(found):
            raise KeyReused("This Idempotency-Key was used for another request: use a new key for each request")


async def _claim(database: Database, place: _Place, network: str | None) -> Reply:
    """A new claim, or the existing response. Raises KeyReused, KeyInUse."""
    now = database.clock.now()
    claim = Reply(
        id=place.id, request=place.fingerprint, leased_until=now + LEASE, expires_at=now + _KEPT, network=network
    )
    try:
        return await database[REPLIES].insert(claim)
    except DocumentExists:
        pass
    found = await database[REPLIES].find_one({"_id": place.id})
    if found is not None and found.expires_at > now:
        if not place.is_same(found):
            await database[REPLIES].patch({"_id": place.id}, {"$inc": {"others": 1}})
        place.require_same(found)
        if found.answer is not None:
            return found
    if found is not None and (found.leased_until <= now or found.expires_at <= now):
        # Left by a process that died, or expired and not yet removed.
        stale = {"_id": place.id, "leasedUntil": found.leased_until, "expiresAt": found.expires_at}
        fresh = {"request": place.fingerprint, "leasedUntil": claim.leased_until, "expiresAt": claim.expires_at}
        if await database[REPLIES].patch(stale, {"$set": fresh, "$unset": {"answer": "", "others": ""}}):
            return claim
    in_use = KeyInUse("The first request with this Idempotency-Key is still under way: ask again in a moment")
    in_use.retry_after_s = _RETRY_S
    raise in_use


async def _has_ended(database: Database, session_id: bytes) -> bool:
    return not await database[SESSIONS].count({"_id": session_id, "replacedAt": None})


def _session(session_id: bytes) -> str:
    return f"session:{session_id.hex()}"


def _whose(actor: Actor) -> str:
    if actor.api_key_id is not None:
        return f"key:{actor.api_key_id}"
    return f"user:{actor.user_id}" if actor.user_id is not None else f"address:{subscriber(actor.address)}"
