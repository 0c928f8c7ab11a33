"""Every request with an API key is paid for before anything else is done for it: a burst limit, then the month's quota.

What a route costs is declared where it is: `opt={"api_calls": 5}` on its handler, 1 unless it says so, 0 is free. A request
that is refused, by a limit or because its key opens nothing, costs nothing. Sessions of people are not metered.

Plain ASGI in front of the application, because that costs a third of what a guard in it would (`make bench`). Answers carry
`RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), refusals `Retry-After` as well.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Litestar
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.routes import ASGIRoute, BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from ximler.core.clock import to_ms
from ximler.core.errors import LimitExceeded, Unavailable, XimlerError
from ximler.core.settings import Settings
from ximler.http import problems
from ximler.http.authentication import Authentication, Caller, shows_key
from ximler.metering.bursts import BurstExceeded, Bursts
from ximler.metering.meter import Allowance, Meter

__all__ = ["Metered", "Prices"]

_OF_ONE_USER = 2  # all keys of a user together may be this much faster than one


class Prices:
    """What each route costs, and its name in the ledger: a path's template, so that there are not more names than routes."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._fixed: dict[str, tuple[str, int]] = {}
        self._open: list[tuple[list[str | None], tuple[str, int]]] = []
        for route in routes:
            price = (route.path_format, _declared(route))
            parts = [part if isinstance(part, str) else None for part in route.path_components]
            if None in parts:
                self._open.append((parts, price))
            else:
                self._fixed[route.path] = price

    def of(self, path: str) -> tuple[str, int]:
        """The route's template and its price. What is at no route is asked for at the usual price."""
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


def _declared(route: BaseRoute) -> int:
    handlers: Sequence[BaseRouteHandler] = []
    if isinstance(route, HTTPRoute):
        handlers = route.route_handlers
    elif isinstance(route, ASGIRoute):
        handlers = [route.route_handler]
    return max((handler.opt["api_calls"] for handler in handlers if "api_calls" in handler.opt), default=1)


class Metered:
    """Meters what goes to `app`, whose state has `authentication` and `meter` once it is started."""

    def __init__(self, app: Litestar, settings: Settings) -> None:
        self._app: ASGIApp = app
        self.state = app.state
        self._prices = Prices(app.routes)
        rate, size = settings.api_rate, settings.api_burst
        self._keys = Bursts(rate=rate, size=size)
        self._users = Bursts(rate=_OF_ONE_USER * rate, size=_OF_ONE_USER * size)
        self._policy = f'"burst";q={size};w={math.ceil(size / rate)}'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or not shows_key(scope["headers"]):
            await self._app(scope, receive, send)
            return
        route, units = self._prices.of(scope["path"])
        authentication: Authentication = self.state.authentication
        try:
            caller = await authentication.identify(scope)  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
        except XimlerError:
            await self._app(scope, receive, send)  # which finds out the same, and says so in its own form
            return
        if not units or caller.actor.api_key_id is None:  # a session's token may have the letters of a key in it
            await self._app(scope, receive, send)
            return
        try:
            allowance = await self._pay(caller, units, route)
        except (LimitExceeded, Unavailable) as error:
            await self._refuse(send, caller, error)
            return
        headers = self._headers(caller, allowance)

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self._app(scope, receive, reply)

    async def _pay(self, caller: Caller, units: int, route: str) -> Allowance:
        actor = caller.actor
        wait = self._keys.take(actor.api_key_id, units)
        if wait:
            raise BurstExceeded.of("this API key", self._keys, wait)
        wait = self._users.take(actor.user_id, units)
        if wait:
            self._keys.put_back(actor.api_key_id, units)
            raise BurstExceeded.of("all API keys of this account together", self._users, wait)
        meter: Meter = self.state.meter
        return await meter.consume(actor, "apiCalls", units, route=route)

    def _headers(self, caller: Caller, allowance: Allowance) -> list[tuple[bytes, bytes]]:
        left = self._keys.left(caller.actor.api_key_id)
        policy, limits = self._policy, f'"burst";r={left};t={math.ceil((self._keys.size - left) / self._keys.rate)}'
        if allowance.limit is not None:
            policy += f', "month";q={allowance.limit}'
            limits += f', "month";r={allowance.remaining};t={self._seconds_to(allowance)}'
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", limits.encode())]

    def _seconds_to(self, allowance: Allowance) -> int:
        now_ms: int = self.state.database.clock.now_ms()
        return max(0, math.ceil((to_ms(allowance.resets_at) - now_ms) / 1000))

    async def _refuse(self, send: Send, caller: Caller, error: XimlerError) -> None:
        body = msgspec.json.encode(problems.body(error, caller.actor.request_id))
        said: Mapping[str, str] = {
            "Content-Type": problems.MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "RateLimit-Policy": self._policy,
            **problems.headers_of(error),
        }
        if isinstance(error, BurstExceeded):
            said = {**said, "RateLimit": f'"burst";r=0;t={math.ceil(error.retry_after_s or 0)}'}
        elif isinstance(error, LimitExceeded):
            said = {**said, "RateLimit": f'"month";r=0;t={math.ceil(error.retry_after_s or 0)}'}
        headers = [(name.lower().encode(), value.encode()) for name, value in said.items()]
        start: Any = {"type": "http.response.start", "status": problems.status_of(error), "headers": headers}
        await send(start)
        end: Any = {"type": "http.response.body", "body": body, "more_body": False}
        await send(end)
