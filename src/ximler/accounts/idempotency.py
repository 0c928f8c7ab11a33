"""`Idempotency-Key`: a request that comes again within 24 hours is answered as it was the first time, and
does nothing more.

A key belongs to its sender: a user, an API key, or, without a sign-in, the network
address. It is claimed before the work and answered after it, with one command each. Answers may hold what is
shown once (session tokens, API keys): they are encrypted under the secret key *and* the client's own, which
is not stored, so neither the database nor the server can read them before the client asks again.

Limit: a process that dies between its work and the answer leaves a claim that runs out after a
minute; asking again then works again.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid
from ximler.core.networks import subscriber
from ximler.database import Database
from ximler.database.connection import commits
from ximler.database.failures import DocumentExists
from ximler.schema.reply import REPLIES, Reply

__all__ = ["LEASE", "MAX_ANSWER", "Answer", "AnswerNotKept", "KeyInUse", "KeyReused", "once"]

LEASE = timedelta(seconds=60)
MAX_ANSWER = 256_000  # bytes: what mutations answer is small, and a day of it is kept
_NOT_KEPT = b"not kept"  # the work was done, and its answer is too large, or was lost
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
    """`final` is false for one that changed nothing, so that asking again should try again: it is not kept."""

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
    """The answer of `work`, or the one that this key was given before; and whether it is that. Two commands
    more than the work.

    Raises Invalid for what is no key, KeyReused when it was used for another request, KeyInUse (with the
    seconds to wait) while the first is under way, AnswerNotKept when it was done and its answer is larger
    than `MAX_ANSWER`, or it failed after a transaction of it was committed.
    """
    if not _KEY.fullmatch(key):
        raise Invalid.field("Idempotency-Key", "must be 1 to 255 visible ASCII characters: a random UUID, for example")
    subject = f"{_whose(actor)}|{key}"
    reply_id = keyring.digest("reply", subject)
    fingerprint = hmac.new(keyring.digest("reply request", subject), request, hashlib.sha256).digest()
    cipher = AESGCM(keyring.digest("reply answer", subject))
    claim = await _claim(database, reply_id, fingerprint)
    if claim.answer == _NOT_KEPT:
        raise AnswerNotKept(
            "This request was carried out, but its response was not kept: read the current state instead"
        )
    if claim.answer is not None:
        sealed = claim.answer
        opened = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], reply_id)
        return msgspec.msgpack.decode(opened, type=Answer), True
    mine = {"_id": reply_id, "leasedUntil": claim.leased_until}
    with commits() as committed:
        try:
            answer = await work()
        except BaseException as error:
            if committed:  # it failed after a part of it was done
                await database[REPLIES].patch(mine, {"$set": {"answer": _NOT_KEPT}})
            elif isinstance(error, Exception):
                await database[REPLIES].delete(mine)
            raise
    if not answer.final and not committed:
        await database[REPLIES].delete(mine)
        return answer, False
    kept = _NOT_KEPT
    if answer.final and len(answer.body) <= MAX_ANSWER:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        kept = nonce + cipher.encrypt(nonce, msgspec.msgpack.encode(answer), reply_id)
    await database[REPLIES].patch(mine, {"$set": {"answer": kept}})
    return answer, False


async def _claim(database: Database, reply_id: bytes, fingerprint: bytes) -> Reply:
    """A fresh claim, or the answer that is there. Raises KeyReused, KeyInUse."""
    now = database.clock.now()
    claim = Reply(id=reply_id, request=fingerprint, leased_until=now + LEASE, expires_at=now + _KEPT)
    try:
        return await database[REPLIES].insert(claim)
    except DocumentExists:
        pass
    found = await database[REPLIES].find_one({"_id": reply_id})
    if found is not None and found.expires_at > now:
        if not hmac.compare_digest(found.request, fingerprint):
            raise KeyReused("This Idempotency-Key was used for another request: use a new key for each request")
        if found.answer is not None:
            return found
    if found is not None and (found.leased_until <= now or found.expires_at <= now):
        # Left by a process that died, or over and not yet removed.
        stale = {"_id": reply_id, "leasedUntil": found.leased_until, "expiresAt": found.expires_at}
        fresh = {"request": fingerprint, "leasedUntil": claim.leased_until, "expiresAt": claim.expires_at}
        if await database[REPLIES].patch(stale, {"$set": fresh, "$unset": {"answer": ""}}):
            return claim
    in_use = KeyInUse("The first request with this Idempotency-Key is still under way: ask again in a moment")
    in_use.retry_after_s = _RETRY_S
    raise in_use


def _whose(actor: Actor) -> str:
    if actor.api_key_id is not None:
        return f"key:{actor.api_key_id}"
    return f"user:{actor.user_id}" if actor.user_id is not None else f"address:{subscriber(actor.address)}"
