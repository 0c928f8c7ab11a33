"""Every request gets an id, the caller's address, a log line, a metric and security headers.

Plain ASGI around the whole application, so that no route can bypass it.
"""

import asyncio
import os
import re
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Counter, Histogram

from ximler.core.errors import Unavailable
from ximler.core.in_flight import InFlight
from ximler.core.logs import info_soon, printable
from ximler.core.networks import contains, forwarded_for, parse_address, parse_network
from ximler.core.settings import SettingsError
from ximler.http import problems
from ximler.http.conditional import matches

__all__ = ["Requests", "TrustedProxies"]

_log = structlog.get_logger("ximler.http")
# An authority without user, and not empty (RFC 9110, 4.2.1 and 7.2).
# Another one is an error wherever it is parsed next.
_LAST_PORT = 65_535
_USUAL = 253  # characters of a host: longer ones are not remembered
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::([0-9]{0,5}))?")
_ID = re.compile(rb"[A-Za-z0-9._~-]{8,64}")

SERVED = Counter("ximler_http_requests_total", "Requests answered.", ("method", "route", "status"))
SECONDS = Histogram(
    "ximler_http_request_seconds",
    "Time from a request to the end of its answer.",
    ("route",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
# Headers with a single value, which RFC 9110 does not allow to be combined into a list.
_SINGLE = frozenset({b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key"})
_LISTS = frozenset({b"if-none-match", b"x-forwarded-for", b"forwarded"})
_OK, _NOT_MODIFIED, _TOO_LARGE = 200, 304, 413
_OF_BODIES = frozenset({b"content-length", b"content-type"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Defaults, which an answer may override.
SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")  # ASVS 5.0, 3.4.1


class ShuttingDown(Unavailable):
    code = "SHUTTING_DOWN"


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` or `Forwarded` is trusted, by default none.

    Raises SettingsError for an invalid network.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks = [parse_network(network, strict=False) for network in networks]
        except ValueError as error:
            raise SettingsError(f"XIMLER_TRUSTED_PROXIES: {error}", fields={"trusted_proxies": str(error)}) from None

    def client(self, peer: str | None, x_forwarded_for: str = "", forwarded: str = "") -> str | None:
        """The nearest address that is not a trusted proxy, reading the header from its end.

        Elements before the first untrusted one are the client's own claims, and are ignored.
        """
        address = peer
        if peer is not None and ":" in peer:  # a dual-stack socket writes IPv4 addresses as IPv6
            parsed = parse_address(peer)
            address = peer if parsed is None else str(parsed)
        if not self._networks or not (x_forwarded_for or forwarded):
            return address
        for claimed in forwarded_for(x_forwarded_for, forwarded):
            if claimed is None or not contains(self._networks, address):
                break
            address = claimed
        return address


class Requests:
    """The outermost layer. Inner layers may add headers to the answer through the state's `reply_headers`.

    With `https`, answers require browsers to use TLS for a year.
    """

    def __init__(
        self, app: ASGIApp, proxies: TrustedProxies, in_flight: InFlight | None = None, *, https: bool = False
    ) -> None:
        self._app = app
        self.in_flight = in_flight or InFlight(2**63)
        self._proxies = proxies
        self._safe = [*SAFE_HEADERS, _HSTS] if https else SAFE_HEADERS
        self._safe_names = frozenset(name for name, _ in self._safe)
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
        head = _Head(scope["headers"])  # type: ignore[arg-type]  # a list
        request_id = head.request_id
        peer = scope["client"][0] if scope.get("client") else None  # type: ignore[index]  # checked by get
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["address"] = self._proxies.client(peer, head.x_forwarded_for, head.forwarded)
        state["head"] = method == "HEAD"
        self.in_flight.enter(state)
        more = state["log"] = {}  # caller, operation and error code, from the layers inside
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if head.client_id:
            more["client_request_id"] = head.client_id
        status = 0
        asked = False

        async def read() -> Any:
            nonlocal asked
            asked = True
            return await receive()

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                if status == _OK and head.if_none_match and scope["method"] == "GET" and head.knows(headers):
                    status = message["status"] = _NOT_MODIFIED
                    headers = [header for header in headers if header[0] not in _OF_BODIES]
                if head.expects and not asked:
                    # The client may send its body or its next request now, and these cannot be distinguished.
                    headers.append((b"connection", b"close"))
                elif status == _TOO_LARGE or "overloaded" in state:
                    headers.append((b"connection", b"close"))
                if method == "HEAD":  # the length of a body that was not made is not known (RFC 9110, 8.6)
                    headers = [header for header in headers if header != (b"content-length", b"0")]
                said = {name for name, _ in headers}
                if self._safe_names.isdisjoint(said):
                    headers += self._safe
                else:
                    headers += [header for header in self._safe if header[0] not in said]
                message["headers"] = [*headers, *state.get("reply_headers", ()), (b"x-request-id", request_id.encode())]
            elif (method == "HEAD" or status == _NOT_MODIFIED) and message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        try:
            problem = head.problem(scope.get("http_version", "1.1"))
            if problem:
                await _refuse(reply, problems.bad_request(problem, request_id))
            else:
                await self._app(scope, read if head.expects else receive, reply)
        except asyncio.CancelledError:  # by the server, at the end of draining
            if not status:
                error = ShuttingDown("The server is shutting down: try again in a moment")
                await _refuse(reply, problems.body(error, request_id), (b"retry-after", b"1"))
            raise
        finally:
            if leave := state.get("leave"):
                leave()
            self.in_flight.leave(state)
            seconds = time.perf_counter() - started
            route = scope.get("path_template") or "other"
            self._count(method, route, status, seconds)
            handler: BaseRouteHandler | None = scope.get("route_handler")  # None for unknown paths
            quiet = handler is not None and handler.opt.get("quiet")
            (_debug if quiet else info_soon)(
                _log,
                "request",
                request_id=request_id,
                method=method,
                path=printable(scope["path"]),
                address=state["address"],
                status=status,
                ms=round(seconds * 1000, 2),
                **more,
            )

    def _count(self, method: str, route: str, status: int, seconds: float) -> None:
        found = self._counters.get((method, route, status))
        if found is None:  # the library's own look-up doubles the cost
            found = self._counters[method, route, status] = SERVED.labels(method, route, status), SECONDS.labels(route)
        served, took = found
        served.inc()
        took.observe(seconds)


async def _refuse(send: Send, problem: problems.Problem, *more: tuple[bytes, bytes]) -> None:
    """Respond without the application, and close the connection, because the following bytes may not be a
    request.
    """
    headers = [(b"content-type", problems.MEDIA_TYPE.encode()), (b"connection", b"close"), *more]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(problem), "more_body": False})


def _debug(logger: Any, event: str, **fields: Any) -> None:
    logger.debug(event, **fields)


_ids: list[str] = []


def random_id() -> str:
    """16 random digits: one system call for many."""
    try:
        return _ids.pop()
    except IndexError:
        digits = os.urandom(1024).hex()
        _ids.extend(digits[at : at + 16] for at in range(16, len(digits), 16))
        return digits[:16]


class _Head:
    """The headers that matter to every request, and their problems."""

    __slots__ = (
        "_host",
        "_twice",
        "client_id",
        "expects",
        "forwarded",
        "if_none_match",
        "request_id",
        "x_forwarded_for",
    )

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.request_id = random_id()  # the client's own id is only logged: it may repeat that of another request
        self._twice = b""
        found = dict(headers)
        if len(found) < len(headers):
            found = self._combined(headers)
        self._host = found.get(b"host")
        self.expects = b"expect" in found
        client_id = found.get(b"x-request-id", b"")
        self.client_id = client_id.decode() if client_id and _ID.fullmatch(client_id) else ""
        self.if_none_match = found.get(b"if-none-match", b"").decode("latin-1")
        self.x_forwarded_for = found.get(b"x-forwarded-for", b"").decode("latin-1")
        self.forwarded = found.get(b"forwarded", b"").decode("latin-1")

    def _combined(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """The headers: lists joined from several lines, the last line of others."""
        lines: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            lines.setdefault(name, []).append(value)
        for name, values in lines.items():
            if len(values) > 1 and name in _SINGLE:
                self._twice = name
        return {name: b",".join(values) if name in _LISTS else values[-1] for name, values in lines.items()}

    def knows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the client has the answer with these headers already."""
        etag = next((value for name, value in headers if name == b"etag"), None)
        return etag is not None and matches(self.if_none_match, etag.decode("latin-1"))

    def problem(self, http_version: str) -> str | None:
        """Duplicates, which parsers resolve differently, and a Host that is missing or
        malformed (RFC 9110, 5.3 and 7.2)."""
        if self._twice:
            return f"The header {self._twice.decode().title()} may be given once only"
        if self._host is None:
            return None if http_version == "1.0" else "The request has no Host header"
        is_host = _is_host if len(self._host) <= _USUAL else _is_host.__wrapped__
        if not is_host(self._host):
            return "The Host header is not a name or address, with a port or without"
        return None


@lru_cache(256)
def _is_host(value: bytes) -> bool:
    found = _HOST.fullmatch(value)
    return found is not None and int(found[1] or 0) <= _LAST_PORT
