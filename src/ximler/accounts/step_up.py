"""Step-up: what would let a thief keep an account asks for a sign-in of the last ten minutes, not merely a session.

ASVS 5.0 asks for it before e-mail address, password and factors change.
"""

from datetime import timedelta

from ximler.core.actor import Actor
from ximler.core.errors import Forbidden
from ximler.database import Database

__all__ = ["RECENT", "StepUpRequired", "require"]

RECENT = timedelta(minutes=10)


class StepUpRequired(Forbidden):
    code = "STEP_UP_REQUIRED"


def require(database: Database, actor: Actor) -> None:
    """Refuse unless the actor proved who they are within the last ten minutes. No round trip: the actor says it.

    Operators at the command line and the system itself have no session to prove. An API key cannot step up.
    Raises Unauthenticated, StepUpRequired.
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
