"""A user with an authenticator app."""

from datetime import timedelta

import pyotp

from ximler.accounts import second_factor_enrolment, sessions
from ximler.accounts.keyring import Keyring
from ximler.accounts.sessions import SignedIn
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["PASSWORD", "Authenticator", "Person"]

PASSWORD = "correct horse battery"


class Authenticator:
    """Shows codes of its secret by the test's clock."""

    def __init__(self, database: Database, secret: str) -> None:
        self.database, self.totp = database, pyotp.TOTP(secret)

    def code(self, *, steps: int = 0) -> str:
        return self.totp.at(self.database.clock.now(), counter_offset=steps)

    def next_code(self) -> str:
        """After the present one has gone."""
        self.database.clock.offset_ms += 30_000
        return self.code()

    def wrong_codes(self, count: int) -> list[str]:
        right = {self.code(steps=steps) for steps in range(-3, 4)}
        return [code for number in range(count + 7) if (code := f"{number:06}") not in right][:count]


class Person:
    """A user at their devices."""

    def __init__(self, database: Database, keyring: Keyring, settings: Settings, user: User) -> None:
        self.database, self.keyring, self.settings, self.user = database, keyring, settings, user
        self.recovery_codes: list[str] = []

    async def enter(
        self,
        code: str | None = None,
        *,
        password: str = PASSWORD,
        keyring: Keyring | None = None,
        email: str | None = None,
    ) -> SignedIn:
        somebody = Actor(address="192.0.2.7", user_agent="a browser")
        keys = keyring or self.keyring
        email = email or self.user.email
        return await sessions.sign_in(
            self.database, keys, self.settings, somebody, email=email, password=password, code=code
        )

    def actor(self, signed_in: SignedIn | None = None, *, ago: timedelta = timedelta()) -> Actor:
        """The actor of a session that authenticated `ago`."""
        session_id = signed_in.session.id if signed_in else b"some session"
        proved = self.database.clock.now() - ago
        return Actor(kind="user", via="session", user_id=self.user.id, session_id=session_id, authenticated_at=proved)

    async def enrol(self, signed_in: SignedIn | None = None) -> Authenticator:
        """Give them a second factor, used just now."""
        actor = self.actor(signed_in)
        shown = await second_factor_enrolment.begin(self.database, self.keyring, actor, self.user)
        app = Authenticator(self.database, shown.secret)
        self.recovery_codes = await second_factor_enrolment.confirm(
            self.database, self.keyring, actor, self.user, code=app.code()
        )
        return app
