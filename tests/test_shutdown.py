"""SIGTERM ends a process in time, whatever it is doing: at random moments, with jobs pending."""

import asyncio
import contextlib
import os
import random
import re
import signal
import statistics
import sys
import time
from pathlib import Path

import httpx
import pytest
from bson import ObjectId

from ximler.accounts import credentials
from ximler.database import Database, outbox
from ximler.embedded import server
from ximler.schema.job import OUTBOX

pytestmark = pytest.mark.slow

DRAIN_S = 3
COMMANDS = {"worker": ("worker",), "up": ("up", "--port", "0"), "two": ("up", "--port", "0", "--workers", "2")}
READY = (b"The worker is running", b"is running.")


async def stop_at_random(database: Database, uri: str, folder: Path, command: str, moment_s: float) -> float:
    """Start the command with jobs pending, send SIGTERM after `moment_s`;
    returns how many seconds it took to end."""
    for n in range(20):
        await credentials.send_reset.enqueue(database, credentials.ResetRequested(email=f"nobody{n}@example.com"))
    process = await running(uri, database.name, folder, command)
    await asyncio.sleep(moment_s)
    return await stop(process)


async def running(uri: str, database: str, folder: Path, command: str) -> asyncio.subprocess.Process:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XIMLER_", "MONGODB_"))}
    env |= {
        "MONGODB_URI": uri,
        "XIMLER_DATABASE": database,
        "XIMLER_SECRET_KEY": "a secret key that is only for the tests",
        "XIMLER_DATA_DIR": str(folder),
        "XIMLER_ENVIRONMENT": "development",
        "XIMLER_DRAIN_SECONDS": str(DRAIN_S),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ximler", *COMMANDS[command], env=env,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(60):
        while not any(ready in said for ready in READY):
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
    return process


async def stop(process: asyncio.subprocess.Process) -> float:
    """Send SIGTERM; returns the seconds until the process ended, which must be without an error."""
    assert process.stderr is not None
    reading = asyncio.create_task(process.stderr.read())
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DRAIN_S + 20):
        code = await process.wait()
    took = time.monotonic() - began
    said = await reading
    assert (code, b"Traceback" in said) == (0, False), said.decode()
    return took


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_process_ends_in_time_at_any_moment(
    database: Database, mongodb_uri: str, tmp_path: Path, command: str
) -> None:
    for moment_s in (0.004, random.uniform(0, 0.2)):
        assert await stop_at_random(database, mongodb_uri, tmp_path, command, moment_s) <= DRAIN_S + 5
    await database.raw.outbox.update_many({"status": "RUNNING"}, {"$set": {"runAt": database.clock.now()}})
    assert await database[OUTBOX].count({"status": "DEAD"}) == 0


async def test_processes_end_in_time_without_their_database(tmp_path: Path) -> None:
    mongod = await server.start(tmp_path / "data")
    try:
        processes = await asyncio.gather(*(running(mongod.uri, "away", tmp_path, command) for command in COMMANDS))
        os.kill(mongod.pids[0], signal.SIGSTOP)
        took = await asyncio.gather(*(stop(process) for process in processes[:2]))
        await mongod.kill()
        assert max(*took, await stop(processes[2])) <= DRAIN_S + 5
    finally:
        await mongod.stop()


@pytest.mark.soak
async def test_two_hundred_processes_end_in_time(database: Database, mongodb_uri: str, tmp_path: Path) -> None:
    took = []
    for n in range(200):
        command = ("worker", "worker", "up", "two")[n % 4]
        took.append(await stop_at_random(database, mongodb_uri, tmp_path, command, random.uniform(0, 0.1)))
    assert max(took) <= DRAIN_S + 5, sorted(took)[-5:]


async def stop_under_load(folder: Path, moment_s: float) -> float:
    """`ximler up` with its own database, SIGTERM at a random moment of ten clients' requests;
    returns the seconds it took."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XIMLER_", "MONGODB_"))}
    env |= {"XIMLER_DRAIN_SECONDS": str(DRAIN_S)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ximler", "up", "--port", "0", "--data-dir", str(folder), env=env,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said, url = b"", None
    async with asyncio.timeout(120):
        while url is None:
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
            url = re.search(rb"GraphQL +(http://\S+)", line)
    reading = asyncio.create_task(process.stderr.read())

    async def ask(n: int) -> None:
        register = "mutation($i: RegisterInput!) { register(input: $i) { accepted } }"
        person = {"name": "A", "email": f"{n}@example.com", "password": "correct horse battery"}
        bodies = ({"query": "{ plans { id } }"}, {"query": register, "variables": {"i": person}})
        with contextlib.suppress(httpx.TransportError):  # from the end of draining on
            async with httpx.AsyncClient(timeout=30) as client:
                while True:
                    answer = await client.post(url[1].decode(), json=bodies[n % 5 == 0])
                    assert answer.status_code < 500 or answer.json()["code"] == "SHUTTING_DOWN", answer.text

    asking = [asyncio.create_task(ask(n)) for n in range(10)]
    await asyncio.sleep(moment_s)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DRAIN_S + 20):
        code = await process.wait()
    took = time.monotonic() - began
    said += await reading
    await asyncio.gather(*asking)
    assert code == 0, said.decode()
    assert b"Traceback" not in said, said.decode()
    return took


async def test_a_server_under_load_ends_in_time_with_its_database(tmp_path: Path) -> None:
    for _ in range(2):
        assert await stop_under_load(tmp_path, random.uniform(0, 0.5)) <= DRAIN_S + 5


@pytest.mark.soak
async def test_two_hundred_servers_under_load_end_in_time(tmp_path: Path) -> None:
    took = [await stop_under_load(tmp_path, random.uniform(0, 0.5)) for _ in range(int(os.environ.get("TIMES", "200")))]
    print(f"{len(took)} stops: median {statistics.median(took):.2f} s, longest {max(took):.2f} s")
    assert max(took) <= DRAIN_S + 5, sorted(took)[-5:]


async def test_jobs_of_kinds_that_a_process_does_not_know_are_left_to_others(
    database: Database, mongodb_uri: str, tmp_path: Path
) -> None:
    await outbox.enqueue(database, "of.a.newer.release", {"userId": ObjectId()})
    await stop_at_random(database, mongodb_uri, tmp_path, "worker", 0.5)
    [job] = await database[OUTBOX].find({"kind": "of.a.newer.release"})
    assert (job.status, job.attempts) == ("PENDING", 0)
