"""Authentication of requests: anonymous, by a session, or by an API key."""

from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping
from functools import lru_cache, partial
from time import monotonic
from typing import Any

import msgspec
from litestar import Request
from litestar.di import Provide

from ximler.accounts.account_status import AccountStatus
from ximler.accounts.keyring import Keyring
from ximler.accounts.session_authentication import SessionAuthenticator
from ximler.apikeys import scopes, tokens
from ximler.apikeys.verification import Known, Verifier
from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, Unauthenticated
from ximler.core.networks import is_loopback
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.http.cookies import Cookies
from ximler.metering.quota.bursts import BurstExceeded, Bursts, take_each
from ximler.projects import links
from ximler.runtime import Part, Stage
from ximler.schema.user import User

__all__ = ["Authentication", "Caller", "log_caller", "shows_key", "signed_in"]

_MAX_USER_AGENT = 300
_DAY_S = 86_400
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SAVES = 300  # of canvases, per second and user; they are not audited
_OF_ONE_USER = 2  # times the requests of one session: a stolen one leaves the owner as many
_MAX_OPEN = 64  # requests of a user that are under way in a process, streams included
_AGAIN_S = 0.5  # a key may be revoked while its client sends a slow body
_KEY = tokens.PREFIX.encode()
_BEARER_KEY = b"Bearer " + _KEY


class Caller(msgspec.Struct, frozen=True, gc=False):
    """The caller: `user` when signed in or using a key; `by_cookie` for a browser's session.

    `names` are the ids of an API key and of its owner, as bytes.
    """

    actor: Actor
    user: User | None = None
    by_cookie: bool = False
    names: tuple[bytes, bytes] | None = None


class Authentication:
    """One per process, on its feed. Its `parts` run while requests are answered."""

    def __init__(self, database: Database, keyring: Keyring, settings: Settings, feed: Feed) -> None:
        self._keys = Verifier(database, feed)
        self._sessions = SessionAuthenticator(database, keyring, settings, feed)
        self.cookies = Cookies(settings)
        self.settings = settings
        whose = "all sessions of this account together"
        rate, size, daily = settings.session_rate, settings.session_burst, settings.session_daily
        self._changes = Bursts(whose, rate=rate, size=size, limit=f"{rate} changes a second, and {size} at once")
        self._saves = Bursts(whose, rate=_SAVES, size=5 * _SAVES, limit=f"{_SAVES} saves a second")
        rate, size = settings.address_rate, settings.address_burst
        self._requests = (
            Bursts("one session", rate=rate, size=size),
            Bursts(whose, rate=_OF_ONE_USER * rate, size=_OF_ONE_USER * size),
        )
        self._open: Counter[object] = Counter()
        self._daily = Bursts(whose, rate=daily / _DAY_S, size=daily, limit=f"{daily} changes a day")

    def enter(self, state: MutableMapping[str, Any], whose: object) -> None:
        """Count a request that is under way until `http.requests` calls the
        state's `leave`. Raises LimitExceeded.

        A request may hold megabytes while its client reads or sends slowly. `whose` is a user's id, or
        another name for requests without credentials of the user, which must leave the user's own requests
        their places.
        """
        if self._open[whose] >= _MAX_OPEN:
            raise LimitExceeded(
                "Too many requests of this account are under way: wait for their answers", retry_after_s=1
            )
        self._open[whose] += 1
        state["leave"] = partial(self._leave, whose)

    def enter_alone(self, state: MutableMapping[str, Any], what: str, user_id: object) -> None:
        """Count a request that an account may make one at a time,
        because it costs much. Raises LimitExceeded."""
        name = what, user_id
        if self._open[name]:
            raise LimitExceeded(f"Another {what} of this account is under way: wait for its end", retry_after_s=10)
        self._open[name] = 1
        outer: Callable[[], None] = state["leave"]

        def leave() -> None:
            self._leave(name)
            outer()

        state["leave"] = leave

    def _leave(self, whose: object) -> None:
        self._open[whose] -= 1
        if self._open[whose] <= 0:
            del self._open[whose]

    def limit_changes(self, actor: Actor, n: int = 1) -> None:
        """Count `n` changes against the rate limit of a user's sessions, which are not metered. Raises
        BurstExceeded.

        Anonymous callers and API keys have limits of their own. Not for requests that end a session.
        """
        if actor.session_id is not None and n > 0:
            self._limit_changes(actor.user_id, n)

    def limit_changes_by_url(self, actor: Actor) -> None:
        """As `limit_changes`, for one change by a signed URL. The URLs of a user have an allowance of their
        own: somebody else who has one does not block the user's sessions.
        """
        self._limit_changes(("url", actor.user_id), 1)

    def _limit_changes(self, whose: object, n: int) -> None:
        now = monotonic()
        counted = min(n, self._changes.size)
        self._changes.take(whose, counted, now)
        try:
            self._daily.take(whose, min(n, self._daily.size), now)
        except BurstExceeded:
            self._changes.put_back(whose, counted)
            raise

    def limit_saves(self, actor: Actor) -> None:
        """As `limit_changes`, for one save of a canvas."""
        if actor.session_id is not None:
            self._saves.take(actor.user_id, 1, monotonic())

    @property
    def cookie_seconds(self) -> int:
        """Lifetime of the cookie. The session may end earlier, never later."""
        return self.settings.session_max_days * 24 * 3600

    def at_hand(self, scope: MutableMapping[str, Any]) -> Caller | None:
        """The caller, if its API key is cached: the result of `identify`, without awaiting.

        None means unknown: call `identify`.
        """
        authorization = user_agent = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    return None
                authorization = value
            elif name == b"user-agent":
                user_agent = value
        if authorization is None or not authorization.startswith(_BEARER_KEY):
            return None
        known = self._keys.known(authorization[7:])
        if known is None:
            return None
        return _by_key(
            known, scope["state"], None if user_agent is None else user_agent.decode("latin-1")[:_MAX_USER_AGENT]
        )

    def session_token(self, scope: MutableMapping[str, Any]) -> str | None:
        """The session token in a request's header or cookie, valid or not; None for other credentials.

        Raises ForeignOrigin for a cookie that another site's page sends along.
        """
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if authorization is None:
            token = self.cookies.token(scope["headers"])
            if token is not None:
                self.cookies.require_own_page(scope["method"], dict(scope["headers"]))
            return token
        scheme, _, token = authorization.decode("latin-1").partition(" ")
        token = token.strip()
        return token if scheme.lower() == "bearer" and token and not tokens.looks_like(token) else None

    async def identify(self, scope: MutableMapping[str, Any]) -> Caller:
        """The caller. At most one command; none for cached callers, and none without a token.

        Raises Unauthenticated for a token that is malformed, unknown or expired, Forbidden for one that may
        not be used (locked account, address, foreign page): a request with credentials is never answered as
        if it came from an anonymous caller. Raises BurstExceeded for too many requests of a session.
        """
        authorization = user_agent = None
        cookie = False
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:  # ambiguous: the caller would depend on the one that is read
                    raise Unauthenticated("Send one Authorization header")
                authorization = value.decode("latin-1")
            elif name == b"user-agent":
                user_agent = value.decode("latin-1")[:_MAX_USER_AGENT]
            elif name == b"cookie":
                cookie = True
        state = scope.get("state", {})
        if "caller" in state:
            known_already: Caller
            known_already, at = state["caller"]
            if monotonic() - at < _AGAIN_S:
                return known_already
        address, request_id = state.get("address"), state.get("request_id")
        if authorization is None:
            token = self.cookies.token(scope["headers"]) if cookie else None
            if token is None:
                return Caller(Actor(address=address, user_agent=user_agent, request_id=request_id))
            self.cookies.require_own_page(scope["method"], dict(scope["headers"]))
        else:
            scheme, _, token = authorization.partition(" ")
            token = token.strip()
            if scheme.lower() != "bearer" or not token:
                raise Unauthenticated("Send your session's token, or an API key, as 'Authorization: Bearer <token>'")
            if tokens.looks_like(token):
                return _by_key(await self._keys.verify(token, address=address), state, user_agent)
            if token.startswith(links.PREFIX):
                raise Unauthenticated("This is the token of a public link: it opens the routes of /v1/shared only")
        found = self._sessions.at_hand(token)
        if found is None:
            origin = Actor(address=address, user_agent=user_agent, request_id=request_id)
            found = await self._sessions.authenticate(token, origin)
        session, account = found.session, found.account
        if "counted" not in state and not _is_here(address):
            take_each(self._requests, (session.id, session.user_id), 1, monotonic())
            state["counted"] = True  # a request may ask several times
        actor = Actor(
            kind="operator" if self._is_operator(account) else "user",
            via="session",
            user_id=session.user_id,
            session_id=session.id,
            sign_in_id=session.sign_in_id,
            authenticated_at=session.proved_at,
            address=address,
            user_agent=user_agent,
            request_id=request_id,
        )
        return Caller(actor, account.user, by_cookie=authorization is None)

    def anonymous(self, scope: MutableMapping[str, Any]) -> Caller:
        """The anonymous caller at the request's address."""
        state = scope.get("state", {})
        agents = (
            value.decode("latin-1")[:_MAX_USER_AGENT] for name, value in scope["headers"] if name == b"user-agent"
        )
        actor = Actor(address=state.get("address"), user_agent=next(agents, None), request_id=state.get("request_id"))
        return Caller(actor)

    def _is_operator(self, account: AccountStatus) -> bool:
        return account.operator and (account.factor or not self.settings.operators_need_factor)

    @property
    def parts(self) -> list[Part]:
        """The loops that store when keys and sessions were used."""
        return [
            Part("authentication.keys", self._keys.run, stage=Stage.SERVE),
            Part("authentication.sessions", self._sessions.run, stage=Stage.SERVE),
        ]


_is_here = lru_cache(10_000)(is_loopback)


def _by_key(known: Known, state: MutableMapping[str, Any], user_agent: str | None) -> Caller:
    actor = Actor(
        kind="user",
        via="api_key",
        user_id=known.user_id,
        api_key_id=known.id,
        scopes=known.scopes,
        address=state.get("address"),
        user_agent=user_agent,
        request_id=state.get("request_id"),
    )
    caller = Caller(actor, known.account.user if known.account else None, False, known.names)
    state["caller"] = caller, monotonic()  # asked once to meter the request, and again to answer it
    return caller


def shows_key(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the request may carry an API key. True for everything that `identify` could accept as one."""
    for name, value in headers:  # noqa: SIM110 (a generator would cost as much as the rest of the decision)
        if name == b"authorization" and _KEY in value:
            return True
    return False


def signed_in(*, scope: str | None = None, api_calls: int = 1, saves: bool = False) -> dict[str, Any]:
    """Options of a route that requires authentication: `@get("/v1/export", **signed_in())`.

    The handler takes `caller: NamedDependency[Caller]`. An API key needs the scope; without one named here,
    no key may use the route. `api_calls` is the price of a request with a key; 0 is free. `saves` marks
    routes that an editor calls while one draws: they have a limit of their own in place of that of other
    changes.
    """
    return {
        "dependencies": {"caller": Provide(_caller)},
        "opt": {"scope": scope, "api_calls": api_calls, "saves": saves},
        "security": [{"session": []}] if scope is None else [{"session": []}, {"api_key": [scope]}],
    }


def log_caller(scope: MutableMapping[str, Any], caller: Caller) -> None:
    """Name the caller in the request's log line."""
    if caller.actor.user_id is not None:
        log = scope["state"]["log"]
        log["user"] = str(caller.actor.user_id)
        if caller.actor.api_key_id is not None:
            log["key"] = str(caller.actor.api_key_id)


async def _caller(request: Request[Any, Any, Any]) -> Caller:
    authentication: Authentication = request.app.state.authentication
    caller = await authentication.identify(request.scope)  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
    caller.actor.require_user()
    log_caller(request.scope, caller)  # type: ignore[arg-type]  # the same
    if request.route_handler.opt["saves"]:
        authentication.limit_saves(caller.actor)
    elif request.method not in _SAFE:
        authentication.limit_changes(caller.actor)
    scopes.require(caller.actor, request.route_handler.opt["scope"], what=f"{request.method} {request.scope['path']}")
    authentication.enter(request.scope["state"], caller.actor.require_user())
    return caller
