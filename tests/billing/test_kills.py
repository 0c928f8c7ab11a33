"""Billing runs that are killed at random moments: every period is charged once."""

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ximler import setup
from ximler.billing import checkouts, events, run
from ximler.billing.periods import period
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
BOUGHT = datetime(2027, 1, 15, tzinfo=UTC)
CARDS = ("4242424242424242", "4000000000000077")  # at once, and ten minutes later


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[server.Server]:
    """One that ends the transactions of a process that was killed after 3 seconds, instead of a minute."""
    running = await server.start(tmp_path / "data", parameters={"transactionLifetimeLimitSeconds": "3"})
    yield running
    await running.stop()


@pytest.mark.parametrize(("kills", "people", "months"), [(2, 3, 4), pytest.param(50, 8, 72, marks=pytest.mark.soak)])
@pytest.mark.slow
async def test_two_runs_that_are_killed_at_random_charge_every_period_once(
    own_server: server.Server, settings: Settings, kills: int, people: int, months: int
) -> None:
    """Both are killed whenever some more payments were begun,
    so that they die at work however fast the machine is."""
    database = await connect(own_server.uri, name="ximler")
    rail = sandbox(database, settings)
    until, periods = period(BOUGHT, "MONTH", months).start + timedelta(hours=12), months + 1
    step = people * (periods - 1) // (kills + 1)

    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.billing.biller", own_server.uri, database.name, str(settings.secret_key),
            BOUGHT.isoformat(), until.isoformat(), cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        return process

    async def begun(count: int, *processes: asyncio.subprocess.Process) -> None:
        """Wait for that many payments."""
        while await database.raw["payments"].estimated_document_count() < count:
            assert all(each.returncode is None for each in processes), "a run ended before all was paid"
            await asyncio.sleep(0.01)

    try:
        await setup.initialise(database)
        database.clock.offset_ms += to_ms(BOUGHT) - database.clock.now_ms()
        users = []
        for n in range(people):
            user = await database.users.insert(User(name="Ada", email=f"{n}@example.com", password="-"))
            actor = Actor(kind="user", via="session", user_id=user.id)
            checkout = await checkouts.start(
                database, rail, settings, actor, plan_id="pro", return_url="http://localhost/back"
            )
            await rail.enter_card(str(checkout.session_id), CARDS[n % len(CARDS)])
            users.append(user.id)
        await events.process(database, rail)
        for n in range(kills):
            running = await asyncio.gather(start(), start())
            await begun(people + n * step + 1 + secrets.randbelow(step), *running)
            await asyncio.sleep(secrets.randbelow(30) / 1000)
            for process in running:
                process.kill()
                await asyncio.sleep(secrets.randbelow(10) / 1000)
            assert {await process.wait() for process in running} == {-signal.SIGKILL}
        await run.forward(database, rail, until)
        assert await verify(database) == []
        for user_id in users:
            found = await database.payments.find({"userId": user_id})
            assert [(each.status, each.amount_minor) for each in found] == [("PAID", 2900)] * periods
        taken = await database[SANDBOX_OBJECTS].find({"kind": "intent", "status": "SUCCEEDED"})
        assert sum(each.amount_minor - each.refunded_minor for each in taken) == people * periods * 2900
    finally:
        await database.close()
