"""Refunds and disputes: what goes back, where to, and never more than was captured."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.billing.conftest import OPERATOR, Buy, moved, notices, paid

from ximler.billing import account, events, refunds, run
from ximler.billing.pricing import Line
from ximler.billing.refunds import RefundTooHigh
from ximler.billing.sandbox import Fault, Sandbox
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden
from ximler.core.money import Money
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.invoice import INVOICES, Invoice
from ximler.schema.payment import Payment
from ximler.schema.refund import Refund

REFUNDS_LATER, REFUNDS_FAIL = "4000000000007726", "4000000000003220"


async def payment(database: Database, actor: Actor) -> Payment:
    (found,) = await database.payments.find({"userId": actor.user_id})
    return found


async def refund(
    database: Database, rail: Sandbox, actor: Actor, amount_minor: int | None = None, **more: Any
) -> Refund:
    which = (await payment(database, actor)).id
    more = {"user_id": actor.require_user(), "payment_id": which, "reason": "Asked for", **more}
    return await refunds.refund(database, rail, OPERATOR, amount_minor=amount_minor, **more)


async def notes(database: Database, actor: Actor) -> list[Invoice]:
    where = {"userId": actor.user_id, "kind": "CREDIT_NOTE"}
    return await database[INVOICES].find(where, sort=[("createdAt", 1)])


@pytest.mark.slow
async def test_a_payment_is_refunded_in_parts_and_never_beyond_what_was_captured(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, coupon="WELCOME20")
    assert (await refund(database, rail, ada, 1000)).status == "SUCCEEDED"
    assert (await payment(database, ada)).status == "PAID"
    with pytest.raises(RefundTooHigh, match=r"13\.21 .*13\.20 "):
        await refund(database, rail, ada, 1321)
    assert (await refund(database, rail, ada)).amount_minor == 1320
    assert (await payment(database, ada)).status == "REFUNDED"
    assert await moved(database) == 0
    assert [each.total_minor for each in await notes(database, ada)] == [-1000, -1320]
    for amount in (0, -1, 1, None):
        with pytest.raises(RefundTooHigh):
            await refund(database, rail, ada, amount)


async def test_only_operators_refund(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    which = (await payment(database, ada)).id
    with pytest.raises(Forbidden):
        await refunds.refund(database, rail, ada, user_id=ada.require_user(), payment_id=which, reason="Mine")


async def test_a_refund_to_the_balance_moves_no_money_at_the_provider(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    await refund(database, rail, ada, 900, to="BALANCE")
    assert account.balance(await account.find(database, ada.require_user()), "USD") == 900
    assert await moved(database) == 2900
    with pytest.raises(RefundTooHigh):
        await refund(database, rail, ada, 2001)


@pytest.mark.parametrize("parts", [10, pytest.param(100, marks=pytest.mark.soak)])
async def test_twice_as_many_refunds_at_once_as_there_are_parts_give_back_the_payment_once(
    parts: int, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    refunding = (refund(database, rail, ada, 2900 // parts) for _ in range(2 * parts))
    with round_trips() as trips:
        found = await asyncio.gather(*refunding, return_exceptions=True)
    # They queue in the process. n transactions that conflict would be repeated about n²/2 times.
    assert sum(verb == "abortTransaction" for verb, _ in trips) == parts
    assert sum(isinstance(each, Refund) for each in found) == parts
    assert sum(isinstance(each, RefundTooHigh) for each in found) == parts
    assert await moved(database) == 0
    assert (await payment(database, ada)).status == "REFUNDED"


@pytest.mark.slow
async def test_the_same_key_refunds_once(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    await asyncio.gather(*(refund(database, rail, ada, 500, key="ticket-17") for _ in range(5)))
    assert await moved(database) == 2400


@pytest.mark.slow
async def test_refunds_in_parts_return_exactly_the_tax(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    lines = [
        Line(kind="PLAN", description="Pro", amount_minor=2437),
        Line(kind="TAX", description="19 %", amount_minor=463),
    ]
    taxed = {"lines": [{"kind": each.kind, "amount_minor": each.amount_minor} for each in lines], "taxMinor": 463}
    await database.raw["invoices"].update_one({"userId": ada.user_id}, {"$set": taxed})
    parts = [await refund(database, rail, ada, amount) for amount in (1, 333, 1000, 7, None)]
    assert sum(each.tax_minor for each in parts) == 463
    assert sum(each.amount_minor for each in parts) == 2900
    assert all(abs(each.tax_minor - each.amount_minor * 463 / 2900) <= 1 for each in parts)


@pytest.mark.slow
async def test_a_pending_refund_that_fails_leaves_the_payment_paid_and_refundable(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, card=REFUNDS_FAIL)
    assert (await refund(database, rail, ada)).status == "PENDING"
    assert (await payment(database, ada)).status == "REFUNDED"
    with pytest.raises(RefundTooHigh):
        await refund(database, rail, ada, 1)
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)
    assert (await payment(database, ada)).status == "PAID"
    assert [each.status for each in await notes(database, ada)] == ["VOID"]
    assert (await refund(database, rail, ada, to="BALANCE")).amount_minor == 2900


@pytest.mark.slow
async def test_a_pending_refund_is_followed_without_an_event(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    async def lose(body: bytes, signature: str) -> None: ...

    await buy(ada, card=REFUNDS_LATER)
    rail.deliver = lose
    await refund(database, rail, ada, 100)
    for _ in range(4):
        database.clock.offset_ms += timedelta(minutes=11) // timedelta(milliseconds=1)
        await run.run(database, rail)
    assert [each.status for each in await refunds.of_user(database, ada.require_user())] == ["SUCCEEDED"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refund", "refund:answer", "refund_state"])
async def test_a_provider_that_fails_refunds_once(
    fault: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    left = [2]

    def fail(verb: str) -> Fault:
        if verb == fault and left[0]:
            left[0] -= 1
            return "after" if verb.endswith(":answer") else "down"
        return None

    rail.fault = fail
    assert (await refund(database, rail, ada, 700)).status == "PENDING"
    for _ in range(4):
        database.clock.offset_ms += 30 * 3_600_000
        await run.run(database, rail)
    assert [each.status for each in await refunds.of_user(database, ada.require_user())] == ["SUCCEEDED"]
    assert await moved(database) == 2200


@pytest.mark.slow
async def test_an_open_dispute_blocks_refunds_until_it_is_won(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    (charge,) = await database[CHARGES].find({"userId": ada.user_id})
    dispute = await rail.open_dispute(str(charge.intent_id))
    await events.process(database, rail)
    with pytest.raises(Conflict, match="disputed"):
        await refund(database, rail, ada)
    await rail.decide_dispute(dispute, "WON")
    await events.process(database, rail)
    assert (await refund(database, rail, ada)).status == "SUCCEEDED"


@pytest.mark.slow
async def test_a_lost_dispute_counts_as_refunded(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    await refund(database, rail, ada, 900)
    (charge,) = await database[CHARGES].find({"userId": ada.user_id})
    dispute = await rail.open_dispute(str(charge.intent_id))
    await rail.decide_dispute(dispute, "LOST")
    await asyncio.gather(*(events.process(database, rail) for _ in range(3)))
    assert (await payment(database, ada)).status == "REFUNDED"
    assert [each.total_minor for each in await notes(database, ada)] == [-900, -2000]
    assert await paid(database, ada) == []
    assert await moved(database) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("taken", "left"), [(2000, 0), (1600, 400)])
async def test_money_that_the_bank_takes_back_does_not_stay_in_the_balance_as_well(
    taken: int, left: int, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    await refund(database, rail, ada, 900)
    await refund(database, rail, ada, 1500, to="BALANCE")
    (charge,) = await database[CHARGES].find({"userId": ada.user_id})
    dispute = await rail.open_dispute(str(charge.intent_id))
    await database.raw["sandboxobjects"].update_one({"_id": dispute}, {"$set": {"amountMinor": taken}})
    await rail.decide_dispute(dispute, "LOST")
    await asyncio.gather(*(events.process(database, rail) for _ in range(3)))
    assert await refunds.observe_dispute(database, rail, dispute)  # another event of the same dispute
    withdrawn = [title for title, _ in await notices(database, ada.user_id)]
    assert f"A refund of {Money(1500 - left, 'USD')} was withdrawn" in withdrawn
    account = await database[BILLING_ACCOUNTS].get(ada.require_user())
    assert account.balances.get("USD", 0) == left
    assert (await payment(database, ada)).status == "REFUNDED"
    assert await moved(database) == left
    found = [(each.total_minor, each.status) for each in await notes(database, ada)]
    assert sorted(found) == sorted([(-900, "PAID"), (-1500, "VOID"), (-taken, "PAID"), *[(-left, "PAID")] * (left > 0)])


@pytest.mark.slow
async def test_a_lost_dispute_counts_whole_when_a_refund_that_was_under_way_fails(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, card=REFUNDS_FAIL)
    (charge,) = await database[CHARGES].find({"userId": ada.user_id})
    dispute = await rail.open_dispute(str(charge.intent_id))  # of all
    await refund(database, rail, ada, 900)  # before anybody told us
    await rail.decide_dispute(dispute, "LOST")
    await events.process(database, rail)
    assert [each.total_minor for each in await notes(database, ada)] == [-900, -2000]
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)
    await asyncio.gather(*(refunds.observe_dispute(database, rail, dispute) for _ in range(3)))
    assert (await payment(database, ada)).status == "REFUNDED"
    found = [(each.total_minor, each.status) for each in await notes(database, ada)]
    assert found == [(-900, "VOID"), (-2000, "PAID"), (-900, "PAID")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to_balance", "to_card", "taken", "balance"),
    [(0, 0, 2900, 0), (1500, 0, 2900, 1500), (1500, 900, 1600, 1500), (0, 900, 2900, 0), (500, 0, 1000, 500)],
)
async def test_a_lost_dispute_whose_money_the_bank_returns_counts_no_longer(
    to_balance: int, to_card: int, taken: int, balance: int, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    if to_balance:
        await refund(database, rail, ada, to_balance, to="BALANCE")
    if to_card:
        rail.fault = lambda verb: "down" if verb == "refund" else None
        await refund(database, rail, ada, to_card)  # waits, and the dispute covers it
        rail.fault = lambda _: None
    (charge,) = await database[CHARGES].find({"userId": ada.user_id})
    for again in range(2):
        dispute = await rail.open_dispute(str(charge.intent_id))
        await database.raw["sandboxobjects"].update_one({"_id": dispute}, {"$set": {"amountMinor": taken}})
        await rail.decide_dispute(dispute, "LOST")
        await asyncio.gather(*(events.process(database, rail) for _ in range(3)))
        assert await moved(database) == (2900 - taken if not again else 2900 - to_card - taken)
        assert await verify(database) == []
        await rail.decide_dispute(dispute, "WON")
        await asyncio.gather(*(events.process(database, rail) for _ in range(3)))
        await run.run(database, rail)
        assert await refunds.observe_dispute(database, rail, dispute)
        taken = min(taken, 2900 - to_card)
        account = await database[BILLING_ACCOUNTS].get(ada.require_user())
        assert (account.balances.get("USD", 0), account.refunds) == (balance, [])
        assert await moved(database) == 2900 - to_card
        counted = (await database[CHARGES].get(charge.id)).refunded_minor
        assert (counted, (await payment(database, ada)).status) == (to_balance + to_card, "PAID")
        assert await verify(database) == []
    assert (await refund(database, rail, ada)).amount_minor == 2900 - to_balance - to_card


@pytest.mark.slow
async def test_a_dispute_of_a_part_that_is_told_twice_counts_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    (charge,) = await database[CHARGES].find({"userId": ada.user_id})
    dispute = await rail.open_dispute(str(charge.intent_id))
    await database.raw["sandboxobjects"].update_one({"_id": dispute}, {"$set": {"amountMinor": 1600}})
    await rail.decide_dispute(dispute, "LOST")
    await asyncio.gather(*(refunds.observe_dispute(database, rail, dispute) for _ in range(4)))
    assert [each.total_minor for each in await notes(database, ada)] == [-1600]
    assert (await refund(database, rail, ada)).amount_minor == 1300
