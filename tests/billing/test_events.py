"""Events from the provider, handled by processes that race and die."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from tests.billing.conftest import (
    GOOD,
    LATER,
    Buy,
    Buyer,
    add_plan,
    at,
    card_of,
    moved,
    notices,
    paid,
    renewed_with,
    subscription,
)  # fmt: skip
from tests.billing.killing import Killer

from ximler.billing import changes, events, payments, run, subscriptions
from ximler.billing.provider import Intent
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.clock import Clock
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.billing_event import BILLING_EVENTS
from ximler.schema.charge import CHARGES

pytestmark = pytest.mark.slow
_MINUTES_MS = 60_000


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


@pytest.fixture
async def commands(database: Database, rail: Sandbox) -> Callable[[], Awaitable[int]]:
    """The commands that apply the only event, once the bank has decided: but the provider's own."""

    async def commands() -> int:
        assert await events.process(database, rail) <= 1  # that it is pending
        database.clock.offset_ms += 11 * _MINUTES_MS
        await rail.advance()
        with round_trips() as trips:
            assert await events.process(database, rail) == 1
        assert await database[BILLING_EVENTS].count({"doneAt": None}) == 0
        return sum(collection != "sandboxobjects" for _, collection in trips)

    return commands


async def test_the_commands_that_apply_an_event(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, commands: Callable[[], Awaitable[int]]
) -> None:
    await add_plan(database, "more", 60)
    at(database, 2027, 1, 15)
    await buy(ada, card=LATER)
    assert await commands() <= 16, "a first purchase"
    at(database, 2027, 1, 20)
    await changes.change(database, rail, ada, plan_id="more")
    assert await commands() <= 15, "an upgrade"
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    assert await commands() <= 8, "a renewal"
    assert await paid(database, ada) == [2900, 2600, 6000]
    await card_of(database, ada, GOOD)
    at(database, 2027, 3, 15, 1)
    await run.run(database, rail)
    (event,) = await database[BILLING_EVENTS].find({}, sort=[("createdAt", -1)], limit=1)
    again = {"$set": {"dueAt": database.clock.now()}, "$unset": {"doneAt": ""}}
    await database[BILLING_EVENTS].patch({"_id": event.id}, again)
    with round_trips() as trips:
        assert await events.process(database, rail) == 1
    assert len(trips) <= 2, "of a payment that the answer has told already"


@pytest.mark.parametrize("meanwhile", ["cancelled", "applied", "begun", "handled"])
async def test_an_event_whose_documents_change_while_the_provider_is_asked_is_applied_to_the_new_ones(
    meanwhile: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await renewed_with(database, rail, ada, buy, card=LATER)
    await events.process(database, rail)
    database.clock.offset_ms += 11 * _MINUTES_MS
    await rail.advance()
    (charge,) = await database[CHARGES].find({"status": "PENDING"})
    ask, asked = rail.intent, 0

    async def intent(intent_id: str) -> Intent:
        nonlocal asked
        asked += 1
        if asked == 1:
            match meanwhile:
                case "cancelled":
                    await subscriptions.cancel(database, ada, now=True)
                case "applied":
                    await payments.drive(database, rail, charge.id)
                case "begun":  # a later reading, by a process that dies
                    await database[CHARGES].patch({"_id": charge.id}, {"$inc": {"ticket": 1}})
                case "handled":
                    assert await events.process(database, rail) == 1
        return await ask(intent_id)

    monkeypatch.setattr(rail, "intent", intent)
    assert await events.process(database, rail) == (meanwhile != "handled")
    assert await database[BILLING_EVENTS].count({"doneAt": None}) == 0
    await run.run(database, rail)
    cancelled = meanwhile == "cancelled"
    assert await moved(database) == (2900 if cancelled else 5800)
    assert (await subscription(database, ada)).status == ("CANCELLED" if cancelled else "ACTIVE")
    assert [title for title, _ in await notices(database, ada.user_id)].count(
        "Your receipt: 29.00 USD"
    ) == 2 - cancelled


async def test_an_event_that_kills_its_process_is_given_up_and_the_others_are_applied(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(database, 2027, 1, 15)
    for _ in range(3):
        await buy(await buyer(), card=LATER)
    await events.process(database, rail)
    database.clock.offset_ms += 11 * _MINUTES_MS
    await rail.advance()
    deadly = (await database[BILLING_EVENTS].find({"doneAt": None}))[1]
    ask, killed = rail.intent, 0

    async def intent(intent_id: str) -> Intent:
        nonlocal killed
        if intent_id == deadly.object_id:
            killed += 1
            raise asyncio.CancelledError
        return await ask(intent_id)

    monkeypatch.setattr(rail, "intent", intent)
    for _ in range(30):
        with suppress(asyncio.CancelledError):
            await events.process(database, rail)
        database.clock.offset_ms += 2 * _MINUTES_MS
    found = await database[BILLING_EVENTS].get(deadly.id)
    assert (found.due_at, found.problem) == (None, "RuntimeError: each process that handled it has died")
    assert killed <= 14
    assert await database[BILLING_EVENTS].count({"doneAt": None}) == 0
    assert await database.subscriptions.count({"status": "ACTIVE"}) == 2
    monkeypatch.setattr(rail, "intent", ask)
    await run.run(database, rail)  # the account is due as well
    assert await database.subscriptions.count({"status": "ACTIVE"}) == 3


@pytest.mark.parametrize("foreign", [7, [7, "8"], {"of": "another application"}], ids=str)
async def test_events_with_ids_of_other_types_hold_up_no_other(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy, foreign: object
) -> None:
    at(database, 2027, 1, 15)
    await buy(await buyer(), card=LATER)
    await events.process(database, rail)
    database.clock.offset_ms += 11 * _MINUTES_MS
    await rail.advance()
    event = {"kind": "intent.changed", "objectId": "x", "reference": "x", "tries": 0, "dueAt": database.clock.now()}
    ids = foreign if isinstance(foreign, list) else [foreign]
    await database.raw[BILLING_EVENTS.name].insert_many([{"_id": each, **event} for each in ids])
    for _ in range(3):
        await events.process(database, rail)
        database.clock.offset_ms += 7 * _MINUTES_MS
    assert await database.subscriptions.count({"status": "ACTIVE"}) == 1
