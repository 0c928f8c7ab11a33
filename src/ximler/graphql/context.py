"""The context that every resolver receives."""

from typing import TYPE_CHECKING, Protocol

import msgspec

from ximler.accounts.keyring import Keyring
from ximler.apikeys import scopes
from ximler.billing.plans import PlanMemory
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, Unauthenticated, XimlerError
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

if TYPE_CHECKING:
    from ximler.database.results import Results

__all__ = ["OPEN", "Context", "permit"]

OPEN = frozenset(
    {
        "__schema",
        "__type",
        "__typename",
        "confirmEmail",
        "confirmEmailChange",
        "plans",
        "register",
        "reopenAccount",
        "requestPasswordReset",
        "resetPassword",
        "signIn",
    }
)
"""Root fields for everybody. The token of a session that has ended does not keep a client from them:
signing in again is the way out."""

Header = tuple[bytes, bytes]
_MAX_CANVASES = 64_000_000


class Cookies(Protocol):
    """Sets and clears the session cookie of a browser (`http.cookies`)."""

    def give(self, token: str, *, seconds: int) -> Header: ...
    def take(self) -> Header: ...


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One request: the actor (with `user` when signed in), and the resources that resolvers use.

    `reply_headers` are sent with the answer. `ended` is the refusal of a session's token;
    the actor is then anonymous.
    """

    database: Database
    plans: PlanMemory
    settings: Settings
    keyring: Keyring
    actor: Actor
    user: User | None = None
    results: "Results | None" = None  # shared by processes, with `VALKEY_URL`
    ended: XimlerError | None = None
    cookies: Cookies | None = None  # for a browser that sent one
    reply_headers: list[Header] = []
    canvases: list[int] = []  # bytes of those that the answer has

    def take_canvas(self, size: int) -> None:
        """Count a canvas of the answer, before it is read.
        Raises Invalid beyond 64 MB, but never for a single one."""
        self.canvases.append(size)
        if len(self.canvases) > 1 and sum(self.canvases) > _MAX_CANVASES:
            raise Invalid.field("canvasData", "of all these is more than 64 MB: ask for fewer at once")

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
    """Reject an API key without the scope of a field (see `engine.scopes`), and a session that has ended.
    Raises Forbidden, ScopeMissing, SessionExpired.
    """
    if ctx.ended is not None and coordinate.rpartition(".")[2] not in OPEN:
        raise ctx.ended
    if ctx.actor.via == "api_key":
        scopes.require(ctx.actor, scope, what=coordinate)
