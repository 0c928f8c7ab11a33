"""HTTP connections with limits that uvicorn lacks, so that slow clients do not exhaust memory or connections.

    headers     64 kB (else 431), complete within 15 s of the connection or of their first byte
    body        after 60 s, 16 kB/s since its beginning; of a caller that the application has authenticated,
                1 kB in every 60 s (a stream of events may last for hours)
    responses   once 64 kB are unread, the client must read 64 kB in every 60 s; the unread bytes of all
                clients count towards what a process may hold (`InFlight`); if a response ends the connection
                before the body has arrived: 5 s for the rest of the body
    shutdown    connections without a request yet are closed after 0.25 s, idle ones at once
    connections of one address: a maximum (`Addresses`); above it one of them is closed, else the new one.
                Above the maximum of the process a twentieth of all are closed: first those that we wait for
                and that move less than 16 kB/s, slowest first; then those that have been idle longest; then
                new ones without a request; else the answer is 503

The time without a reading application does not count against a body. Only requests that do not arrive at
once, and responses that are not taken at once, need a timer. The application limits the size of bodies.

Requests that cannot be parsed are answered as the application answers errors, and so are those that the
parser accepts and we do not speak: other versions, codings and targets (`_require_known`). `Upgrade` is
ignored: the parser would take the request's body for another protocol's, and then for the next request.
"""

import asyncio
import contextlib
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal

import httptools
import msgspec
import structlog
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from ximler.cli.answers import Answers, Cycle
from ximler.core.in_flight import SLOW, InFlight, Overloaded
from ximler.core.networks import contains, is_loopback, parse_network, subscriber
from ximler.http import problems
from ximler.http.requests import SAFE_HEADERS, random_id

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # Windows
    ioctl = None  # type: ignore[assignment]  # a function elsewhere

__all__ = ["Addresses", "Protocol"]

_log = structlog.get_logger("ximler.http")
_VERSIONS = frozenset({"1.1", "1.0"})
_NOT_SPOKEN = "This version of HTTP is not spoken here: use HTTP/1.1"
_OTHER_VERSION = re.compile("HTTP version|PRI")  # the parser's messages
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^#]*)(?:#.*)?", re.IGNORECASE)


def _refusal(problem: problems.Problem, client: tuple[str, int] | None) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer to a request that the application does not see. Logs it, as the
    application logs its own.
    """
    body = msgspec.json.encode(problem)
    headers = [
        (b"content-type", problems.MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *SAFE_HEADERS,
        (b"x-request-id", str(problem.request_id).encode()),
        (b"connection", b"close"),
    ]
    address = client[0] if client else None
    _log.info(
        "request refused", request_id=problem.request_id, address=address, status=problem.status, code=problem.code
    )
    return headers, body


async def _full(scope: Any, _receive: Any, send: Any) -> None:
    error = Overloaded("The server has too many connections at this moment: try again in a moment")
    headers, body = _refusal(problems.body(error, random_id()), scope["client"])
    more = [(name.lower().encode(), value.encode()) for name, value in problems.headers_of(error).items()]
    await send({"type": "http.response.start", "status": 503, "headers": headers + more})
    await send({"type": "http.response.body", "body": body})


async def _ping(_scope: Any, _receive: Any, send: Any) -> None:
    """The answer to `OPTIONS *`, which asks for nothing (RFC 9110, 9.3.7)."""
    allowed = (b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
    await send({"type": "http.response.start", "status": 204, "headers": [allowed, *SAFE_HEADERS]})
    await send({"type": "http.response.body", "body": b""})


class Addresses:
    """The connections of each address, of which each may have `most`; IPv6 customers count as one.

    Proxies, which carry the connections of many, and this machine are excepted.
    """

    def __init__(self, most: int, proxies: Iterable[str] = ()) -> None:
        networks = [parse_network(each, strict=False) for each in proxies]
        self.most = most
        self.excepted: Callable[[str], bool] = lambda address: is_loopback(address) or contains(networks, address)
        self.counts: Counter[str] = Counter()

    def of(self, peer: str | None) -> str | None:
        """The name under which a peer's connections count; None if they are not limited."""
        return None if not peer or self.excepted(peer) else subscriber(peer)


class Protocol(HttpToolsProtocol):
    """One connection."""

    header_bytes = 65_536
    headers_s = 15.0
    body_s = 60.0
    body_rate = SLOW  # bytes per second, once a body takes longer than `body_s`
    body_least = 1_000  # bytes in every `body_s`, from authenticated callers
    write_s = 60.0
    write_least = 65_536  # bytes in every `write_s`
    # When a server is full: the time in which a connection that moves nothing counts as one of `body_rate`,
    # as others across an ocean do until their first round trip is complete.
    young_s = 0.25
    linger_s = 5.0
    first_s = 0.25

    def __init__(
        self, *args: Any, addresses: Addresses | None = None, in_flight: InFlight | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._in_flight = in_flight or InFlight(2**63)
        self._addresses = addresses
        self.address: str | None = None
        self._began = 0.0  # when the first part of the body was awaited
        self._received = self._window = 0  # bytes of the body: in all, and since the timer was set
        self._stalled: asyncio.TimerHandle | None = None  # set while written bytes are not taken
        self._unsent = 0  # bytes at `_paused_at`, or when the timer was set
        self._paused_at = 0.0
        self._mark = (0.0, 0)  # a later time and its unsent bytes, from which `pace` is measured
        self._arriving: Literal["headers", "body"] | None = "headers"
        self._deadline: asyncio.TimerHandle | None = None
        # Bytes since the last that began or ended a request, or were of its body: of a header, or of a
        # trailer.
        self._unread = 0
        self._chunk = 0  # bytes received last
        self._refused: tuple[int, str] | None = None  # the status and reason of an error raised to the parser
        # While the parser takes the rest for another protocol's: where that begins in the bytes received.
        self._upgrade: int | None = None
        self.last_used = self.loop.time()  # when it was made, or a request arrived whole: bytes alone do not count
        self._body_begun = False
        self._answered_at = 0.0
        self._idleness: asyncio.TimerHandle | None = None
        self.ending = False  # answered; the rest of the body is read and thrown away
        self._stopping = False  # the server is stopping: the next answer is the last

    @property
    def reads_body(self) -> bool:
        """Whether more of the body may arrive. False while the client waits for `100 Continue`."""
        return self._arriving == "body" and (self._body_begun or not self.expect_100_continue)

    def linger(self) -> None:
        """Close once the request has arrived whole, after 5 s at the latest."""
        self.ending = True
        self.loop.call_later(self.linger_s, self.transport.close)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it too
        super().connection_made(transport)
        self._answers = Answers(self, transport)
        self._wait()
        if self._addresses is not None:
            self.address = self._addresses.of(self.client[0] if self.client else None)
            if self.address is not None and not self._enter(self._addresses, self.address):
                return
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room(len(self.connections) - self.limit_concurrency + self.limit_concurrency // 20 + 1)

    def shutdown(self) -> None:
        """Finish soon. A new connection's first request may be in transit and is still answered."""
        unused = self.cycle is None
        if unused and not self._stopping:
            self._stopping = True
            self.loop.call_later(self.first_s, super().shutdown)
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_flight.taken(self)
        self._stop_waiting()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self._idleness is not None:
            self._idleness.cancel()
            self._idleness = None
        if self.address is not None and self._addresses is not None:
            self._addresses.counts[self.address] -= 1
            if self._addresses.counts[self.address] <= 0:
                del self._addresses.counts[self.address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        self._unread += self._chunk
        rest: bytes | memoryview = data
        while rest and not self.transport.is_closing():
            super().data_received(rest)  # type: ignore[arg-type]  # the parser takes either
            if self._upgrade is None:
                break
            rest, self._upgrade = memoryview(rest)[self._upgrade :], None
            super().data_received(self._without_upgrade())
        if self.transport.is_closing():
            return
        if self._unread > self.header_bytes:
            self._refuse(431, self._long())
        elif self._arriving and self._deadline is None:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """Called while the parser's error is handled."""
        if self.answering and self._arriving != "body":
            self.cycle.keep_alive = False  # the requests before are answered, then the connection ends
        elif self._refused is not None:
            self._refuse(*self._refused)
        else:
            error = sys.exception()
            if error is not None and not isinstance(error, httptools.HttpParserCallbackError):
                msg = f"{msg.removesuffix('.')}: {error}"
            if _OTHER_VERSION.search(msg):
                self._refuse(505, _NOT_SPOKEN)
            else:
                self._refuse(400, msg)

    def on_message_begin(self) -> None:
        self._arriving = "headers"
        self._unread = 0
        self._body_begun = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._unread + self._chunk > self.header_bytes and self._head_bytes() > self.header_bytes:
            raise self._refusing(431, self._long())
        self._require_known()
        if self.parser.should_upgrade():
            self._upgrade = 0
            return
        self._arriving = "body"
        self._stop_waiting()
        self._received = 0
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.keep_alive = self.cycle.keep_alive and not self._stopping

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._body_begun = True
        self._received += len(body)
        self._window += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade is not None:
            return
        self._arriving = None
        self._unread = 0
        self.last_used = self._answered_at = self.loop.time()
        self._stop_waiting()
        super().on_message_complete()
        if self.ending:
            self.transport.close()

    def on_response_complete(self) -> None:
        """As uvicorn's, with one idle timer instead of one for every answer."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._answered_at = self.loop.time()
        if self._idleness is None:
            self._idleness = self.loop.call_later(self.timeout_keep_alive, self._end_idleness)

    def _end_idleness(self) -> None:
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0 and self.idle:
            self._idleness = None
            self.transport.close()
        else:
            again = left if left > 0 else self.timeout_keep_alive
            self._idleness = self.loop.call_later(again, self._end_idleness)

    def _require_known(self) -> None:
        """Raises ValueError, which ends the parsing, for versions, codings and targets not spoken here."""
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise self._refusing(505, _NOT_SPOKEN)
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (version == "1.0" or codings != [b"chunked"]):
            # RFC 9112, 6.1 and 6.3. The parser ignores codings before `chunked`.
            each = [one.strip().lower() for one in b",".join(codings).split(b",")]
            if version == "1.0" or each[-1] != b"chunked" or b"" in each:
                raise self._refusing(400, "Transfer-Encoding must end in 'chunked', and exists in HTTP/1.1 only")
            if each != [b"chunked"]:
                raise self._refusing(501, "No Transfer-Encoding but 'chunked' is understood")
        if self.parser.get_method() == b"CONNECT":  # with any target: the parser takes it for an upgrade
            raise self._refusing(501, "This server is no proxy")
        if not self.url.startswith(b"/"):
            self.url = self._origin_form()

    def _origin_form(self) -> bytes:
        """The target of a request that names a host, or the whole server (RFC 9112, 3.2)."""
        method = self.parser.get_method()
        url = _ABSOLUTE.fullmatch(self.url)
        if url is None:
            if self.url == b"*" and method == b"OPTIONS":
                return self.url
            raise self._refusing(400, "The request's target must be a path, or the URL of one")
        authority, path = url.groups()
        self.headers[:] = [(name, authority if name == b"host" else value) for name, value in self.headers]
        if path.startswith(b"/"):
            return path
        return b"/" + path if path or method != b"OPTIONS" else b"*"

    def _without_upgrade(self) -> bytes:
        """The head of the request that asks for another protocol, without that (RFC 9110, 7.8)."""
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        return b"".join([first, *lines, b"\r\n"])

    def _unsupported_upgrade_warning(self) -> None:
        """Called while the parser's HttpParserUpgrade is handled."""
        error = sys.exception()
        self._upgrade = 0 if error is None else error.args[0]

    def _refusing(self, status: int, detail: str) -> ValueError:
        self._refused = status, detail
        return ValueError(detail)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    @property
    def answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _long(self) -> str:
        return f"The request's first line and headers may have {self.header_bytes:,} bytes together"

    def _refuse(self, status: int, detail: str) -> None:
        """Answer the request that is arriving, unless another answer, or its own, has begun."""
        if self.answering:
            if self.pipeline or self._arriving != "body" or self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        headers, body = _refusal(problems.bad_request(detail, random_id(), status), self.client)
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.__class__ = Cycle  # uvicorn offers no way to choose it
        self._answers.begin(cycle)
        cycle.transport = self._answers  # type: ignore[assignment]  # the subset that responses use
        if cycle.scope["path"] == "*":
            app = _ping
        super()._start_asgi_task(cycle, _full if app is service_unavailable else app)

    def _wait(self) -> None:
        seconds = self.headers_s if self._arriving == "headers" else self.body_s
        self._began = self._began or self.loop.time()
        self._window = 0
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _stop_waiting(self) -> None:
        self._began = 0.0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        if self.flow.read_paused:  # we do not read, because the application does not: no fault of the client's
            self._began, self._received = self.loop.time(), 0
            self._wait()
        elif self._arriving == "body" and self._arrives_in_time():
            self._wait()
        else:
            self._deadline = None
            self.transport.abort()

    def _arrives_in_time(self) -> bool:
        if self._is_known():
            return self._window >= self.body_least
        return self._received >= self.body_rate * (self.loop.time() - self._began)

    def _is_known(self) -> bool:
        # `Authentication.enter` bounds how many requests an account has under way.
        return "leave" in self.scope.get("state", {})

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._watch_writing()
        self._in_flight.wait(self, self.transport.get_write_buffer_size(), known=self._is_known())

    def drop(self) -> None:
        self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._in_flight.taken(self)
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _watch_writing(self) -> None:
        self._unsent = self._not_taken()
        self._paused_at = self.loop.time()
        self._mark = self._paused_at, self._unsent
        self._stalled = self.loop.call_later(min(self.young_s, self.write_s), self._settle)

    def _settle(self) -> None:
        """Measure the pace anew: in the first moment, megabytes fill the system's buffers."""
        self._mark = self.loop.time(), self._not_taken()
        self._stalled = self.loop.call_later(max(0, self.write_s - self.young_s), self._examine_writing)

    def _examine_writing(self) -> None:
        if self._unsent - self._not_taken() < self.write_least:
            self._stalled = None
            self.transport.abort()
        else:
            self._watch_writing()

    def _not_taken(self) -> int:
        """Bytes that were written and not received:
        in our buffer, and in the system's, which may be megabytes."""
        waiting = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if ioctl is not None and connection is not None:  # type: ignore[redundant-expr]  # None on Windows
            with contextlib.suppress(OSError, ValueError):
                waiting += struct.unpack("i", ioctl(connection.fileno(), TIOCOUTQ, bytes(4)))[0]
        return waiting

    def _enter(self, addresses: Addresses, address: str) -> bool:
        """Count the connection. False if it was closed, because its address has too many that are in use."""
        addresses.counts[address] += 1
        if addresses.counts[address] <= addresses.most:
            return True
        own = [one for one in self.connections if isinstance(one, Protocol) and one.address == address]
        (closed,) = self._dispensable(own, 1) or [self]
        self.connections.discard(closed)
        closed.transport.abort()
        return closed is not self

    @property
    def idle(self) -> bool:
        """Whether nothing is expected of either side: the last request was answered, and the answer taken."""
        return not self.answering and self._stalled is None and self._arriving is None

    @property
    def begins(self) -> bool:
        """Whether a request is awaited, of which the headers have not arrived."""
        return self._arriving == "headers" and not self.answering

    @property
    def pace(self) -> float:
        """Bytes per second of a client that we wait for, of a reader since it
        last was fast enough; else infinite.

        The first `young_s` are in its favour.
        """
        now = self.loop.time()
        if self._stalled is not None:
            since, before = self._mark
            left = self._not_taken()
            moved = max(0, before - left)
            if now - since > self.young_s and moved > self.body_rate * (now - since):
                self._mark = now, left
        elif (self._arriving == "headers" or self.reads_body) and self._began and not self.flow.read_paused:
            since, moved = self._began, self._received
        else:
            return float("inf")
        return (moved + self.body_rate * self.young_s) / max(now - since, 0.001)

    def _dispensable(self, connections: Iterable["Protocol"], places: int) -> list["Protocol"]:
        """As many as `places`, the least useful first; never one that we are answering and that takes it.

        Slow: without a request, with one. Idle. Too young to be slow, and without a request yet.
        """
        ranked = []
        for one in connections:
            pace, begins = one.pace, one.begins
            if one is self:
                continue
            if pace < self.body_rate:
                ranked.append((0 if begins else 1, pace, id(one), one))
            elif one.idle:
                ranked.append((2, one.last_used, id(one), one))
            elif begins:
                ranked.append((3, pace, id(one), one))
        return [one for *_, one in sorted(ranked)[:places]]

    def _make_room(self, places: int) -> None:
        """Close several connections at once, because the search visits every connection."""
        for one in self._dispensable((one for one in self.connections if isinstance(one, Protocol)), places):
            self.connections.discard(one)
            one.transport.abort()
