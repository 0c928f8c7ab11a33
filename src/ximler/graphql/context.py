"""The context that every resolver receives."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from ximler.accounts.keyring import Keyring
from ximler.apikeys import scopes
from ximler.billing.plans import PlanMemory
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, Unauthenticated, XimlerError
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.metering.reports.overview import ResourceUsage
from ximler.schema.user import User

if TYPE_CHECKING:
    from ximler.database.results import Results

__all__ = ["OPEN", "Context", "Once", "Standing", "permit"]

T = TypeVar("T")

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


class Once(Generic[T]):
    """A read that several fields share: the first that awaits it begins it."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._read = read
        self._reading: asyncio.Task[T] | None = None

    def __await__(self) -> Generator[Any, None, T]:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        return self._reading.__await__()


Standing = tuple[list[ResourceUsage], list[dict[str, Any]]]
"""A user's usage, and the documents of their subscriptions."""


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
    standing: list[Once[Standing | None]] = []  # of `user`, if the query wants both; None: to be read apart

    def take_canvas(self, size: int) -> None:
        """Count a canvas of the answer, before it is read.
        Raises Invalid beyond 64 MB, but never for a single one."""
        self.canvases.append(size)
        if len(self.canvases) > 1 and sum(self.canvases) > _MAX_CANVASES:
            raise Invalid.field("canvasData", "of all these is more than 64 MB: ask for fewer at once")

    async def standing_of(self, users: list[User]) -> Standing | None:
        """What was read for several fields of these users; None if each field reads its own."""
        return await self.standing[0] if self.standing and len(users) == 1 and users[0] is self.user else None

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
