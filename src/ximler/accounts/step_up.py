"""Step-up: changes that would let a thief keep an account require a sign-in within the last ten minutes.

ASVS 5.0 requires it for changes of e-mail address, password and second factor.
"""

from datetime import datetime, timedelta

from ximler.accounts import second_factor, throttle
from ximler.accounts.keyring import Keyring
from ximler.accounts.sessions import SessionExpired
from ximler.accounts.throttle import Rule
from ximler.audit import refusals
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden
from ximler.database import Database
from ximler.schema.credential import CREDENTIALS
from ximler.schema.session import SESSIONS
from ximler.schema.throttle import THROTTLES
from ximler.schema.user import User

__all__ = ["RECENT", "StepUpRequired", "prove_password", "reauthenticate", "require"]

RECENT = timedelta(minutes=10)

# Per sign-in, across exchanges: a thief of the token can guess, but throttles only this session.
_GUESSES = Rule(name="password, session", free=5, window=timedelta(hours=24))


class StepUpRequired(Forbidden):
    code = "STEP_UP_REQUIRED"


def require(database: Database, actor: Actor) -> None:
    """Require that the actor authenticated within the last ten minutes. No round trip.

    The command line and the system have no session and pass. An API key cannot step up. Raises
    Unauthenticated, StepUpRequired.
    """
    if actor.via in ("cli", "worker"):
        return
    actor.require_user()
    if actor.via != "session":
        raise StepUpRequired("An API key cannot do this: sign in as a person")
    proved = actor.authenticated_at
    if proved is None or proved < database.clock.now() - RECENT:
        minutes = RECENT // timedelta(minutes=1)
        raise StepUpRequired(
            f"This needs a sign-in of the last {minutes} minutes: call reauthenticate with your password, then try again"
        )


async def reauthenticate(
    database: Database, keyring: Keyring, actor: Actor, user: User, *, password: str, code: str | None = None
) -> datetime:
    """Authenticate again, by password and second factor; returns until when that counts as recent.

    Raises Forbidden for a wrong password, Throttled, SecondFactorRequired, WrongCode, TooManyCodes, and
    SessionExpired if the session has ended (a change of password ends it, so the old password cannot step
    up).
    """
    actor.require_user()
    await prove_password(database, keyring, actor, user, password)
    credential = await database[CREDENTIALS].find_one({"_id": user.id})
    await second_factor.prove(database, keyring, actor, credential, code)
    now = database.clock.now()
    mine = {"_id": actor.session_id, "userId": user.id, "expiresAt": {"$gt": now}}
    if not await database[SESSIONS].patch(mine, {"$set": {"authenticatedAt": now}}):
        raise SessionExpired("This session has ended: sign in again")
    return now + RECENT


async def prove_password(
    database: Database, keyring: Keyring, actor: Actor, user: User, password: str, *, field: str = "password"
) -> None:
    """Verify the password of a signed-in user. One command. Wrong guesses are counted and throttled.

    Raises Forbidden naming `field`, Throttled.
    """
    key = throttle.key(keyring, _GUESSES, (actor.sign_in_id or actor.session_id or user.id.binary).hex())
    async with keyring.turn():
        counted = await database[THROTTLES].find_one({"_id": key.id})
        throttle.check([counted] if counted else [], database.clock.now())
        if await keyring.verify_password(user.password, password):
            return
        await throttle.fail(database, [key])
    await refusals.count(
        database,
        actor,
        Action.PASSWORD_REFUSED,
        resource="users",
        resource_id=user.id,
        user_id=user.id,
        subject=key.id.hex(),
    )
    raise Forbidden("The password is not right", fields={field: "is not right"})
