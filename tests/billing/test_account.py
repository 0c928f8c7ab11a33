"""Steps of one account in two processes: those that only read it first conflict when they store it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.billing.conftest import Buy, at, paid

from ximler.billing import account, payments, renewals, run
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.clock import Clock
from ximler.core.settings import Settings
from ximler.database import Database, connect

pytestmark = pytest.mark.slow


@pytest.fixture
async def other(database: Database, mongodb_uri: str) -> AsyncIterator[Database]:
    """As another process sees it."""
    other = await connect(mongodb_uri, name=database.name)
    yield other
    await other.close()


async def test_of_two_steps_that_hold_an_account_one_is_taken_again_also_if_neither_changes_it(
    database: Database, other: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "now_ms", lambda clock: 1_800_000_000_000)
    user_id, seen = ada.require_user(), []
    await account.ensure(database, user_id)

    async def store(transaction: Database) -> None:
        await account.store(transaction, await account.hold(transaction, user_id))

    async def step(transaction: Database) -> None:
        held = await account.hold(transaction, user_id)
        seen.append(held.revision)
        if len(seen) == 1:
            await account.in_turn(other, user_id, store)
        await account.store(transaction, held)

    await account.in_turn(database, user_id, store)
    await account.in_turn(database, user_id, step)
    assert seen == [1, 2]


@pytest.mark.parametrize(("module", "read"), [(renewals, "find"), (payments, "hold")])
async def test_a_step_that_another_process_takes_meanwhile_is_taken_once_and_does_not_wait(
    module: Any, read: str, database: Database, other: Database, rail: Sandbox, ada: Actor, buy: Buy,
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    at(database, 2027, 1, 15)
    await buy(ada)
    held = []

    as_it_was = getattr(module, read)

    async def meanwhile(transaction: Database, user_id: Any) -> Any:
        found = await as_it_was(transaction, user_id)
        held.append(user_id)
        if len(held) == 1:
            other.clock.offset_ms += database.clock.now_ms() - other.clock.now_ms()
            await run.run(other, sandbox(other, settings))
        return found

    monkeypatch.setattr(module, read, meanwhile)
    at(database, 2027, 2, 15, 1)
    result = await run.run(database, rail)
    assert (result.waiting, len(held) > 2) == (0, True)
    assert await paid(database, ada) == [2900] * 2
