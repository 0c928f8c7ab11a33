"""Payments through a provider that fails, loses answers and repeats itself: charged once."""

import asyncio
import random
from datetime import timedelta

import pytest
from tests.billing.conftest import (
    LATER,
    Buy,
    Buyer,
    at,
    moved,
    paid,
    subscription,
)

from ximler.billing import checkouts, events, run
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Fault, Sandbox, sign
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.database.monitoring import round_trips


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["create_intent", "create_intent:answer", "confirm", "confirm:answer", "intent"])
async def test_a_provider_that_fails_charges_once(
    fault: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    left = [3]

    def fail(verb: str) -> Fault:
        if verb == fault and left[0]:
            left[0] -= 1
            return "after" if verb.endswith(":answer") else "down"
        return None

    rail.fault = fail
    at(database, 2027, 2, 15, 1)
    for _ in range(8):
        await run.run(database, rail)
        database.clock.offset_ms += 10 * 60_000
    database.clock.offset_ms += 30 * 3_600_000
    await run.run(database, rail)
    assert await paid(database, ada) == [2900, 2900]
    assert await moved(database) == 5800


@pytest.mark.slow
async def test_two_runs_at_once_against_a_provider_that_fails_at_random_charge_every_period_once(
    database: Database, settings: Settings, mongodb_uri: str, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    people = [await buyer() for _ in range(8)]
    for each in people:
        await buy(each)
    other = await connect(mongodb_uri, name=database.name)
    chance = random.Random(7)

    def fail(verb: str) -> Fault:
        return (None, None, "after" if verb.endswith(":answer") else "down")[chance.randrange(3)]  # type: ignore[return-value]

    at(database, 2027, 2, 15, 1)
    for _ in range(6):
        other.clock.offset_ms += database.clock.now_ms() - other.clock.now_ms()
        rails = [(each, sandbox(each, settings)) for each in (database, other)]
        for _, rail in rails:
            rail.fault = fail
        await asyncio.gather(*(run.run(each, rail) for each, rail in rails))
        database.clock.offset_ms += 6 * 60_000
    await other.close()
    await run.run(database, sandbox(database, settings))
    for each in people:
        assert await paid(database, each) == [2900, 2900]
    assert await moved(database) == 8 * 5800


async def test_events_doubled_delayed_and_reordered_end_in_the_same_state(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    held: list[tuple[bytes, str]] = []

    async def hold(body: bytes, signature: str) -> None:
        held.append((body, signature))

    deliver, rail.deliver = rail.deliver, hold
    begun = await buy(ada)
    await checkouts.complete(database, rail, begun.id)
    random.Random(1).shuffle(held)
    for body, signature in held + held:
        await deliver(body, signature)
    await events.process(database, rail)
    assert await paid(database, ada) == [2900]
    assert (await subscription(database, ada)).status == "ACTIVE"


def test_an_event_is_taken_with_a_fresh_signature_of_this_secret_only(database: Database, settings: Settings) -> None:
    rail, now = sandbox(database, settings), database.clock.now()
    secret, body = rail._secret, b'{"id":"evt_1","kind":"intent.changed","object_id":"pi_1"}'
    assert rail.verify(body, sign(secret, now, body)).object_id == "pi_1"
    assert rail.verify(body, sign(secret, now - timedelta(minutes=4), body)).id == "evt_1"
    good = sign(secret, now, body)
    for wrong in (
        sign(secret, now - timedelta(minutes=6), body),
        sign(secret, now + timedelta(minutes=6), body),
        sign(b"another endpoint's", now, body),
        sign(secret, now, body + b" "),
        good.replace("v1=", "v0="),
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        good[:-1] + "é",
        good.replace("t=", "t=-"),
        "t=" + "9" * 400 + ",v1=0",
        "t=²,v1=0",
        "t=1,v1=\udcff",
        "garbage",
        "",
    ):
        with pytest.raises(Unauthenticated):
            rail.verify(body, wrong)
    with pytest.raises(Invalid):
        rail.verify(b"{}", sign(secret, now, b"{}"))


@pytest.mark.slow
async def test_events_of_payments_that_wait_together_are_applied_in_few_commands(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    for _ in range(5):
        await buy(await buyer(), card=LATER)
    database.clock.offset_ms += 11 * 60_000
    await rail.advance()
    with round_trips() as trips:
        assert await events.process(database, rail) == 5
    assert len(trips) <= 5 * 8
    assert await database.subscriptions.count({"status": "ACTIVE"}) == 5
