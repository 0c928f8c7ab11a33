"""Every request gets an id, the caller's address, a log line, a metric and security headers.

Plain ASGI around the whole application, so that no route can bypass it.
"""

import asyncio
import ipaddress
import re
import secrets
import time
from collections.abc import Iterable

import msgspec
import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter, Histogram

from ximler.core.errors import Unavailable
from ximler.core.logs import printable
from ximler.core.settings import SettingsError
from ximler.http import problems

__all__ = ["Requests", "TrustedProxies"]

_log = structlog.get_logger("ximler.http")
_ID = re.compile(rb"[A-Za-z0-9._~-]{8,64}")

SERVED = Counter("ximler_http_requests_total", "Requests answered.", ("method", "route", "status"))
SECONDS = Histogram(
    "ximler_http_request_seconds",
    "Time from a request to the end of its answer.",
    ("route",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Defaults, which an answer may override.
_SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
]


class ShuttingDown(Unavailable):
    code = "SHUTTING_DOWN"


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is trusted, by default none. Raises SettingsError for an invalid network."""

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]
        except ValueError as error:
            raise SettingsError(f"XIMLER_TRUSTED_PROXIES: {error}", fields={"trusted_proxies": str(error)}) from None

    def client(self, peer: str | None, forwarded_for: str) -> str | None:
        """The nearest address that is not a trusted proxy, reading `X-Forwarded-For` from its end.

        Entries before the first untrusted one are the client's own claims, and are ignored.
        """
        address = peer
        for claimed in reversed(forwarded_for.split(",")) if self._networks else ():
            if address is None or not self._trusts(address):
                break
            candidate = _address(claimed.strip())
            if candidate is None:
                break
            address = str(candidate)
        return address

    def _trusts(self, address: str) -> bool:
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for an invalid address. `::ffff:10.0.0.1`, from a dual-stack socket, is 10.0.0.1."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


class Requests:
    """The outermost layer. Inner layers may add headers to the answer through the state's `reply_headers`."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"] if scope["method"] in _METHODS else "other"
        if method == "HEAD":
            # Answered as GET is, and then without the body (RFC 9110, 9.3.2).
            scope = {**scope, "method": HttpMethod.GET}
        request_id, forwarded_for = _read(scope["headers"])
        peer = scope["client"][0] if scope.get("client") else None  # type: ignore[index]  # checked by get
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["address"] = self._proxies.client(peer, forwarded_for)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                said = {name for name, _ in headers}
                headers += [header for header in _SAFE_HEADERS if header[0] not in said]
                message["headers"] = [*headers, *state.get("reply_headers", ()), (b"x-request-id", request_id.encode())]
            elif method == "HEAD" and message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        try:
            await self._app(scope, receive, reply)
        except asyncio.CancelledError:  # by the server, at the end of draining
            if not status:
                await _send_unavailable(reply, request_id)
            raise
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("path_template") or "other"
            self._count(method, route, status, seconds)
            handler: BaseRouteHandler | None = scope.get("route_handler")  # None where nothing is at the path
            log = _log.debug if handler and handler.opt.get("quiet") else _log.info
            log("request", method=method, path=printable(scope["path"]), status=status, ms=round(seconds * 1000, 2))

    def _count(self, method: str, route: str, status: int, seconds: float) -> None:
        found = self._counters.get((method, route, status))
        if found is None:  # the library's own look-up doubles the cost
            found = self._counters[method, route, status] = SERVED.labels(method, route, status), SECONDS.labels(route)
        served, took = found
        served.inc()
        took.observe(seconds)


async def _send_unavailable(send: Send, request_id: str) -> None:
    problem = problems.body(ShuttingDown("The server is shutting down: try again in a moment"), request_id)
    headers = [(b"content-type", problems.MEDIA_TYPE.encode()), (b"retry-after", b"1"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(problem), "more_body": False})


def _read(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str]:
    request_id, forwarded_for = "", []
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value):
            request_id = value.decode()
        elif name == b"x-forwarded-for":
            forwarded_for.append(value.decode("latin-1"))
    return request_id or secrets.token_hex(8), ",".join(forwarded_for)
