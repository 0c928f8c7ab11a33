"""Billing runs that are killed at random moments: every period is charged once."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ximler import setup
from ximler.billing import checkouts, events, run
from ximler.billing.rails import sandbox
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.settings import Settings
from ximler.database import connect
from ximler.embedded import server
from ximler.schema.sandbox_object import SANDBOX_OBJECTS
from ximler.schema.user import User

ROOT = Path(__file__).parents[2]
BOUGHT, UNTIL = datetime(2027, 1, 15, tzinfo=UTC), datetime(2028, 1, 15, 12, tzinfo=UTC)
PERIODS = 13
CARDS = ("4242424242424242", "4000000000000077")  # at once, and ten minutes later


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[server.Server]:
    """One that ends the transactions of a process that was killed after 3 seconds, instead of a minute."""
    running = await server.start(tmp_path / "data", parameters={"transactionLifetimeLimitSeconds": "3"})
    yield running
    await running.stop()


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.slow
async def test_two_runs_that_are_killed_at_random_charge_every_period_once(
    own_server: server.Server, settings: Settings, kills: int
) -> None:
    database = await connect(own_server.uri, name="ximler")
    rail = sandbox(database, settings)

    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.billing.biller", own_server.uri, database.name, str(settings.secret_key),
            BOUGHT.isoformat(), UNTIL.isoformat(), cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        return process

    try:
        await setup.initialise(database)
        database.clock.offset_ms += to_ms(BOUGHT) - database.clock.now_ms()
        people = []
        for n in range(8):
            user = await database.users.insert(User(name="Ada", email=f"{n}@example.com", password="-"))
            actor = Actor(kind="user", via="session", user_id=user.id)
            begun = await checkouts.start(
                database, rail, settings, actor, plan_id="pro", return_url="http://localhost/back"
            )
            await rail.enter_card(str(begun.session_id), CARDS[n % len(CARDS)])
            people.append(user.id)
        await events.process(database, rail)
        running = [await start(), await start()]
        killed_at_work = 0
        for n in range(kills):
            await asyncio.sleep(0.05 + secrets.randbelow(800) / 1000)
            killed_at_work += running[n % 2].returncode is None
            if running[n % 2].returncode is None:
                running[n % 2].kill()
            await running[n % 2].wait()
            running[n % 2] = await start()
        for process in running:
            if process.returncode is None:
                process.kill()
            await process.wait()
        assert killed_at_work > kills / 2
        await run.forward(database, rail, UNTIL)
        assert await verify(database) == []
        for user_id in people:
            found = await database.payments.find({"userId": user_id})
            assert [(each.status, each.amount_minor) for each in found] == [("PAID", 2900)] * PERIODS
        taken = await database[SANDBOX_OBJECTS].find({"kind": "intent", "status": "SUCCEEDED"})
        assert sum(each.amount_minor - each.refunded_minor for each in taken) == 8 * PERIODS * 2900
    finally:
        await database.close()
