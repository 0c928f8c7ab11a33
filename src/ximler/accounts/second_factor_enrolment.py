"""Second-factor enrolment: begin, confirm, regenerate recovery codes, remove. `second_factor` verifies codes.

Every change requires a recent sign-in, is audited, and sends the owner a notice.
"""

from datetime import datetime, timedelta

import msgspec
import pyotp
from bson import ObjectId

from ximler.accounts import notices, second_factor, sessions, step_up
from ximler.accounts.keyring import Keyring
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.database import Database
from ximler.schema.credential import CREDENTIALS, Credential
from ximler.schema.user import User

__all__ = ["Enrolment", "SecondFactor", "begin", "confirm", "disable", "regenerate", "remove", "status"]

_ISSUER = "Ximler"
_VALIDITY = timedelta(minutes=15)
_FACTOR = ("totpSecret", "totpConfirmedAt", "totpLastStep", "totpPending", "totpPendingAt", "recoveryCodes")


class Enrolment(msgspec.Struct, frozen=True):
    """Shown once. `uri` (otpauth://) is for QR codes; `secret` is for typing."""

    secret: str
    uri: str
    expires_at: datetime

    def __repr__(self) -> str:
        return "Enrolment(…)"


class SecondFactor(msgspec.Struct, frozen=True):
    """`since` is None if there is none."""

    since: datetime | None
    recovery_codes_left: int


async def status(database: Database, actor: Actor) -> SecondFactor:
    """The state of the actor's second factor. One command."""
    found = await database[CREDENTIALS].find_one({"_id": actor.require_user()})
    if found is None or found.totp_secret is None:
        return SecondFactor(None, 0)
    return SecondFactor(found.totp_confirmed_at, len(found.recovery_codes))


async def begin(database: Database, keyring: Keyring, actor: Actor, user: User) -> Enrolment:
    """Generate a secret for the user's authenticator app, to be verified by `confirm` within 15 minutes.

    Until then an existing factor stays in force. A repeat replaces the pending secret. Raises StepUpRequired.
    """
    step_up.require(database, actor)
    secret = pyotp.random_base32()
    now = database.clock.now()
    pending = keyring.encrypt(second_factor.PURPOSE, user.id, secret.encode())
    await database[CREDENTIALS].upsert(
        {"_id": user.id}, {"$set": {"totpPending": pending, "totpPendingAt": now}}, fresh=Credential(id=user.id)
    )
    uri = pyotp.TOTP(secret).provisioning_uri(name=user.email, issuer_name=_ISSUER)
    return Enrolment(secret, uri, now + _VALIDITY)


async def confirm(database: Database, keyring: Keyring, actor: Actor, user: User, *, code: str) -> list[str]:
    """Enable the factor with a code of the pending secret. Returns the recovery codes, which are shown once.

    Ends every other session, because they began without it. Raises StepUpRequired, Conflict if there is no
    pending secret or it has expired, Invalid for a wrong code.
    """
    step_up.require(database, actor)
    found = await database[CREDENTIALS].find_one({"_id": user.id})
    now = database.clock.now()
    if found is None or found.totp_pending is None or (found.totp_pending_at or now) <= now - _VALIDITY:
        raise Conflict("There is no new second factor to confirm: begin again")
    pending = found.totp_pending
    secret = keyring.decrypt(second_factor.PURPOSE, user.id, pending)
    step = second_factor.matching_step(secret, code.strip().replace(" ", ""), to_ms(now))
    if step is None:
        raise Invalid.field(
            "code", "is not right: compare the clock of the device, and type the code that it shows now"
        )
    codes, hashes = second_factor.new_recovery_codes(user.id)

    async def write(transaction: Database) -> None:
        change: dict[str, dict[str, object]] = {
            "$set": {"totpSecret": pending, "totpConfirmedAt": now, "totpLastStep": step, "recoveryCodes": hashes},
            "$unset": {"totpPending": "", "totpPendingAt": ""},
        }
        if not await transaction[CREDENTIALS].patch({"_id": user.id, "totpPending": pending}, change):
            raise Conflict("The second factor was confirmed or restarted at the same moment: begin again")
        await transaction.users.patch({"_id": user.id}, {"$set": {}})  # conflicts with a sign-in in flight, which fails
        await sessions.revoke_all(transaction, user.id, but=actor.session_id)
        await _record(transaction, actor, user.id, Action.FACTOR_ENABLED)
        await notices.notify(transaction, user.id, "factor_enabled")

    await database.transaction(write)
    return codes


async def regenerate(database: Database, actor: Actor, user_id: ObjectId) -> list[str]:
    """Generate new recovery codes and revoke the old ones. They are shown once. Raises StepUpRequired,
    NotFound without a factor.
    """
    step_up.require(database, actor)
    codes, hashes = second_factor.new_recovery_codes(user_id)

    async def write(transaction: Database) -> None:
        await _change(transaction, user_id, {"$set": {"recoveryCodes": hashes}})
        await _record(transaction, actor, user_id, Action.RECOVERY_CODES_MADE)
        await notices.notify(transaction, user_id, "recovery_codes_made")

    await database.transaction(write)
    return codes


async def disable(database: Database, actor: Actor) -> None:
    """Disable the second factor. Raises StepUpRequired, NotFound without a factor."""
    step_up.require(database, actor)
    await _remove(database, actor, actor.require_user())


async def remove(database: Database, actor: Actor, user_id: ObjectId) -> None:
    """Disable the factor of a user who lost device and recovery codes and whose identity an operator has
    verified. Operators only.

    Raises Forbidden, StepUpRequired, NotFound without a factor.
    """
    actor.require_operator()
    step_up.require(database, actor)
    await _remove(database, actor, user_id)


async def _remove(database: Database, actor: Actor, user_id: ObjectId) -> None:
    async def write(transaction: Database) -> None:
        await _change(transaction, user_id, {"$unset": dict.fromkeys(_FACTOR, "")})
        await _record(transaction, actor, user_id, Action.FACTOR_DISABLED)
        await notices.notify(transaction, user_id, "factor_disabled")

    await database.transaction(write)


async def _change(transaction: Database, user_id: ObjectId, update: dict[str, dict[str, object]]) -> None:
    if not await transaction[CREDENTIALS].patch({"_id": user_id, "totpSecret": {"$exists": True}}, update):
        raise NotFound("This account has no second factor")


async def _record(transaction: Database, actor: Actor, user_id: ObjectId, action: Action) -> None:
    await records.write(transaction, actor, action, resource="users", resource_id=user_id, user_id=user_id)
