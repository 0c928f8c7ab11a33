"""A metered request with an API key beside the same route without either, by a real server."""

import asyncio
import gc
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import httpx
from litestar import Litestar, get
from litestar.types import ASGIApp

from bench.load import Burst, burst
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.accounts import administration
from ximler.accounts.keyring import Keyring
from ximler.apikeys import keys
from ximler.core import logs
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import connect
from ximler.database.changes import Feed
from ximler.http.authentication import Authentication
from ximler.http.metered import Metered
from ximler.http.requests import Requests, TrustedProxies
from ximler.metering.limits.entitlements import override
from ximler.metering.quota.meter import Meter

__all__ = ["run", "served"]

BARE, FREE, METERED = "a bare Litestar route", "the route, no key", "the route, metered"
_REQUESTS = 6_000
_ENDS = b"\r\n\r\npong"


@get("/ping", media_type="text/plain", sync_to_thread=False)
def _ping() -> str:
    return "pong"


@get("/bare", media_type="text/plain", sync_to_thread=False)
def _bare() -> str:
    return "pong"


def served() -> ASGIApp:
    """The applications that uvicorn serves: a bare one, and one behind Ximler's layers."""
    logs.configure(Settings(log_format="json"))  # as production does, to nowhere
    settings = Settings(
        mongodb_uri=os.environ["BENCH_URI"],
        database=os.environ["BENCH_DATABASE"],
        secret_key=os.environ["BENCH_SECRET"],
        api_rate=1_000_000,
        api_burst=1_000_000,
    )

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        database = app.state.database = await connect(os.environ["BENCH_URI"], settings=settings)
        keyring, feed = Keyring(settings), Feed(database)
        app.state.authentication = Authentication(database, keyring, settings, feed)
        meter = app.state.meter = Meter(database)
        gc.collect()
        gc.freeze()  # as `ximler up` does
        tasks = [
            asyncio.ensure_future(part.run(asyncio.Event())) for part in (feed, *app.state.authentication.parts, meter)
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)
        await meter.close()
        keyring.close()
        await database.close()

    whole = Litestar([_ping], lifespan=[lifespan], openapi_config=None)
    bare = Litestar([_bare], openapi_config=None)
    front = Requests(Metered(whole, settings), TrustedProxies(()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (bare if scope.get("path") == "/bare" else front)(scope, receive, send)

    return app


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database:
        secret = "a secret key that is only for this benchmark"
        keyring = Keyring(Settings(secret_key=secret))
        person = await administration.create(
            database, keyring, SYSTEM, name="Ada", email="ada@example.com", password="an unguessable phrase, or two"
        )
        keyring.close()
        await override(
            database, Actor(kind="operator", via="cli"), person.id, api_calls=1_000_000_000, reason="a benchmark"
        )
        actor = Actor(kind="user", via="session", user_id=person.id, authenticated_at=database.clock.now())
        made = await keys.create(database, actor, name="bench", permissions=["projects:read"])
        environment = {"BENCH_URI": setup.uri, "BENCH_DATABASE": database.name, "BENCH_SECRET": secret}
        async with _server(environment) as (port, pid):
            return [await _compare(setup, port, pid, made.secret)]


async def _compare(setup: Setup, port: int, pid: int, key: str) -> Table:
    requests = {
        BARE: _request("/bare"),
        FREE: _request("/ping"),
        METERED: _request("/ping", f"Authorization: Bearer {key}\r\n"),
    }
    runs: dict[str, list[Burst]] = {name: [] for name in requests}
    cpu: dict[str, list[float]] = {name: [] for name in requests}
    names = list(requests)
    for request in requests.values():
        await burst(port, request, ends=_ENDS, requests=1000)
    for number in range(setup.rounds(15)):
        for name in names[number % 3 :] + names[: number % 3]:
            before = _cpu_seconds(pid)
            runs[name].append(await burst(port, requests[name], ends=_ENDS, requests=_REQUESTS))
            cpu[name].append((_cpu_seconds(pid) - before) / _REQUESTS)
    rate = {name: [each.per_second for each in found] for name, found in runs.items()}
    p99 = {name: [each.p99 for each in found] for name, found in runs.items()}
    return Table(
        title="metered: a request with an API key, over HTTP",
        figures=[
            Figure(
                what="throughput, metered ÷ the same route without a key", value=_ratio(rate, METERED, FREE), least=0.85
            ),
            Figure(what="p99, metered ÷ the same route without a key", value=_ratio(p99, METERED, FREE), most=2),
            Figure(what="throughput, metered ÷ a bare Litestar route", value=_ratio(rate, METERED, BARE)),
            Figure(what="the server's CPU time, metered ÷ without a key", value=_ratio(cpu, METERED, FREE)),
        ],
        columns=("", "requests", "p99", "CPU a request"),
        rows=[
            (name, f"{median(rate[name]):,.0f}/s", ms(median(p99[name])), f"{median(cpu[name]) * 1e6:.0f} µs")
            for name in names
        ],
        notes=[
            f"{len(rate[FREE])} rounds in turn, {_REQUESTS:,} requests each over 32 connections, one uvicorn process.",
            "Without a key the request passes the same layers (ids, logs, metrics), and is neither authenticated nor metered. "
            "The key's owner has a limit, as most have: the answer says what is left of it.",
        ],
        samples={**rate, **{f"{name}, p99": found for name, found in p99.items()}},
    )


def _ratio(samples: dict[str, list[float]], ours: str, other: str) -> float:
    return median(a / b for a, b in zip(samples[ours], samples[other], strict=True))


def _request(path: str, header: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n{header}\r\n".encode()


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 (as proc(5) has it)
        fields = re.sub(r"\(.*\)", "x", stat.read()).split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def _server(environment: dict[str, str]) -> AsyncIterator[tuple[int, int]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable, "-m", "uvicorn", "bench.metered:served", "--factory", "--interface", "asgi3", "--loop", "uvloop",
        "--http", "httptools", "--port", str(port), "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
    # Not uvloop's: it runs the driver's hook after a fork, which prints a traceback.
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(20):
            while True:
                try:
                    await client.get(f"http://127.0.0.1:{port}/bare")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
