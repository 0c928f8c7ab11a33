"""The bytes of answers: fewer writes and less work than uvicorn's for ordinary ones."""

import asyncio
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

__all__ = ["Answers", "Cycle"]

_LARGE = 65_536  # bytes of a body that are not worth copying to save a system call


class Connection(Protocol):
    """The part of `cli.protocol` that an answer needs."""

    loop: asyncio.AbstractEventLoop

    @property
    def reads_body(self) -> bool: ...
    def linger(self) -> None: ...


class Answers:
    """A connection's transport as its answers see it: one at a time.

    The head of an answer waits for the first of its body, for one turn of the event loop at most: both in one
    packet take one system call, and wake the client once.

    Closing a socket that still receives resets it, and the client may lose the answer with that (RFC 9112,
    9.6): a connection that an answer ends is closed when the request has arrived whole.
    """

    __slots__ = ("_cycle", "_head", "_head_seen", "_protocol", "_transport", "is_closing")

    def __init__(self, protocol: "Connection", transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._cycle: RequestResponseCycle
        self._head = b""
        self._head_seen = False
        self.is_closing = transport.is_closing

    def begin(self, cycle: RequestResponseCycle) -> None:
        """The answer to this request comes next."""
        self._cycle = cycle
        self._head_seen = False

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


# Headers whose values are the same in most answers.
_CONSTANT = frozenset(
    b"cache-control content-security-policy content-type cross-origin-opener-policy cross-origin-resource-policy "
    b"permissions-policy referrer-policy strict-transport-security vary x-content-type-options "
    b"x-frame-options".split()
)
_MOST_LINES = 256
_lines: dict[tuple[bytes, bytes], bytes] = {}


def _line(header: tuple[bytes, bytes]) -> bytes:
    """A header as it is sent. Raises RuntimeError for one that is invalid, as uvicorn does."""
    name, value = header
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise RuntimeError(f"Invalid HTTP header {name!r}")
    line = b"%b: %b\r\n" % (name.lower(), value)
    if name in _CONSTANT:
        if len(_lines) >= _MOST_LINES:
            _lines.clear()
        _lines[header] = line
    return line


class Cycle(RequestResponseCycle):
    """Sends an ordinary answer, whose length is declared, in a third of uvicorn's time; leaves all others to
    uvicorn.
    """

    _is_ordinary = False

    async def send(self, message: Any) -> None:
        if self._is_ordinary:
            if self._finish(message):
                return
        elif not self.response_started:
            self._is_ordinary = self._begin(message)
            if self._is_ordinary:
                return
        await super().send(message)

    def _begin(self, message: Any) -> bool:
        if message["type"] != "http.response.start" or not self.keep_alive or self.disconnected:
            return False
        if self.flow.write_paused or self.scope["method"] == "HEAD":
            return False
        length: bytes | None = None
        content = [STATUS_LINE[message["status"]]]
        for header in (*self.default_headers, *message["headers"]):
            line = _lines.get(header)
            if line is None:
                name = header[0].lower()
                if name == b"content-length" and length is None:
                    length = header[1]
                elif name in {b"connection", b"content-length", b"transfer-encoding"}:
                    return False
                line = _line(header)
            content.append(line)
        if length is None:
            return False
        self.expected_content_length = int(length)
        self.chunked_encoding = False
        self.response_started = True
        self.waiting_for_100_continue = False
        content.append(b"\r\n")
        self.transport.write(b"".join(content))
        return True

    def _finish(self, message: Any) -> bool:
        """Send the body of an ordinary answer, if this is all of it."""
        body = message.get("body", b"")
        if (
            message["type"] != "http.response.body"
            or message.get("more_body")
            or len(body) != self.expected_content_length
            or self.response_complete
            or not self.keep_alive
            or self.disconnected
            or self.flow.write_paused
        ):
            return False
        self.response_complete = True
        self.message_event.set()
        self.transport.write(body)
        self.on_response()
        return True
