"""Real processes on one quota: some killed, some with a wrong clock,
and a database that loses its primary."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from ximler import setup
from ximler.core.actor import Actor
from ximler.database import Database, connect
from ximler.embedded import server
from ximler.metering import corrections
from ximler.metering.limits import entitlements
from ximler.metering.quota.reaping import Reaper
from ximler.schema.user import User

pytestmark = pytest.mark.slow

HAMMER = Path(__file__).with_name("hammer.py")
OPERATOR = Actor(kind="operator", via="cli")
VALID_S = 2.0


class Hammer:
    """One process, and what it has served."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.served = 0
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while said := await self.process.stdout.read(65536):
            self.served += said.count(b"\x01")

    async def ended(self, within_s: float) -> int:
        async with asyncio.timeout(within_s):
            await self.reading
            code = await self.process.wait()
        assert code in (0, -signal.SIGKILL)
        return self.served

    async def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        return await self.ended(10)


async def start(
    uri: str,
    database: Database,
    user_id: ObjectId,
    *,
    tasks: int = 16,
    patience_s: float = 2,
    skew_s: float = 0,
    offset_ms: int = 0,
) -> Hammer:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HAMMER), uri, database.name, str(user_id), str(tasks), str(patience_s), str(VALID_S),
        str(skew_s), str(offset_ms), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    return Hammer(process)


async def somebody(database: Database, api_calls: int) -> ObjectId:
    user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
    await entitlements.override(database, OPERATOR, user.id, reason="a test", api_calls=api_calls)
    return user.id


async def accounts(database: Database, user_id: ObjectId) -> tuple[dict[str, Any], int]:
    """The quota, and the sum of its ledger, once all leases of the dead are forfeited."""
    reaper = Reaper(database, valid_for=timedelta(seconds=VALID_S))
    async with asyncio.timeout(30):
        for _ in range(100):
            await reaper.reap()
            quota = await database.raw["quotas"].find_one({"userId": user_id})
            assert quota is not None
            if not quota["leases"]:
                break
            await asyncio.sleep(0.3)
    assert quota["leases"] == {}
    assert quota["granted"] == quota["settled"] + quota["forfeited"]
    found = await database.raw["usage"].find({"userId": user_id}).to_list()
    assert await corrections.rebuild(database, OPERATOR, user_id) == []
    return quota, sum(row["amount"] for row in found)


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[server.Server]:
    running = await server.start(tmp_path / "data", replicas=3)
    yield running
    await running.stop()


async def hammered(uri: str, database: Database, user_id: ObjectId, processes: int, **more: Any) -> list[Hammer]:
    return list(await asyncio.gather(*(start(uri, database, user_id, **more) for _ in range(processes))))


async def test_four_processes_of_sixteen_tasks_serve_exactly_the_limit(database: Database, mongodb_uri: str) -> None:
    user_id = await somebody(database, 10_000)
    hammers = await hammered(mongodb_uri, database, user_id, 4)
    served = [await hammer.ended(120) for hammer in hammers]
    assert sum(served) == 10_000, served
    quota, ledger = await accounts(database, user_id)
    assert (quota["settled"], quota["forfeited"], ledger) == (10_000, 0, 10_000)


async def test_processes_that_are_killed_serve_nothing_twice(database: Database, mongodb_uri: str) -> None:
    await killed_again_and_again(mongodb_uri, database, limit=20_000, kills=3)


@pytest.mark.soak
async def test_processes_killed_every_second_for_a_minute_serve_nothing_twice(
    database: Database, mongodb_uri: str
) -> None:
    await killed_again_and_again(mongodb_uri, database, limit=1_000_000, kills=60)


async def killed_again_and_again(uri: str, database: Database, *, limit: int, kills: int) -> None:
    user_id = await somebody(database, limit)
    hammers = await hammered(uri, database, user_id, 4)
    served, worst = 0, 0
    for number in range(kills):
        await asyncio.sleep(1)
        victim = hammers[number % 4]
        second = victim.served
        served += await victim.kill()
        worst = max(worst, second)
        hammers[number % 4] = await start(uri, database, user_id)
    served += sum([await hammer.ended(180) for hammer in hammers])
    quota, ledger = await accounts(database, user_id)
    assert served <= quota["granted"] <= limit
    assert quota["settled"] <= served
    assert ledger == quota["settled"]
    assert quota["granted"] == limit  # the others have served all that was not forfeited
    # What a crash costs: at most one per cent of the limit, or a second of what its process served.
    assert quota["forfeited"] <= kills * max(limit // 100, worst)


@pytest.mark.soak
async def test_a_process_that_is_stopped_past_its_heartbeat_serves_nothing_twice(
    database: Database, mongodb_uri: str
) -> None:
    user_id = await somebody(database, 10_000_000)
    stopped, other = await hammered(mongodb_uri, database, user_id, 2, patience_s=60)
    async with asyncio.timeout(60):
        while not (stopped.served and other.served):  # noqa: ASYNC110 (it is asked)
            await asyncio.sleep(0.05)
        stopped.process.send_signal(signal.SIGSTOP)
        while not await database.raw["quotas"].count_documents({"forfeited": {"$gt": 0}}):  # noqa: ASYNC110 (it is asked)
            await asyncio.sleep(0.05)
        before = stopped.served
        stopped.process.send_signal(signal.SIGCONT)
        while stopped.served < before + 50_000:  # noqa: ASYNC110 (it is asked)
            await asyncio.sleep(0.05)
    served = await stopped.kill() + await other.kill()
    quota, ledger = await accounts(database, user_id)
    assert quota["settled"] <= served <= quota["granted"]
    assert ledger == quota["settled"]


@pytest.mark.soak
async def test_a_lost_primary_only_stops_further_grants(own_server: server.Server, tmp_path: Path) -> None:
    database = await connect(own_server.uri, name=f"ximler_test_{secrets.token_hex(3)}")
    try:
        assert await setup.initialise(database) == []
        user_id = await somebody(database, 30_000)
        hammers = await hammered(own_server.uri, database, user_id, 2, patience_s=8)
        async with asyncio.timeout(30):
            for _ in range(600):
                if sum(hammer.served for hammer in hammers) > 3000:
                    break
                await asyncio.sleep(0.05)
        await lose_primary(database)
        served = sum([await hammer.ended(120) for hammer in hammers])
        quota, ledger = await accounts(database, user_id)
        assert served == quota["settled"] == ledger
        assert served + quota["forfeited"] == 30_000
        assert quota["forfeited"] <= 2 * 300
    finally:
        await database.close()


async def lose_primary(database: Database) -> None:
    """Kill its process."""
    status = await database.client.admin.command("serverStatus")
    os.kill(int(status["pid"]), signal.SIGKILL)


@pytest.mark.soak
async def test_processes_whose_clocks_are_wrong_agree_on_when_a_period_ends(
    database: Database, mongodb_uri: str
) -> None:
    user_id = await somebody(database, 1000)
    end = (await entitlements.open_quota(database, user_id, database.clock.now())).period_end
    before = int((end - database.clock.now()).total_seconds() * 1000) - 20_000  # they take a while to begin
    hammers = [
        await start(mongodb_uri, database, user_id, tasks=2, patience_s=25, skew_s=skew, offset_ms=before)
        for skew in (-5.0, 0.0, 5.0)
    ]
    assert sum([await hammer.ended(150) for hammer in hammers]) == 2000
    quotas = await database.raw["quotas"].find({"userId": user_id}).sort("periodStart", 1).to_list()
    assert [(q["settled"], q["granted"], q["leases"]) for q in quotas] == [(1000, 1000, {})] * 2
    assert quotas[0]["periodEnd"] == quotas[1]["periodStart"] == end.replace(tzinfo=None)
    for quota in quotas:
        day = f"{quota['periodStart']:%Y-%m-%d}"
        rows = await database.raw["usage"].find({f"metadata.leased.{day}": {"$exists": True}}).to_list()
        assert sum(row["metadata"]["leased"][day]["units"] for row in rows) == 1000
        assert all(quota["periodStart"] <= row["periodStart"] < quota["periodEnd"] for row in rows)
