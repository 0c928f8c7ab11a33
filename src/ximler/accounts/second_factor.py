"""Second-factor verification at sign-in: TOTP codes (RFC 6238) and recovery codes.

A code is one of a million, so guesses are counted before they are compared: of any number of concurrent
guesses, on any number of processes, at most `BUDGET` in `WINDOW`, and `A_DAY` in a day, are compared. A code
is accepted once (RFC 6238, 5.2). Recovery codes have 80 random bits and need no budget, so an attack does not
lock the owner out.

`second_factor_enrolment` enables and disables the factor.
"""

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
from datetime import timedelta

import msgspec
import pyotp
from bson import ObjectId

from ximler.accounts import notices
from ximler.accounts.keyring import KeyLost, Keyring
from ximler.audit import records, refusals
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.errors import LimitExceeded, Unauthenticated
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.credential import CREDENTIALS, Credential

__all__ = [
    "A_DAY",
    "BUDGET",
    "PURPOSE",
    "RECOVERY_CODES",
    "WINDOW",
    "Renewed",
    "SecondFactorRequired",
    "TooManyCodes",
    "WrongCode",
    "matching_step",
    "new_recovery_codes",
    "prove",
    "renew_secrets",
    "still_proved",
]

BUDGET = 5
WINDOW = timedelta(minutes=15)
A_DAY = 50
PURPOSE = "totp"  # purpose of the encryption
RECOVERY_CODES = 10


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


_LIMITS = ((BUDGET, _ms(WINDOW)), (A_DAY, _ms(timedelta(days=1))))
_STEP_S = 30
_CODE = re.compile(r"[0-9]{6}")
_RECOVERY_CODE = re.compile(r"[a-z2-7]{16}")  # base32, whose alphabet has neither 0 nor 1


class SecondFactorRequired(Unauthenticated):
    code = "SECOND_FACTOR_REQUIRED"


class WrongCode(Unauthenticated):
    code = "WRONG_CODE"


class TooManyCodes(LimitExceeded):
    code = "TOO_MANY_CODES"


class Renewed(msgspec.Struct, frozen=True):
    """Counts of secrets that were under an older key, and of those under an unknown key."""

    renewed: int
    lost: int


async def prove(
    database: Database, keyring: Keyring, actor: Actor, credential: Credential | None, code: str | None
) -> None:
    """Verify the code of a user whose password has just been verified. Does nothing without a second factor.

    No round trip without a factor, two for a right code. Refusals are audited. Raises SecondFactorRequired
    without a code, WrongCode, TooManyCodes when the budget is used up, KeyLost if the secret's key is gone
    (recovery codes still work).
    """
    if credential is None or credential.totp_secret is None:
        return
    typed = re.sub(r"[\s-]", "", code or "").lower()
    if not typed:
        raise SecondFactorRequired("Your account has a second factor: send its code as well")
    try:
        if _CODE.fullmatch(typed):
            await _use_code(database, keyring, actor, credential, typed)
        else:
            await _use_recovery_code(database, actor, credential, typed)
    except (WrongCode, TooManyCodes) as refused:
        await refusals.count(
            database,
            actor,
            Action.CODE_REFUSED,
            resource="users",
            resource_id=credential.id,
            user_id=credential.id,
            subject=str(credential.id),
            reason=refused.code.lower(),
        )
        raise


async def still_proved(transaction: Database, user_id: ObjectId, credential: Credential | None) -> Credential | None:
    """Check, in the transaction that starts a session, that no factor was enabled since `prove`. Returns the
    current credential.

    Raises SecondFactorRequired. `second_factor_enrolment.confirm` writes the user's document, as a sign-in
    does, so one of the two is retried and sees the other.
    """
    found = await transaction[CREDENTIALS].find_one({"_id": user_id})
    if found is None or found.totp_secret is None:
        return found
    if credential is None or credential.totp_confirmed_at != found.totp_confirmed_at:
        raise SecondFactorRequired("Your account has a second factor: send its code as well")
    return found


def matching_step(secret: bytes, code: str, now_ms: int) -> int | None:
    """The time step of a code: the current one or, to tolerate clock drift,
    an adjacent one (RFC 6238, 5.2)."""
    totp = pyotp.TOTP(secret.decode())
    present = now_ms // 1000 // _STEP_S
    found = [step for step in (present - 1, present, present + 1) if hmac.compare_digest(totp.generate_otp(step), code)]
    return found[-1] if found else None


def new_recovery_codes(user_id: ObjectId) -> tuple[list[str], list[str]]:
    """Codes to show once, and their hashes for storage."""
    codes = [base64.b32encode(secrets.token_bytes(10)).decode().lower() for _ in range(RECOVERY_CODES)]
    shown = ["-".join(code[start : start + 4] for start in range(0, 16, 4)) for code in codes]
    return shown, [_recovery_hash(user_id, code) for code in codes]


def _recovery_hash(user_id: ObjectId, code: str) -> str:
    """A plain hash: 80 random bits cannot be guessed, and the codes must
    survive a change of the secret key."""
    return hashlib.sha256(user_id.binary + code.encode()).hexdigest()


async def renew_secrets(database: Database, keyring: Keyring, actor: Actor) -> Renewed:
    """Re-encrypt every secret under the newest key, so that older keys can be removed. Operators only.

    Idempotent, and safe during sign-ins. Reads every credential: run it when a key is rotated.
    """
    actor.require_operator()
    renewed = lost = 0
    async for credential in database[CREDENTIALS].stream({}):
        changed: dict[str, bytes] = {}
        for name, stored in (("totpSecret", credential.totp_secret), ("totpPending", credential.totp_pending)):
            if stored is None or keyring.is_newest(PURPOSE, stored):
                continue
            try:
                secret = keyring.decrypt(PURPOSE, credential.id, stored)
            except KeyLost:
                lost += 1
                continue
            changed[name] = keyring.encrypt(PURPOSE, credential.id, secret)
        same = {"totpSecret": credential.totp_secret, "totpPending": credential.totp_pending}
        if changed and await database[CREDENTIALS].patch({"_id": credential.id, **same}, {"$set": changed}):
            renewed += len(changed)
    await records.write(
        database, actor, Action.SECRETS_RENEWED, resource="credentials", renewed=renewed, unreadable=lost
    )
    return Renewed(renewed, lost)


async def _use_code(database: Database, keyring: Keyring, actor: Actor, credential: Credential, typed: str) -> None:
    """Raises WrongCode, TooManyCodes, KeyLost."""
    secret = keyring.decrypt(PURPOSE, credential.id, credential.totp_secret or b"")
    at = to_ms(database.clock.now())
    tried = await _count_attempt(database, credential, at)
    step = matching_step(secret, typed, at)
    if step is None or not await _take(database, keyring, credential, secret, step=step, attempt=at):
        if len(tried) >= BUDGET and tried[BUDGET - 1] > at - _ms(WINDOW):
            await _warn(database, actor, credential)
        raise WrongCode(
            "The code is not right, or was used already: wait for the next one", fields={"code": "is not right"}
        )


async def _count_attempt(database: Database, credential: Credential, at: int) -> list[int]:
    """Reserve one guess in one guarded update. Returns the times of the latest guesses, this one first.
    Raises TooManyCodes.

    With n guesses per span, a guess is free if the n-th latest is outside the span or does not exist.
    """
    free = [
        {"$or": [{place: {"$exists": False}}, {place: {"$lte": at - span}}]}
        for most, span in _LIMITS
        for place in (f"factorAttempts.{most - 1}",)
    ]
    counted = await database[CREDENTIALS].find_and_patch(
        {"_id": credential.id, "$and": free},
        {"$push": {"factorAttempts": {"$each": [at], "$position": 0, "$slice": A_DAY}}},
    )
    if counted is not None:
        return counted.factor_attempts
    tried = credential.factor_attempts
    free_at = max((tried[most - 1] + span for most, span in _LIMITS if len(tried) >= most), default=at + _ms(WINDOW))
    raise TooManyCodes(
        "Too many wrong codes: wait a while, or use a recovery code", retry_after_s=max(1.0, (free_at - at) / 1000)
    )


async def _take(
    database: Database, keyring: Keyring, credential: Credential, secret: bytes, *, step: int, attempt: int
) -> bool:
    """Mark the code as used, and release its guess. False if it, or a later one, was used before."""
    stored = credential.totp_secret
    unused = {
        "_id": credential.id,
        "totpSecret": stored,
        "$or": [{"totpLastStep": None}, {"totpLastStep": {"$lt": step}}],
    }
    change: dict[str, object] = {"totpLastStep": step}
    if stored is not None and not keyring.is_newest(PURPOSE, stored):
        change["totpSecret"] = keyring.encrypt(PURPOSE, credential.id, secret)  # re-encrypted under the newest key
    return await database[CREDENTIALS].patch(unused, {"$set": change, "$pull": {"factorAttempts": attempt}})


async def _use_recovery_code(database: Database, actor: Actor, credential: Credential, typed: str) -> None:
    """Raises WrongCode. A string that matches no code costs no round trip."""
    typed = typed.replace("0", "o").replace("1", "l")
    wrong = WrongCode(
        "The code is not right: it has six digits, or is one of your recovery codes, each of which works once",
        fields={"code": "is not right"},
    )
    if not _RECOVERY_CODE.fullmatch(typed):
        raise wrong
    hashed = _recovery_hash(credential.id, typed)
    if hashed not in credential.recovery_codes:
        raise wrong
    left = len(credential.recovery_codes) - 1

    async def write(transaction: Database) -> None:
        unused = {"_id": credential.id, "recoveryCodes": hashed}
        if not await transaction[CREDENTIALS].patch(unused, {"$pull": {"recoveryCodes": hashed}}):
            raise wrong
        await records.write(
            transaction,
            actor,
            Action.RECOVERY_CODE_USED,
            resource="users",
            resource_id=credential.id,
            user_id=credential.id,
            left=left,
        )
        await notices.notify(transaction, credential.id, "recovery_code_used", left=left)

    await database.transaction(write)


async def _warn(database: Database, actor: Actor, credential: Credential) -> None:
    """Notify the owner, at most daily, that someone with the password has used up the budget."""

    async def write(transaction: Database) -> None:
        await records.write(
            transaction,
            actor,
            Action.FACTOR_ATTEMPTS_EXHAUSTED,
            resource="users",
            resource_id=credential.id,
            user_id=credential.id,
            count=BUDGET,
        )
        today = f"{transaction.clock.now():%Y-%m-%d}"
        await notices.notify(transaction, credential.id, "wrong_codes", once=today, count=BUDGET)

    with contextlib.suppress(DocumentExists):  # a racing guess has notified them
        await database.transaction(write)
