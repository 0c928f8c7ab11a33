"""What clients can do to a server by how they speak HTTP: nothing that others notice."""

import asyncio
import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from ximler.cli import serving
from ximler.cli.protocol import Addresses, Protocol
from ximler.core.in_flight import InFlight


class Impatient(Protocol):
    headers_s = 0.3
    body_s = 0.3
    body_rate = 1
    write_s = 0.5


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    text = str(size).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answers before the body, and ends the connection."""
    headers = [(b"content-length", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": b"no"})


class Running:
    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


Serve = Callable[..., Running]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[tuple[uvicorn.Server, threading.Thread, socket.socket]] = []

    def start(protocol: Callable[..., Protocol] = Protocol, connections: int = 1000, app: Any = echo) -> Running:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        config = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]  # a class, or one with arguments
            lifespan="off",
            ws="none",
            log_config=None,
            limit_concurrency=connections,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        running.append((server, thread, listener))
        return Running(server, listener.getsockname()[1])

    yield start
    for server, thread, _ in running:
        server.should_exit = server.force_exit = True
        thread.join(10)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


@pytest.mark.parametrize("line", [b"a" * 65536, b"x: 1\r\n" * 10_000], ids=["one endless header", "endless headers"])
def test_endless_headers_are_refused_after_64_kb(serve: Serve, line: bytes) -> None:
    with serve().connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 60_000_000:
                connection.sendall(line)
                sent += len(line)
        assert sent < 10_000_000


def test_long_headers_are_431_and_shorter_ones_pass(serve: Serve) -> None:
    url = serve().url
    assert httpx.get(url, headers={"x-a": "a" * 70_000}).status_code == 431
    assert httpx.get(url, headers={"x-a": "a" * 60_000}).status_code == 200


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
ONE_0 = b"POST / HTTP/1.0\r\nHost: x\r\n"
BAD = [
    b"gzip", b"identity", b"xchunked", b"chunked;a=b", b"chunked, chunked", b"chunked, identity", b", chunked", b"chunked,",
    b"", b'"chunked"', b"gzip\tchunked", b"chunked\r\nTransfer-Encoding: gzip",
]  # fmt: skip
UNKNOWN = [b"gzip, chunked", b"identity,chunked", b"gzip;q=1, Chunked", b"gzip\r\nTransfer-Encoding: chunked"]
VERSIONS = [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0", b"HTTP/1.2"]
TARGETS = [
    b"GET *", b"OPTIONS **", b"OPTIONS *foo", b"OPTIONS *?a=b", b"OPTIONS rtsp://x/", b"GET ftp://x/", b"GET http:///a",
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "status", "code", "detail"),
    [
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, "BAD_REQUEST", "Content-Length"),
        (HEAD + b"Content-Length: 2, 2\r\n\r\n{}", 400, "BAD_REQUEST", "Content-Length"),
        (HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "BAD_REQUEST", "Transfer-Encoding"),
        *(
            (HEAD + b"Transfer-Encoding: %b\r\n\r\n" % coding, 400, "BAD_REQUEST", "Transfer-Encoding")
            for coding in BAD
        ),
        *((HEAD + b"Transfer-Encoding: %b\r\n\r\n" % coding, 501, "NOT_IMPLEMENTED", "Encoding") for coding in UNKNOWN),
        (ONE_0 + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "BAD_REQUEST", "HTTP/1.1 only"),
        *(
            (b"GET / %b\r\nHost: x\r\n\r\n" % one, 505, "HTTP_VERSION_NOT_SUPPORTED", "use HTTP/1.1")
            for one in VERSIONS
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP_VERSION_NOT_SUPPORTED", "use HTTP/1.1"),
        *((b"%b HTTP/1.1\r\nHost: x\r\n\r\n" % one, 400, "BAD_REQUEST", "target") for one in TARGETS),
        *(
            (b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % one, 501, "NOT_IMPLEMENTED", "proxy")
            for one in (b"x:443", b"/a")
        ),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nx", 400, "BAD_REQUEST", "chunk size"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\naa", 400, "BAD_REQUEST", "chunk data"),
        (HEAD + b"X A: b\r\n\r\n", 400, "BAD_REQUEST", "header"),
        (HEAD + b"X-A: \0\r\n\r\n", 400, "BAD_REQUEST", "header"),
        (HEAD + b"X-A: a\r\n b\r\n\r\n", 400, "BAD_REQUEST", "header"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "BAD_REQUEST", "path"),
        (b"GE\0 / HTTP/1.1\r\n\r\n", 400, "BAD_REQUEST", "method"),
        (b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 70_000), 431, "HEADERS_TOO_LARGE", "65,536 bytes"),
    ],
)
def test_a_request_that_cannot_be_parsed_is_refused_as_the_application_refuses(
    serve: Serve, sent: bytes, status: int, code: str, detail: str
) -> None:
    with serve().connect() as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\ncontent-type: application/problem+json\r\n" in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert f"x-request-id: {problem['requestId']}\r\n".encode() in head
    assert b"content-security-policy: default-src 'none'" in head
    assert detail in problem["detail"]


async def target(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the method, the target, the host and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    text = b" ".join(
        [scope["method"].encode(), scope["raw_path"], scope["query_string"], dict(scope["headers"])[b"host"], body]
    )
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (b"GET http://y:8/p?a=b", b"GET /p a=b y:8 "),
        (b"GET HTTPS://y", b"GET /  y "),
        (b"GET http://y?a=b", b"GET / a=b y "),
        (b"OPTIONS http://y/", b"OPTIONS /  y "),
    ],
)
def test_a_url_as_the_target_names_the_path_and_the_host(serve: Serve, first: bytes, answer: bytes) -> None:
    with serve(app=target).connect() as connection:
        connection.sendall(first + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(connection).partition(b"\r\n\r\n")[2] == answer


@pytest.mark.parametrize("asked", [b"*", b"http://x"])
def test_options_of_the_whole_server_are_answered(serve: Serve, asked: bytes) -> None:
    with serve().connect() as connection:
        connection.sendall(b"OPTIONS %b HTTP/1.1\r\nHost: x\r\n\r\n" % asked + END)
        found = read_all(connection)
    assert found.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nallow: GET, HEAD, POST, " in found
    assert found.count(b"HTTP/1.1 ") == 2  # the connection goes on


END = b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
SIZED = b"Content-Length: %d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize("cut", [0, 30, 1, -1], ids=["one part", "after the head", "bytes", "before the last byte"])
def test_the_body_of_a_request_that_offers_an_upgrade_is_its_body(
    serve: Serve, protocol: bytes, body: bytes, cut: int
) -> None:
    """The parser took it for the next request: whoever reuses a proxy's connection got its answer."""
    upgrade = b"Upgrade: %b\r\nConnection: Upgrade, HTTP2-Settings\r\n" % protocol
    sent = HEAD + upgrade + body + END
    head = len(HEAD + upgrade + body) - len(body.partition(b"\r\n\r\n")[2])
    parts = {0: [sent], 30: [sent[:head], sent[head:]], -1: [sent[: -len(END) - 1], sent[-len(END) - 1 :]]}
    with serve(app=target).connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts.get(cut) or [sent[at : at + 1] for at in range(len(sent))]:
            connection.sendall(part)
            time.sleep(0.02 if cut in parts else 0)
        found = read_all(connection)
    bodies = [each.partition(b"\r\n\r\n")[2] for each in found.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"POST /  x " + SMUGGLED, b"GET /end  x "]


def test_many_requests_that_offer_an_upgrade_cost_no_more_than_others(serve: Serve) -> None:
    one = b"GET / HTTP/1.1\r\nHost: x\r\n%b\r\n"
    costs = []
    for more in (b"X-Other: h2c\r\nConnection: keep\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"):
        with serve().connect() as connection:
            before = sum(os.times()[:2])
            connection.sendall(one % more * 2_000 + END)
            assert read_all(connection).count(b"HTTP/1.1 200 OK") == 2_001
            costs.append(sum(os.times()[:2]) - before)
    assert costs[1] < 3 * costs[0] + 0.1


def test_requests_before_one_that_cannot_be_parsed_are_answered(serve: Serve) -> None:
    """Its error stood where their answers were expected."""
    with serve().connect() as connection:
        connection.sendall((HEAD + b"Content-Length: 2\r\n\r\nab") * 2 + HEAD + b"Content-Length: x\r\n\r\n")
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_a_full_server_says_so_as_the_application_would(serve: Serve) -> None:
    answer = httpx.get(serve(connections=1).url)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (answer.json()["code"], answer.headers["content-type"]) == ("OVERLOADED", "application/problem+json")


def test_endless_trailers_are_refused(serve: Serve) -> None:
    with serve().connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 60_000_000:
                connection.sendall(b"a" * 65536)
                sent += 65536
        assert sent < 10_000_000


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"],
    ids=["nothing", "half a line", "half the headers", "half the body"],
)
def test_a_request_that_does_not_arrive_loses_its_connection(serve: Serve, sent: bytes) -> None:
    with serve(Impatient).connect() as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_a_slow_body_that_arrives_is_waited_for(serve: Serve) -> None:
    """Two seconds of it, at a deadline of 0.3 s between parts, and other requests on the same connection."""
    with serve(Impatient).connect() as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
            for _ in range(10):
                time.sleep(0.05)
                connection.sendall(b"a")
            assert connection.recv(65536).endswith(b"\r\n\r\n10")


def test_large_bodies_and_pipelined_requests_pass(serve: Serve) -> None:
    body = os.urandom(5_000_000)
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with serve().connect() as connection:
        sending = threading.Thread(target=connection.sendall, args=(request * 3 + last,))
        sending.start()
        assert read_all(connection).count(b"\r\n\r\n5000000") == 3
        sending.join()


def test_a_client_that_still_sends_gets_the_answer_that_ends_its_connection(serve: Serve) -> None:
    """Closing at once would reset the connection, and the answer with it."""
    body = b"x" * 20_000_000
    with serve(app=refuse).connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body)
        assert read_all(connection).endswith(b"\r\n\r\nno")


def test_an_unfinished_body_is_not_awaited_after_the_response(serve: Serve) -> None:
    class Lingering(Protocol):
        linger_s = 0.3

    with serve(Lingering, app=refuse).connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        assert read_all(connection).endswith(b"\r\n\r\nno")


def test_an_unrequested_body_is_not_awaited(serve: Serve) -> None:
    """RFC 9110, 10.1.1: the next bytes may be the body or a request,
    so the connection ends with the answer."""

    class Patient(Protocol):
        linger_s = 600

    with serve(Patient, app=refuse).connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_silent_connections_do_not_keep_others_out(serve: Serve) -> None:
    running = serve(connections=50)
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(running.connect())
        busy.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
        for _ in range(120):
            stack.enter_context(running.connect())
        assert [httpx.get(running.url).status_code for _ in range(20)] == [200] * 20
        assert len(running.server.server_state.connections) <= 50
        busy.sendall(b"a")
        assert busy.recv(65536).endswith(b"\r\n\r\n2")  # it was not idle


class _Recorder:
    """A transport that keeps what is written to it."""

    def __init__(self, transport: Any, written: list[bytes]) -> None:
        self._transport, self._written = transport, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written.append(data)
        self._transport.write(data)


def test_an_answer_s_head_and_body_are_one_write(serve: Serve) -> None:
    written: list[bytes] = []

    class Recorded(Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(_Recorder(transport, written))  # type: ignore[arg-type]

    running = serve(Recorded)
    with httpx.Client() as client:
        assert client.post(running.url, content=b"12345").text == "5"
        assert client.post(running.url, content=b"123").text == "3"
        assert client.head(running.url).status_code == 200
    heads = [data.startswith(b"HTTP/1.1 200") for data in written]
    assert heads == [True, True, True]
    assert [data[-1:] for data in written] == [b"5", b"3", b"\n"]


def test_a_head_whose_body_is_late_arrives_without_it(serve: Serve) -> None:
    answered = threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await asyncio.to_thread(answered.wait, 20)
        await send({"type": "http.response.body", "body": b"ok"})

    with serve(app=slow).connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).endswith(b"\r\n\r\n")
        answered.set()
        assert connection.recv(65536) == b"ok"


TRICKLED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@contextlib.contextmanager
def trickled(connections: list[socket.socket]) -> Iterator[None]:
    """Meanwhile each connection sends a byte of a body, again and again."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.05):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    try:
        yield
    finally:
        stop.set()
        sending.join()


@pytest.mark.parametrize(("known", "ends"), [(False, True), (True, False)])
def test_a_body_needs_a_least_rate(serve: Serve, known: bool, ends: bool) -> None:
    """The deadline once began again with every byte.
    An authenticated caller may send a stream of rare events."""

    class Strict(Protocol):
        body_s = 0.3
        body_rate = 1_000
        body_least = 1

    async def admit(scope: Any, receive: Any, send: Any) -> None:
        if known:
            scope["state"]["leave"] = lambda: None
        await echo(scope, receive, send)

    with serve(Strict, app=admit).connect() as connection:
        connection.sendall(TRICKLED)
        with trickled([connection]):
            connection.settimeout(1.5)
            try:
                ended = connection.recv(1) == b""
            except ConnectionResetError:
                ended = True
            except TimeoutError:
                ended = False
    assert ended is ends


async def large(scope: Any, receive: Any, send: Any) -> None:
    """40 MB, in parts unless the query says otherwise."""
    parts = 1 if scope["query_string"] else 40
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"40000000")]})
    for n in range(parts):
        await send({"type": "http.response.body", "body": bytes(40_000_000 // parts), "more_body": n + 1 < parts})


@pytest.mark.parametrize("query", [b"", b"?whole"])
def test_a_response_that_is_not_read_loses_its_connection(serve: Serve, query: bytes) -> None:
    running = serve(Impatient, app=large)
    with running.connect() as connection:
        connection.sendall(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % query)
        while not running.server.server_state.connections:
            time.sleep(0.01)
        for _ in range(1000):
            if not running.server.server_state.connections:
                break
            time.sleep(0.01)
        assert not running.server.server_state.connections


def test_a_slow_reader_that_reads_gets_all_of_it(serve: Serve) -> None:
    """40 MB in two seconds, with a kept connection that would be idle for half a second at most."""
    running = serve(Impatient, app=large)
    running.server.config.timeout_keep_alive = 1
    with running.connect() as connection:
        connection.sendall(b"GET /?whole HTTP/1.1\r\nHost: x\r\n\r\n")
        found = 0
        while found < 40_000_000:
            part = len(connection.recv(1_000_000))
            assert part
            found += part
            time.sleep(part / 20_000_000)


def test_unread_answers_hold_a_bounded_number_of_bytes(serve: Serve) -> None:
    held = InFlight(200_000_000)  # of which strangers have half
    server = serve(functools.partial(Protocol, in_flight=held), app=large)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(contextlib.closing(server.connect()))
            connection.sendall(b"GET /?whole HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(Protocol.young_s + 0.1)  # it is slow now
            assert held.all <= held.most // 2
        assert held.all > 50_000_000
        assert len(httpx.get(f"{server.url}/?whole", timeout=20).content) == 40_000_000  # the slow ones make room
    deadline = time.monotonic() + 10
    while held.all and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held.all == 0


def test_connections_that_trickle_do_not_keep_others_out(serve: Serve) -> None:
    """With 20 slots, 22 connections that trickled once made every other request a 503."""

    running = serve(connections=20)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(running.connect()) for _ in range(22)]
        for connection in slow:
            connection.sendall(TRICKLED)
        stack.enter_context(trickled(slow))
        time.sleep(0.4)
        assert [httpx.get(running.url).status_code for _ in range(9)] == [200] * 9


async def _download(scope: Any, receive: Any, send: Any) -> None:
    """8 MB on `/large`."""
    body = b"a" * (8_000_000 if scope["path"] == "/large" else 1)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def test_those_that_stall_make_room_and_not_those_that_read_or_are_idle(serve: Serve) -> None:
    """A full server of young slow readers closed honest connections between
    two requests, and answered 503."""
    running = serve(connections=41, app=_download)
    running.server.config.timeout_keep_alive = 60
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(httpx.Client(base_url=running.url))
        assert idle.get("/").status_code == 200
        (kept,) = running.server.server_state.connections
        reader = stack.enter_context(running.connect())
        reader.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        read = 0
        stalled = [stack.enter_context(running.connect()) for _ in range(38)]
        for connection in stalled:
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")

        def slow() -> int:
            open_ones = [one for one in running.server.server_state.connections.copy() if isinstance(one, Protocol)]
            return sum(one.pace < one.body_rate for one in open_ones)

        while slow() < len(stalled):
            read += len(reader.recv(5_000))
            time.sleep(0.01)
        assert [httpx.get(running.url).status_code for _ in range(9)] == [200] * 9
        assert kept in running.server.server_state.connections
        assert idle.get("/").status_code == 200
        assert read + len(read_all(reader)) > 8_000_000


def test_one_address_has_a_maximum_of_connections(serve: Serve) -> None:
    addresses = Addresses(5, ["10.0.0.0/8"])
    assert addresses.of("10.1.2.3") is addresses.of("127.0.0.1") is addresses.of("::1") is None
    assert addresses.of("2001:db8::1") == addresses.of("2001:db8::2") != addresses.of("192.0.2.1")
    addresses.excepted = lambda address: False

    class Patient(Protocol):
        young_s = 60.0

    running = serve(functools.partial(Patient, addresses=addresses))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(5)]
        for connection in idle[1:]:
            connection.sendall(TRICKLED)
        assert httpx.get(running.url).status_code == 200  # the idle one was closed for it
        assert read_all(idle[0]) == b""
        fifth = stack.enter_context(running.connect())
        fifth.sendall(TRICKLED)
        sixth = stack.enter_context(running.connect())
        assert read_all(sixth) == b""  # all others are in use
    for _ in range(1000):
        if not addresses.counts:
            break
        time.sleep(0.01)
    assert not addresses.counts


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="not of this system")
def test_the_system_takes_little_for_a_client_that_reads_nothing() -> None:
    """Linux takes 4 MB by default."""
    with serving.bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(0.2)
            taken = 0
            with contextlib.suppress(TimeoutError):
                while taken < 4_000_000:
                    taken += connection.send(bytes(65_536))
    assert taken < 500_000
