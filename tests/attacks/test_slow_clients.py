"""A thousand slow sockets of each kind, and costly anonymous requests, while honest clients notice little.

`tests/cli/test_protocol.py` tests each limit by itself; this is the whole server, for half a minute a kind.
The attackers are processes of this machine. What they take of its time is measured as well: the same attack
on another server, while the honest clients use the one under test.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from tests.attacks.surface import BODIES
from tests.cli.conftest import Up

_SOCKETS = 1_000
_COSTLY = 10
_HONEST = 20
_PAUSE_S = 0.1
_S = int(os.environ.get("SECONDS_EACH") or 30)
# What each kind sends at first, and then again and again.
SLOW = {
    "nothing": (b"", b""),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n"),
    "bodies": (b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n", b"a"),
    "readers": (b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    "keep-alive": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b""),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    started = Up(tmp_path_factory.mktemp("slow") / "data", env={"XIMLER_LOG_LEVEL": "error"})
    yield started
    started.close()


def other_server() -> None:
    """In a process of its own: answers every request with nothing. Prints its port."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2_048)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None)).run(sockets=[listener])


def attack(kind: str, host: str, port: int, seconds: float) -> None:
    """In a process of its own, so that it takes no time of the honest clients'.
    Prints a line when every attacker has begun.
    """
    asyncio.run(_attack(kind, host, port, seconds))


class _Begun:
    def __init__(self, attackers: int) -> None:
        self._awaited = set(range(attackers))

    def add(self, attacker: int) -> None:
        if attacker in self._awaited:
            self._awaited.remove(attacker)
            if not self._awaited:
                print("begun", flush=True)


async def _attack(kind: str, host: str, port: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    attackers = _COSTLY if kind == "costly" else _SOCKETS
    begun = _Begun(attackers)
    if kind == "costly":
        await asyncio.gather(*(_costly(n, begun, host, port, until) for n in range(attackers)))
    else:
        await asyncio.gather(*(_slow(n, begun, kind, host, port, until) for n in range(attackers)))


async def _slow(n: int, begun: _Begun, kind: str, host: str, port: int, until: float) -> None:
    first, again = SLOW[kind]
    while time.monotonic() < until:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(host, port, limit=1024)
            with contextlib.closing(writer):
                writer.write(first)
                begun.add(n)
                while time.monotonic() < until and not reader.at_eof():
                    await asyncio.sleep(1)
                    writer.write(again)
                    await writer.drain()
        await asyncio.sleep(1)


async def _costly(n: int, begun: _Begun, host: str, port: int, until: float) -> None:
    """The costliest bodies of the table, one after the other."""
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as http:
        while time.monotonic() < until:
            for kind, body in BODIES.values():
                for path in ("/graphql", "/v1/session"):
                    with contextlib.suppress(httpx.HTTPError):
                        await http.post(path, content=body, headers={"Content-Type": kind})
                        begun.add(n)
                if time.monotonic() >= until:
                    return


async def _honest(url: str, seconds: float) -> tuple[list[float], Counter[str]]:
    """The times of requests of twenty clients, and how those that failed did."""
    until = time.monotonic() + seconds
    took: list[float] = []
    failed: Counter[str] = Counter()

    async def one() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http:  # no certificates to load
            while time.monotonic() < until:
                began = time.perf_counter()
                try:
                    answer = await http.post("/graphql", json={"query": "{ plans { id } }"})
                    if answer.status_code != 200:
                        failed[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    failed[repr(error)] += 1
                took.append(time.perf_counter() - began)
                await asyncio.sleep(_PAUSE_S)

    await asyncio.gather(*(one() for _ in range(_HONEST)))
    return took, failed


def _p99(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99)]


@pytest.mark.soak
@pytest.mark.parametrize("kind", [*SLOW, "costly"])
async def test_honest_clients_notice_little(server: Up, kind: str) -> None:
    idle, failed = await _honest(server.url, max(5, _S / 3))
    assert not failed
    async with _process("other_server()") as port, _process(f"attack({kind!r}, '127.0.0.1', {int(port)}, {_S + 60})"):
        beside, failed = await _honest(server.url, max(5, _S / 3))
        assert not failed
    address = urlsplit(server.url)
    async with _process(f"attack({kind!r}, {address.hostname!r}, {address.port}, {_S + 60})") as said:
        assert said == b"begun\n"
        took, failed = await _honest(server.url, _S)
    print(
        f"{kind}: p99 {_p99(idle) * 1000:.1f} ms idle, {_p99(beside) * 1000:.1f} ms beside an attack on another server, "
        f"{_p99(took) * 1000:.1f} ms under attack, failed: {dict(failed)}"
    )
    assert not failed
    assert _p99(took) <= 2 * max(_p99(idle), _p99(beside)) + 0.01


@contextlib.asynccontextmanager
async def _process(call: str) -> AsyncIterator[bytes]:
    """A process that calls a function of this module, and the first line that it prints."""
    code = f"from tests.attacks import test_slow_clients; test_slow_clients.{call}"
    process = subprocess.Popen(  # noqa: ASYNC220 (it returns at once)
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            said = await asyncio.to_thread(process.stdout.readline)
        yield said
    finally:
        process.kill()
        process.communicate()
