"""Sign-in attempts: throttling, and counting of failures.

Guessing is throttled per account and per address. An attack on an account must not lock its owner out, so a
device that has signed in to the account before is counted separately. It is recognised by its token (OWASP's
device cookie; signed, not stored) or, during an attack, by address and browser of an open session.

All decisions depend on the typed address, not on whether it has an account.
"""

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn

import msgspec
from bson import ObjectId

from ximler.accounts import addresses, throttle
from ximler.accounts.account_status import AccountLocked
from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import RateLimitKey, Rule, Throttled
from ximler.audit import refusals
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.networks import subscriber
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.schema.credential import CREDENTIALS, Credential
from ximler.schema.session import SESSIONS, Session
from ximler.schema.throttle import THROTTLES, Throttle
from ximler.schema.user import User

__all__ = [
    "AccountLocked",
    "Attempt",
    "account_key",
    "begin",
    "fail",
    "family",
    "keep",
    "locked",
    "new_device",
    "refuse_locked",
    "refuse_too_many",
    "remember",
    "succeed",
]

_ACCOUNT = Rule(name="sign-in, account", free=5, window=timedelta(hours=24))
_ADDRESS = Rule(name="sign-in, address", free=50, window=timedelta(hours=1))  # an office, a school
_DEVICE = Rule(name="sign-in, device", free=10, window=timedelta(hours=24))
_PLACE = Rule(name="sign-in, place", free=5, window=timedelta(hours=24))
_REMEMBERED = timedelta(days=180)
_RENEWED = timedelta(days=90)
_SIGN_INS = 500  # per account and hour: each has an audit entry, which is kept
_DEVICES = 5  # of an account, that have shown their token; as many that have not


class Attempt(msgspec.Struct, frozen=True):
    """`user` is None if the address has no account. A failure counts for `keys`; a success clears `forgiven`.
    `known_device`: it showed a valid token. `device`: the id of that token, unless it is old enough to be
    replaced. `returns`: it is shown for the first time. `sessions`: how many the account has.
    """

    account: RateLimitKey
    keys: list[RateLimitKey]
    user: User | None
    credential: Credential | None
    forgiven: RateLimitKey | None
    known_device: bool = False
    device: ObjectId | None = None
    returns: bool = False
    sessions: int = 0
    recent: int = 0  # sessions that began in the last hour


def account_key(keyring: Keyring, email: str) -> RateLimitKey:
    """The rate-limit key of failures for an account, by its normalised address."""
    return throttle.key(keyring, _ACCOUNT, email)


def new_device(began: datetime, sign_in_id: bytes) -> ObjectId:
    """The id of a token for a device that was not known before this sign-in."""
    return ObjectId((to_ms(began) // 1000).to_bytes(4, "big") + sign_in_id[:8])


def remember(keyring: Keyring, session: Session, password_hash: str) -> str:
    """A token that identifies a device at its next sign-in to this account. It does not sign in by itself.

    A device that shows its token keeps it, and an account has ten, because each has its own budget of
    guesses. Five of them have shown it, so that a script, which never does, displaces no browser. A change of
    password invalidates them.
    """
    device = session.device or new_device(session.created_at, session.sign_in_id)
    return keyring.sign(_purpose(session.user_id, password_hash), device)


async def keep(
    transaction: Database, session: Session, remembered: Mapping[str, Any], *, is_new: bool, returns: bool
) -> None:
    """Set what the credential is to remember of a sign-in, and add a device that is new, or shows its token
    for the first time, to those that the account knows: of six of a kind the one that was added first is
    forgotten. One command, or none.
    """
    change: dict[str, Any] = {"$set": remembered} if remembered else {}
    if is_new:
        change["$push"] = {"devices": {"$each": [session.device], "$slice": -_DEVICES}}
    elif returns:
        change["$push"] = {"returned": {"$each": [session.device], "$slice": -_DEVICES}}
        change["$pull"] = {"devices": session.device}
    if change:
        fresh = Credential(id=session.user_id)
        await transaction[CREDENTIALS].upsert({"_id": session.user_id}, change, fresh=fresh)


async def begin(database: Database, keyring: Keyring, actor: Actor, *, email: str, device: str | None) -> Attempt:
    """Look up the account and check the rate limits before a password is verified. One command, two more
    under attack.

    Raises Throttled.
    """
    forms = addresses.alternatives(email)
    email = forms[0] if forms else ""  # no account has it: the rejection takes equally long
    account = account_key(keyring, email)
    by_address = throttle.at_address(keyring, _ADDRESS, actor.address)
    by_device = throttle.key(keyring, _DEVICE, device or "")
    now = database.clock.now()
    user, credential, throttles, counted = await _look(database, forms, [account, *by_address, by_device], now)

    def found(keys: list[RateLimitKey]) -> list[Throttle]:
        return [throttles[each.id] for each in keys if each.id in throttles]

    known = _known_device(keyring, user, credential, device, now)
    if known is not None:
        keys, forgiven = [by_device], by_device
    elif _is_blocked(throttles.get(account.id), now) and await _has_session(database, actor, user):
        place = throttle.key(keyring, _PLACE, f"{email}|{subscriber(actor.address)}|{family(actor.user_agent)}")
        if here := await database[THROTTLES].find_one({"_id": place.id}):
            throttles[place.id] = here
        keys, forgiven = [place, *by_address], place
    else:
        keys, forgiven = [account, *by_address], account
    try:
        throttle.check(found(keys), now)
    except Throttled:
        await refusals.count(database, actor, Action.SIGN_IN_REFUSED, resource="users", reason="throttled")
        raise
    kept = known if known is not None and known.generation_time > now - _RENEWED else None
    forgiven_now = forgiven if forgiven.id in throttles else None
    returns = credential is not None and kept in credential.devices
    return Attempt(
        account,
        keys,
        user,
        credential,
        forgiven_now,
        known is not None,
        kept,
        returns,
        counted.get("all", 0),
        counted.get("recent", 0),
    )


async def fail(database: Database, actor: Actor, attempt: Attempt) -> None:
    """Count and audit the failure."""
    user_id = attempt.user.id if attempt.user else None
    await asyncio.gather(
        throttle.fail(database, attempt.keys),
        refusals.count(
            database,
            actor,
            Action.SIGN_IN_FAILED,
            resource="users",
            resource_id=user_id,
            user_id=user_id,
            subject=attempt.account.id.hex(),
        ),
    )


def locked() -> AccountLocked:
    """Only after the right password, so that the lock is not revealed to others."""
    return AccountLocked("This account is locked: write to support to have it opened")


def refuse_too_many(attempt: Attempt) -> None:
    """Called only after the right password, so that others cannot learn of it. Raises Throttled."""
    if attempt.recent >= _SIGN_INS:
        raise Throttled(
            f"This account was signed in to {_SIGN_INS} times within an hour: keep a session, or wait",
            retry_after_s=60,
        )


async def refuse_locked(database: Database, actor: Actor, attempt: Attempt) -> NoReturn:
    """Audit the refusal. Raises AccountLocked."""
    user_id = attempt.user.id if attempt.user else None
    await refusals.count(
        database,
        actor,
        Action.SIGN_IN_REFUSED,
        resource="users",
        resource_id=user_id,
        user_id=user_id,
        subject=attempt.account.id.hex(),
        reason="locked",
    )
    raise locked()


async def succeed(database: Database, attempt: Attempt) -> None:
    """Clear the owner's failures. The address's count stays, because an attacker may have an account too."""
    if attempt.forgiven:
        await throttle.forgive(database, attempt.forgiven)


async def _look(
    database: Database, forms: list[str], keys: list[RateLimitKey], now: datetime
) -> tuple[User | None, Credential | None, dict[bytes, Throttle], Mapping[str, int]]:
    ids = [each.id for each in keys]
    in_last_hour = {"$and": [{"$gt": ["$createdAt", now - timedelta(hours=1)]}, {"$not": ["$family"]}]}
    counts: dict[str, Any] = {"_id": None, "all": {"$sum": 1}, "recent": {"$sum": {"$cond": [in_last_hour, 1, 0]}}}
    rows = await database.users.aggregate(
        [
            {"$match": {"email": {"$in": forms}}},
            {"$lookup": {"from": "credentials", "localField": "_id", "foreignField": "_id", "as": "credential"}},
            {
                "$lookup": {
                    "from": "sessions",
                    "localField": "_id",
                    "foreignField": "userId",
                    "pipeline": [{"$group": counts}],
                    "as": "counted",
                }
            },
            {"$unionWith": {"coll": "throttles", "pipeline": [{"$match": {"_id": {"$in": ids}}}]}},
        ]
    )
    throttles = {bytes(row["_id"]): codec_of(Throttle).decode(row) for row in rows if isinstance(row["_id"], bytes)}
    found = [row for row in rows if not isinstance(row["_id"], bytes)]
    credentials = {row["_id"]: row.pop("credential") for row in found}
    counted = {row["_id"]: row.pop("counted") for row in found}
    # Unreadable is an account that another application keeps without a password, for instance.
    user = addresses.first(database.users.readable(found), forms)
    if user is None or (user.deleted_at is not None and not user.can_reopen):
        return None, None, throttles, {}
    stored = credentials[user.id]
    credential = codec_of(Credential).decode(stored[0]) if stored else None
    return user, credential, throttles, counted[user.id][0] if counted[user.id] else {}


def _known_device(
    keyring: Keyring, user: User | None, credential: Credential | None, device: str | None, now: datetime
) -> ObjectId | None:
    purpose = _purpose(user.id, user.password) if user else _purpose(ObjectId(), "")
    shown = keyring.verify(purpose, device) if device else None
    if shown is None or credential is None or shown not in {*credential.devices, *credential.returned}:
        return None
    return shown if shown.generation_time > now - _REMEMBERED else None


def _purpose(user_id: ObjectId, password_hash: str) -> str:
    return f"device:{user_id}:{password_hash}"


def _is_blocked(found: Throttle | None, now: datetime) -> bool:
    return found is not None and found.blocked_until is not None and found.blocked_until > now


async def _has_session(database: Database, actor: Actor, user: User | None) -> bool:
    """Whether the account has a session from this address and browser. Without an account, sends the same
    command.
    """
    where = {
        "userId": user.id if user else ObjectId(),
        "replacedAt": None,
        "expiresAt": {"$gt": database.clock.now()},
    }
    open_ones = await database[SESSIONS].find(where)
    here = actor.address and (subscriber(actor.address), family(actor.user_agent))
    return any(here == (subscriber(each.address), family(each.user_agent)) for each in open_ones)


def family(user_agent: str | None) -> str:
    """A browser without its version, which changes every few weeks."""
    return re.sub(r"[\d._]+", "", user_agent or "")
