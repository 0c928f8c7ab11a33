"""Events reach ledger and quotas exactly once, with real processes that are killed."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.metering.ledger.ingester import USERS, amount

from ximler import setup
from ximler.core.actor import SYSTEM
from ximler.core.clock import to_ms
from ximler.database import Database, connect
from ximler.embedded import server
from ximler.metering import corrections
from ximler.metering.ledger import settlement
from ximler.schema.quota import QUOTAS
from ximler.schema.usage_batch import USAGE_BATCHES, USAGE_SETTLEMENTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def uri(tmp_path: Path) -> AsyncIterator[str]:
    """A server that gives up the transactions of a process that is gone after 3 seconds. It takes a minute
    otherwise, in which nobody else can record the same events."""
    running = await server.start(tmp_path / "data", parameters={"transactionLifetimeLimitSeconds": "3"})
    yield running.uri
    await running.stop()


@pytest.fixture
async def database(uri: str) -> AsyncIterator[Database]:
    database = await connect(uri, name="ximler")
    await setup.initialise(database)
    yield database
    await database.close()


@pytest.mark.parametrize("count", [24_000, pytest.param(200_000, marks=pytest.mark.soak)])
async def test_two_processes_record_overlapping_events_and_one_is_killed_again_and_again(
    count: int, database: Database, uri: str
) -> None:
    await database.raw["users"].insert_many(
        [{"_id": user, "name": "n", "email": f"{user}@example.com", "password": "-"} for user in USERS]
    )
    now = to_ms(database.clock.now())
    overlap = count // 3

    async def start(first: int, end: int) -> asyncio.subprocess.Process:
        arguments = (uri, database.name, str(first), str(end), str(now))
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.metering.ledger.ingester", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )

    async def through(first: int, end: int, *, kills: int = 0) -> int:
        """Run it to its end, killed on the way so many times; returns how often it was."""
        killed = 0
        while True:
            process = await start(first, end)
            assert process.stdout is not None
            try:
                assert await process.stdout.readline() == b"begun\n"
                if killed < kills:
                    await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=random.uniform(0.02, 0.3))
                    if process.returncode is None:
                        process.kill()
                        killed += 1
                said = await process.stdout.read()
                code = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
            if code == 0:
                assert said == b"done\n"
                return killed

    _, killed = await asyncio.gather(
        through(0, 2 * overlap), through(overlap, count, kills=5 if count < 100_000 else 40)
    )
    assert killed >= 3
    await settlement.settle(database)
    expected = sum(amount(n) for n in range(count))
    rows = await database.usage.find({"userId": {"$in": USERS}})
    assert sum(row.amount for row in rows) == expected
    assert sum(sum(row.metadata["recorded"]["sources"].values()) for row in rows) == expected
    assert len({(row.user_id, row.period_start) for row in rows}) == len(rows)
    quotas = await database[QUOTAS].find({"userId": {"$in": USERS}})
    months = {quota.period_start: quota.period_end for quota in quotas}
    covered = sum(row.amount for row in rows if any(a <= row.period_start < b for a, b in months.items()))
    assert sum(quota.ingested for quota in quotas) == covered
    assert await database.raw["usageevents"].count_documents({}) == count
    assert await database[USAGE_BATCHES].count({}) == 0
    assert (await database[USAGE_SETTLEMENTS].get({"_id": "apiCalls"})).quotas == []
    assert [drifts async for drifts in corrections.rebuild_all(database, SYSTEM)] == [[]] * len(USERS)
