"""Alerts: once in a period, at each threshold."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.accounts.keyring import Keyring
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.metering.ledger import settlement
from ximler.metering.ledger.events import Event, record
from ximler.metering.limits.entitlements import override
from ximler.metering.reports import alerts
from ximler.notifications.email import Folder
from ximler.schema.job import OUTBOX
from ximler.worker import Tools, Worker


@pytest.fixture
def worker(database: Database, settings: Settings, tmp_path: Path) -> Worker:
    tools = Tools(database=database, settings=settings, keyring=Keyring(settings), mailer=Folder(tmp_path / "mail"))
    return Worker(tools)


async def use(database: Database, person: Actor, *amounts: int) -> None:
    """The free plan has 1,000 API calls."""
    for amount in amounts:
        sent = [Event(id=f"{amount} {n}", user_id=str(person.user_id), at=database.clock.now()) for n in range(amount)]
        await record(database, SYSTEM, sent)
        await settlement.settle(database)


async def told(database: Database, person: Actor) -> list[str]:
    return [n.title for n in await database.notifications.find({"userId": person.user_id}, sort=[("createdAt", 1)])]


@pytest.mark.slow
async def test_a_user_is_notified_once_at_80_and_once_at_100_per_cent(
    database: Database, person: Actor, worker: Worker, tmp_path: Path
) -> None:
    await use(database, person, 799)
    await worker.run_due()
    assert await told(database, person) == []
    for amount in (1, 50, 149, 1001 - 999, 30):
        await use(database, person, amount)
        await worker.run_due()
    assert await told(database, person) == [
        "You have used 80 % of your API calls",
        "Your API calls of this period are used up",
    ]
    mails = [path.read_text() for path in (tmp_path / "mail").glob("*.eml")]
    assert len(mails) == 2
    assert any("1,001 of 1,000" in mail or "1,002 of 1,000" in mail for mail in mails)


async def test_of_two_thresholds_passed_at_once_the_higher_is_notified(
    database: Database, person: Actor, worker: Worker
) -> None:
    await use(database, person, 1200)
    await worker.run_due()
    assert await told(database, person) == ["Your API calls of this period are used up"]


@pytest.mark.slow
async def test_alerts_repeat_in_each_period(database: Database, person: Actor, worker: Worker) -> None:
    await use(database, person, 900)
    await worker.run_due()
    database.clock.offset_ms += 40 * 86_400_000
    await use(database, person, 901)
    await worker.run_due()
    assert await told(database, person) == ["You have used 80 % of your API calls"] * 2


async def test_a_limit_raised_meanwhile_cancels_the_alert(database: Database, person: Actor, worker: Worker) -> None:
    assert person.user_id is not None
    await use(database, person, 900)
    operator = Actor(kind="operator", via="cli")
    await override(database, operator, person.user_id, reason="a good customer", api_calls=5000)
    await worker.run_due()
    assert await told(database, person) == []


async def test_a_repeated_job_notifies_once(database: Database, person: Actor, worker: Worker) -> None:
    await use(database, person, 900)
    [job] = await database[OUTBOX].find({"kind": alerts.send.name})
    for _ in range(2):
        await alerts.send(alerts.Alert(quota_id=job.payload["quotaId"], threshold=80), job=job, database=database)
    assert len(await told(database, person)) == 1


async def test_unlimited_users_get_no_alerts(database: Database, person: Actor, worker: Worker) -> None:
    assert person.user_id is not None
    await override(database, Actor(kind="operator", via="cli"), person.user_id, reason="x", api_calls=-1)
    await use(database, person, 2000)
    assert await worker.run_due() == 0


amounts = st.integers(min_value=0, max_value=10**9)


@pytest.mark.slow
@given(amounts, st.lists(amounts, max_size=5), st.integers(min_value=-1, max_value=10**9))
def test_however_the_steps_are_cut_a_threshold_is_reached_once(before: int, steps: list[int], limit: int) -> None:
    levels = [before]
    for step in steps:
        levels.append(levels[-1] + step)
    reached: list[Any] = [t for one, other in pairwise(levels) for t in alerts.due(one, other, limit)]
    assert sorted(reached) == alerts.due(before, levels[-1], limit)
    assert len(set(reached)) == len(reached)
    if limit <= 0:
        assert reached == []
