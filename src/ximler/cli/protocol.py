"""HTTP connections with limits that uvicorn lacks, so that slow clients do not exhaust memory or connections.

    headers     64 kB (else 431), complete within 15 s of the connection or of their first byte
    body        60 s without progress while the application reads it
    responses   that end the connection before the body has arrived: 5 s for the rest of it
    connections above the maximum close those that have been idle longest

Only requests that do not arrive at once need a timer. The application limits the size of bodies. The time
that a client takes to read its response is not limited here.
"""

import asyncio
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = ["Protocol"]

_LARGE = 65_536  # bytes of a body that are not worth copying to save a system call
_REFUSAL = STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n"


class _Answers:
    """A connection's transport as one answer sees it.

    The head of an answer waits for the first of its body, for one turn of the event loop at most: both in one
    packet take one system call, and wake the client once.

    Closing a socket that still receives resets it, and the client may lose the answer with that (RFC 9112,
    9.6): a connection that an answer ends is closed when the request has arrived whole.
    """

    __slots__ = ("_cycle", "_head", "_head_seen", "_protocol", "_transport", "is_closing")

    def __init__(self, protocol: "Protocol", transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._transport = transport
        self._cycle = cycle
        self._head = b""
        self._head_seen = False
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head:
            if len(data) > _LARGE:
                self._flush()
                self._transport.write(data)
            else:
                head, self._head = self._head, b""
                self._transport.write(head + data)
        elif self._head_seen or not self._cycle.response_started or self._cycle.scope["method"] == "HEAD":
            self._transport.write(data)
        else:
            self._head_seen = True
            self._head = data
            self._protocol.loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        if self._protocol.reads_body:
            self._protocol.linger()
        else:
            self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class Protocol(HttpToolsProtocol):
    """One connection."""

    header_bytes = 65_536
    headers_s = 15.0
    body_s = 60.0
    linger_s = 5.0

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._arriving: Literal["headers", "body"] | None = "headers"
        self._deadline: asyncio.TimerHandle | None = None
        # Bytes since the last that began or ended a request, or were of its body: of a header, or of a
        # trailer.
        self._unread = 0
        self._chunk = 0  # bytes received last
        self._too_long = False
        self.last_byte = self.loop.time()
        self._body_begun = False
        self.ending = False  # answered; the rest of the body is read and thrown away

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
        self._wait()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room(self.limit_concurrency // 20 + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.last_byte = self.loop.time()
        self._chunk = len(data)
        self._unread += self._chunk
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unread > self.header_bytes:
            self._refuse()
        elif self._arriving and self._deadline is None:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        if self._too_long:
            self._refuse()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._arriving = "headers"
        self._unread = 0
        self._body_begun = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._unread + self._chunk > self.header_bytes and self._head_bytes() > self.header_bytes:
            self._too_long = True
            raise ValueError  # ends the parsing
        self._arriving = "body"
        self._stop_waiting()
        super().on_headers_complete()
        if self.cycle is not None:
            # The subset that responses use.
            self.cycle.transport = _Answers(self, self.transport, self.cycle)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._body_begun = True
        self._stop_waiting()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._arriving = None
        self._unread = 0
        self._stop_waiting()
        super().on_message_complete()
        if self.ending:
            self.transport.close()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    @property
    def answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _refuse(self) -> None:
        if self.answering:
            self.transport.abort()
        else:
            self.transport.write(_REFUSAL)
            self.transport.close()

    def _wait(self) -> None:
        seconds = self.headers_s if self._arriving == "headers" else self.body_s
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        if self.flow.read_paused:  # we do not read, because the application does not: no fault of the client's
            self._wait()
        else:
            self._deadline = None
            self.transport.abort()

    def _make_room(self, places: int) -> None:
        """Close several connections at once, because the search visits every connection."""
        idle = [one for one in self.connections if isinstance(one, Protocol) and one is not self and not one.answering]
        for one in sorted(idle, key=lambda one: one.last_byte)[:places]:
            self.connections.discard(one)
            one.transport.abort()
