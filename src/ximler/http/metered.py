"""Every request with an API key is metered before any other work: a burst limit, then the month's quota.

The handler declares the price of its route: `opt={"api_calls": 5}`, or by `signed_in`, which takes 1. Other
routes serve everybody: a key that is sent there costs nothing, and is not refused by the month's quota. With
`BY_REQUEST` the price depends on the request's content: the handler calls `charge(scope)` unless the request
is free. A request that is refused, by a limit or for an invalid key, costs nothing. Sessions are not metered:
their requests, and anonymous ones, have a burst limit by address, far above what people need. In addition,
`Authentication` limits them by session and user.

Plain ASGI in front of the application: a guard inside it costs 3 × as much (`make bench`). Answers carry
`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), refusals `Retry-After` as well.
"""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar
from litestar.enums import ScopeType
from litestar.handlers import ASGIRouteHandler, BaseRouteHandler
from litestar.routes import ASGIRoute, BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from ximler.core.actor import Actor
from ximler.core.clock import Clock
from ximler.core.errors import LimitExceeded, Unavailable, XimlerError
from ximler.core.networks import is_loopback, subscriber
from ximler.core.settings import Settings
from ximler.http import problems
from ximler.http.authentication import Authentication, shows_key
from ximler.metering.quota.bursts import BurstExceeded, Bursts, take_each
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.metering.quota.meter import Allowance, Meter

if TYPE_CHECKING:
    from ximler.metering.quota.shared_bursts import SharedBursts

__all__ = ["BY_REQUEST", "Metered", "Prices", "charge"]

BY_REQUEST = -1
_OF_ONE_USER = 2  # times the rate of one key, for all keys of a user together


_HOST = re.compile(rb"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")  # others are examined by Litestar

_FREE = Allowance(None, None, 0)
Refusal = Callable[[MutableMapping[str, Any], XimlerError], tuple[bytes, bytes]]
"""`refusal(scope, error)`: media type and body of a rejection, for routes with their own format."""
_Parts = tuple[Authentication, Meter, Clock, "SharedBursts | None"]


class Prices:
    """The price of each route, and its name in the ledger: the path's template, so that names are bounded."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._fixed: dict[str, tuple[str, int | None]] = {}
        self._open: list[tuple[list[str | None], tuple[str, int | None]]] = []
        for route in routes:
            price = (route.path_format, _declared(route))
            parts = [part if isinstance(part, str) else None for part in route.path_components]
            if None in parts:
                self._open.append((parts, price))
            else:
                self._fixed[route.path] = price

    def of(self, path: str) -> tuple[str, int | None]:
        """The route's template and its price. Unknown paths have the usual price."""
        found = self._fixed.get(path)
        if found is not None:
            return found
        parts = [part for part in path.split("/") if part]
        for template, price in self._open:
            if len(template) == len(parts) and all(
                wanted is None or wanted == part for wanted, part in zip(template, parts, strict=True)
            ):
                return price
        return self._fixed.get(f"/{'/'.join(parts)}", ("other", 1))


def _declared(route: BaseRoute) -> int | None:
    """The price of a request: 0 is free, but subject to the burst limit; BY_REQUEST is decided by the
    handler; None is unlimited.
    """
    handlers: Sequence[BaseRouteHandler] = []
    if isinstance(route, HTTPRoute):
        handlers = route.route_handlers
    elif isinstance(route, ASGIRoute):
        handlers = [route.route_handler]
    prices = [handler.opt["api_calls"] for handler in handlers if "api_calls" in handler.opt]
    return None if None in prices else max(prices, default=0)


def charge(scope: MutableMapping[str, Any], units: int = 1) -> Awaitable[None] | None:
    """Take the calls for a request to a route `BY_REQUEST`. Returns None if that is done, else an awaitable.

    Requests without an API key are free. Raises QuotaExceeded, Unavailable.
    """
    take: Callable[[int], Awaitable[None] | None] | None = scope.get("state", {}).pop("charge", None)
    return None if take is None else take(units)


@lru_cache(10_000)
def _counted(address: str | None) -> str | None:
    return None if address is None or is_loopback(address) else subscriber(address)


def _is_plain(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether Litestar has nothing to do for a request with these headers: no CORS, and no host to reject."""
    for name, value in headers:  # noqa: SIM110 (a generator would cost twice as much)
        if name == b"origin" or (name == b"host" and _HOST.fullmatch(value) is None):
            return False
    return True


class Metered:
    """Meters requests to `app`, whose state has `authentication` and `meter` once it is started.

    `Requests`, around it, sends the rate-limit headers: one layer fewer for each answer. `direct` has the
    ASGI applications of `app` that a POST reaches without Litestar's layers, by their path: those that handle
    errors themselves. Requests with an `Origin` pass Litestar, which adds the headers of CORS.
    """

    def __init__(
        self,
        app: Litestar,
        settings: Settings,
        refusals: Mapping[str, Refusal] | None = None,
        direct: Mapping[str, ASGIRouteHandler] | None = None,
    ) -> None:
        self._litestar: ASGIApp = app
        self._direct = direct or {}
        self._refusals = refusals or {}  # by the route's template
        self.state = app.state
        self._parts: _Parts | None = None
        self._prices = Prices(app.routes)
        self._cors = app.cors_config
        rate, size = settings.api_rate, settings.api_burst
        self._keys = Bursts("this API key", rate=rate, size=size)
        users = "all API keys of this account together"
        self.limits = (self._keys, Bursts(users, rate=_OF_ONE_USER * rate, size=_OF_ONE_USER * size))
        addresses = "one address without an API key"
        self._addresses = Bursts(addresses, rate=settings.address_rate, size=settings.address_burst)
        self._policy = b'"burst";q=%d;w=%d' % (size, math.ceil(size / rate))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            self._parts = None  # the application starts, or ends
            await self._litestar(scope, receive, send)
            return
        authentication, meter, clock, shared = self._parts or self._find_parts()
        if not shows_key(scope["headers"]):
            await self._without_key(scope, receive, send)
            return
        caller = authentication.at_hand(scope)  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
        if caller is None:
            with suppress(XimlerError):  # the application reports the same error in its own form
                caller = await authentication.identify(scope)  # type: ignore[arg-type]  # as above
        route, units = self._prices.of(scope["path"])
        if caller is None or caller.names is None:  # a session's token may contain the prefix of a key
            await self._without_key(scope, receive, send)
            return
        if units is None:
            await self._app(scope, receive, send)
            return
        actor, (key, owner) = caller.actor, caller.names
        try:
            fast = max(units, 1)  # the burst limit bounds free requests too
            if shared is not None:
                left = await shared.take((key, owner), fast)
            else:
                left = take_each(self.limits, (key, owner), fast, monotonic())
            allowance = meter.take(actor, units, route=route) if units > 0 else _FREE
            if allowance is None:
                allowance = await meter.consume(actor, "apiCalls", units, route=route)
        except (LimitExceeded, Unavailable) as error:
            await self._refuse(scope, send, error, route, self._exhausted(error))
            return
        state = scope["state"]
        state["reply_headers"] = self._headers(left, allowance, clock)
        if units == BY_REQUEST:
            state["charge"] = partial(self._charge, state, actor, left, route)
        await self._app(scope, receive, send)

    async def _without_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        whose = _counted(scope["state"].get("address"))
        try:
            if whose is not None:
                self._addresses.take(whose, 1, monotonic())
        except BurstExceeded as error:
            await self._refuse(scope, send, error, self._prices.of(scope["path"])[0], [])
        else:
            await self._app(scope, receive, send)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._direct.get(scope["path"])
        if (
            handler is not None
            and scope["type"] == ScopeType.HTTP
            and scope["method"] == "POST"
            and not scope.get("root_path")
            and _is_plain(scope["headers"])
        ):
            scope["route_handler"] = handler
            scope["path_template"] = scope["path"]
            await handler.fn(scope=scope, receive=receive, send=send)
            return
        await self._litestar(scope, receive, send)

    def _charge(
        self, state: MutableMapping[str, Any], actor: Actor, left: int, route: str, units: int
    ) -> Awaitable[None] | None:
        _, meter, clock, _ = self._parts or self._find_parts()
        allowance = meter.take(actor, units, route=route)
        if allowance is None:
            return self._charge_later(state, actor, left, route, units)
        state["reply_headers"] = self._headers(left, allowance, clock)
        return None

    async def _charge_later(
        self, state: MutableMapping[str, Any], actor: Actor, left: int, route: str, units: int
    ) -> None:
        _, meter, clock, _ = self._parts or self._find_parts()
        try:
            allowance = await meter.consume(actor, "apiCalls", units, route=route)
        except LimitExceeded as error:
            state["reply_headers"] = self._exhausted(error)
            raise
        state["reply_headers"] = self._headers(left, allowance, clock)

    def _headers(self, left: int, allowance: Allowance, clock: Clock) -> list[tuple[bytes, bytes]]:
        keys, limit, remaining = self._keys, allowance.limit, allowance.remaining
        full_s = math.ceil((keys.size - left) / keys.rate)
        if limit is None or remaining is None:
            return [(b"ratelimit-policy", self._policy), (b"ratelimit", b'"burst";r=%d;t=%d' % (left, full_s))]
        resets_s = max(0, -(-(allowance.resets_ms - clock.now_ms()) // 1000))
        return [
            (b"ratelimit-policy", b'%b, "month";q=%d' % (self._policy, limit)),
            (b"ratelimit", b'"burst";r=%d;t=%d, "month";r=%d;t=%d' % (left, full_s, remaining, resets_s)),
        ]

    def _exhausted(self, error: XimlerError) -> list[tuple[bytes, bytes]]:
        """The headers of a refusal: every policy, and the limit that is reached."""
        policy = self._policy
        if isinstance(error, QuotaExceeded) and error.month is not None:
            policy = b'%b, "month";q=%d' % (policy, error.month)
        headers = [(b"ratelimit-policy", policy)]
        if isinstance(error, LimitExceeded):
            name = b"burst" if isinstance(error, BurstExceeded) else b"month"
            headers.append((b"ratelimit", b'"%b";r=0;t=%d' % (name, math.ceil(error.retry_after_s or 0))))
        return headers

    def _find_parts(self) -> "_Parts":
        """The parts that the application created at start; looked up once, because each look-up costs 10 % of
        metering.
        """
        state = self.state
        self._parts = parts = (state.authentication, state.meter, state.database.clock, state.get("shared_bursts"))
        return parts

    async def _refuse(
        self, scope: Scope, send: Send, error: XimlerError, route: str, limits: list[tuple[bytes, bytes]]
    ) -> None:
        if (form := self._refusals.get(route)) is not None:
            media_type, body = form(scope, error)  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
        else:
            media_type = problems.MEDIA_TYPE.encode()
            body = msgspec.json.encode(problems.body(error, scope["state"]["request_id"]))
        said: Mapping[str, str] = {
            "Content-Type": media_type.decode(),
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            **problems.headers_of(error),
            **self._shared_with(scope),
        }
        headers = [(name.lower().encode(), value.encode()) for name, value in said.items()] + limits
        start: Any = {"type": "http.response.start", "status": problems.status_of(error), "headers": headers}
        await send(start)
        end: Any = {"type": "http.response.body", "body": body, "more_body": False}
        await send(end)

    def _shared_with(self, scope: Scope) -> Mapping[str, str]:
        """CORS headers, so that pages of allowed origins can read the refusal; the application adds them to
        its own answers.
        """
        origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None or self._cors is None or not self._cors.is_origin_allowed(origin):
            return {}
        return {**self._cors.simple_headers, "Access-Control-Allow-Origin": origin, "Vary": "Origin"}
