"""Topic `signin`: 200 concurrent sign-ins at one `ximler up`, with health checks and memory."""

import asyncio
import http.client
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.contest import percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.accounts.keyring import Keyring
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["run"]

AT_ONCE = 200
MOST_P99_MS, MOST_MB = 50, 512
_PASSWORD = "correct horse battery"
_SECRET = "a secret key that is only for benchmarks"
_SIGN_IN = f'mutation ($email: String!) {{ signIn(email: $email, password: "{_PASSWORD}") {{ token }} }}'


async def run(setup: Setup) -> list[Table]:
    signing, health, quiet, whole, peaks = [], [], [], [], []
    async with setup.database(initialised=True) as database:
        await _people(database)
        async with _up(setup.uri, database.name) as (process, host, port):
            await _rush(host, port, count=10)  # opens the pool's connections, loads what is loaded late
            quiet += await _probed(host, port, asyncio.sleep(2))
            for _ in range(setup.rounds(5)):
                began = time.perf_counter()
                taken: list[float] = []
                health += await _probed(host, port, _rush(host, port, count=AT_ONCE, taken=taken))
                whole.append(time.perf_counter() - began)
                signing += taken
            peaks.append(_peak_mb(process.pid))
    p99 = percentile(health, 99)
    return [
        Table(
            title=f"signin: {AT_ONCE} sign-ins at once",
            figures=[
                Figure(what="GET /healthz meanwhile, 99th percentile", value=p99 * 1e3, unit="ms", most=MOST_P99_MS),
                Figure(what="most memory of the process, ever", value=max(peaks), unit="MB", most=MOST_MB),
            ],
            columns=("", "median", "99th percentile", "slowest"),
            rows=[
                ("GET /healthz, without sign-ins", ms(median(quiet)), ms(percentile(quiet, 99)), ms(max(quiet))),
                ("GET /healthz meanwhile", ms(median(health)), ms(p99), ms(max(health))),
                (
                    "a sign-in, its wait for a turn included",
                    ms(median(signing)),
                    ms(percentile(signing, 99)),
                    ms(max(signing)),
                ),
                (f"all {AT_ONCE}", ms(median(whole)), "", ms(max(whole))),
            ],
            notes=[
                f"One process, Argon2id as shipped (19 MiB, 2 passes), {len(health):,} health checks on one connection, one every "
                "5 ms or as fast as they are answered. The clients share the machine."
            ],
            samples={"health": health, "sign-in": signing, "all": whole, "quiet": quiet},
        )
    ]


async def _people(database: Database) -> None:
    keyring = Keyring(Settings(secret_key=_SECRET))
    hashed = await keyring.hash_password(_PASSWORD)
    keyring.close()
    await database.users.insert_many(User(name="N", email=f"p{n}@example.com", password=hashed) for n in range(AT_ONCE))


@asynccontextmanager
async def _up(uri: str, name: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XIMLER_", "MONGODB_"))}
    environment |= {"MONGODB_URI": uri, "XIMLER_DATABASE": name, "XIMLER_SECRET_KEY": _SECRET, "XIMLER_WORKER": "false"}
    command = [sys.executable, "-m", "ximler", "up", "--port", "0"]
    log = Path("/tmp") / f"ximler-bench-{secrets.token_hex(4)}.log"
    with log.open("w") as said, subprocess.Popen(command, env=environment, stderr=said) as process:
        try:
            while not (found := re.search(r"(http://\S+)/graphql", log.read_text())):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
            place = urlsplit(found[1])
            yield process, place.hostname, place.port
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait)
            log.unlink()


async def _rush(host: str, port: int, *, count: int, taken: list[float] | None = None) -> None:
    async def one(n: int) -> None:
        began = time.perf_counter()
        body = msgspec.json.encode({"query": _SIGN_IN, "variables": {"email": f"p{n}@example.com"}})
        head = f"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        assert b'"token"' in answer, answer
        if taken is not None:
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(one(n) for n in range(count)))


async def _probed(host: str, port: int, work: Any) -> list[float]:
    """The time of each health check while the work is done, from a thread of its own."""
    over, found = threading.Event(), []

    def probe() -> None:
        connection = http.client.HTTPConnection(host, port)
        while not over.is_set():
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            found.append(time.perf_counter() - began)
            time.sleep(0.005)
        connection.close()

    probing = asyncio.ensure_future(asyncio.to_thread(probe))
    try:
        await work
    finally:
        over.set()
        await probing
    return found


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024
