"""Events from the provider, handled by processes that race and die."""

import asyncio

import pytest
from tests.billing.conftest import LATER, Buy, Buyer, at, moved
from tests.billing.killing import Killer

from ximler.billing import events
from ximler.billing.sandbox import Sandbox
from ximler.core.clock import Clock
from ximler.database import Database
from ximler.schema.billing_event import BILLING_EVENTS

pytestmark = pytest.mark.slow


async def test_events_are_handled_by_one_of_several_processes_and_after_a_kill_by_the_next(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(database, 2027, 1, 15)
    for _ in range(4):
        await buy(await buyer(), card=LATER)
    database.clock.offset_ms += 11 * 60_000
    await rail.advance()
    waiting = [each.id for each in await database[BILLING_EVENTS].find({"doneAt": None})]
    still = database.clock.now_ms() - database.clock.offset_ms
    killer = Killer(monkeypatch)
    with monkeypatch.context() as frozen:
        frozen.setattr(Clock, "now_ms", lambda clock: still + clock.offset_ms)  # so that they claim in one millisecond
        for commands in (1, 2, 8):  # before its claim, after it, and while it applies them
            assert await killer.run(lambda: events.process(database, rail), commands=commands)
            database.clock.offset_ms += 2 * 60_000  # the lease expires
        await database[BILLING_EVENTS].patch_many({"_id": {"$in": waiting}}, {"$set": {"dueAt": database.clock.now()}})
        before = [each.tries for each in await database[BILLING_EVENTS].find({"_id": {"$in": waiting}})]
        counts = await asyncio.gather(*(events.process(database, rail) for _ in range(4)))
    found = await database[BILLING_EVENTS].find({"_id": {"$in": waiting}})
    assert (sum(counts), len(waiting)) == (4, 4)
    assert [(each.tries, each.due_at) for each in found] == [(tries + 1, None) for tries in before]
    assert await database.subscriptions.count({"status": "ACTIVE"}) == 4
    assert await moved(database) == 4 * 2900
