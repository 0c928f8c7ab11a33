"""What every resolver is handed."""

from typing import Protocol

import msgspec

from ximler.accounts.keyring import Keyring
from ximler.apikeys import scopes
from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["Context", "permit"]

Header = tuple[bytes, bytes]


class Cookies(Protocol):
    """How a browser is given its session, and rid of it (`http.cookies`)."""

    def give(self, token: str, *, seconds: int) -> Header: ...
    def take(self) -> Header: ...


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One request's: who asks (`user` when they are signed in), and what it takes to answer.

    `reply_headers` are sent with the answer.
    """

    database: Database
    settings: Settings
    keyring: Keyring
    actor: Actor
    user: User | None = None
    cookies: Cookies | None = None  # when the caller is a browser that came with one
    reply_headers: list[Header] = []

    @property
    def request_id(self) -> str | None:
        return self.actor.request_id

    def require_user(self) -> User:
        """The signed-in user, already loaded. Raises Unauthenticated."""
        self.actor.require_user()
        if self.user is None:
            raise Unauthenticated("Sign in as a person to do this")
        return self.user


def permit(ctx: Context, coordinate: str, scope: str | None) -> None:
    """Refuse an API key that may not use a field (see `engine.scopes`). Raises Forbidden, ScopeMissing."""
    if ctx.actor.via == "api_key":
        scopes.require(ctx.actor, scope, what=coordinate)
