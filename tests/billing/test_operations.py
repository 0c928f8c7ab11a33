"""Operators extend subscriptions, record payments made elsewhere, and move subscribers to a new price."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.billing.conftest import (
    OPERATOR,
    SOFT,
    Buy,
    Buyer,
    add_plan,
    at,
    last_invoice,
    moved,
    notices,
    paid,
    renewed_with,
    subscription,
)  # fmt: skip

from ximler.billing import catalogue, changes, operations, refunds, run, subscriptions
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid
from ximler.database import Database

pytestmark = pytest.mark.slow


async def extend(database: Database, actor: Actor, until: datetime) -> None:
    await operations.extend(database, OPERATOR, user_id=actor.require_user(), until=until, reason="Outage")


async def test_an_extended_period_costs_nothing_and_later_ones_count_from_its_end(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    until = datetime(2027, 3, 10, tzinfo=UTC)
    with pytest.raises(Forbidden):
        await operations.extend(database, ada, user_id=ada.require_user(), until=until, reason="Mine")
    for wrong in (datetime(2027, 2, 1, tzinfo=UTC), datetime(2045, 1, 1, tzinfo=UTC)):
        with pytest.raises(Invalid, match="must lie after 2027-02-15"):
            await extend(database, ada, wrong)
    await asyncio.gather(*(extend(database, ada, until) for _ in range(3)))
    assert (await subscription(database, ada)).period_end == until
    at(database, 2027, 3, 9)
    await run.run(database, rail)
    assert await paid(database, ada) == [2900]
    await run.forward(database, rail, datetime(2027, 4, 11, tzinfo=UTC))
    assert await paid(database, ada) == [2900] * 3
    assert (await subscription(database, ada)).period_end == datetime(2027, 5, 10, tzinfo=UTC)


async def test_a_trial_is_extended_and_a_change_in_an_extended_period_credits_its_rest(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "try", 30, trial_days=10)
    at(database, 2027, 1, 1)
    await buy(ada, "try")
    await subscriptions.cancel(database, ada)
    await extend(database, ada, datetime(2027, 1, 31, tzinfo=UTC))
    found = await subscription(database, ada)
    assert found.trial_end == found.period_end == found.end_date == datetime(2027, 1, 31, tzinfo=UTC)
    await subscriptions.resume(database, ada)
    await run.forward(database, rail, datetime(2027, 2, 1, tzinfo=UTC))
    assert await paid(database, ada) == [3000]
    await extend(database, ada, datetime(2027, 4, 1, tzinfo=UTC))  # from 28 days to 60
    at(database, 2027, 3, 2)  # halfway
    assert (await changes.preview(database, ada, plan_id="enterprise")).due_minor == 4950 - 1500


async def test_an_invoice_paid_elsewhere_is_paid_without_the_provider(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    invoice = await last_invoice(database, ada)
    user_id, before = ada.require_user(), await moved(database)

    async def mark() -> str:
        paid = await operations.mark_paid(
            database, OPERATOR, user_id=user_id, invoice_id=invoice.id, method="bank transfer", reason="On 17 Feb"
        )
        return f"{paid.id} {paid.status} {paid.amount_minor} {paid.description}"

    (payment,) = set(await asyncio.gather(*(mark() for _ in range(4))))
    assert payment.endswith(" PAID 2900 Pro, by bank transfer")
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert (await last_invoice(database, ada)).status == "PAID"
    found = await database.payments.find({"userId": user_id, "description": "Pro, by bank transfer"})
    to_card = {"user_id": user_id, "payment_id": found[0].id, "reason": "Mistake"}
    with pytest.raises(Invalid, match="refund it to the BALANCE"):
        await refunds.refund(database, rail, OPERATOR, **to_card)  # type: ignore[arg-type]
    assert (await refunds.refund(database, rail, OPERATOR, to="BALANCE", **to_card)).status == "SUCCEEDED"  # type: ignore[arg-type]
    assert await moved(database) == before


async def test_subscribers_move_to_a_new_price_from_their_next_period_and_are_notified_once(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    stays, leaves = await buyer(), await buyer()
    await buy(stays, coupon="WELCOME20")
    await buy(leaves)
    await subscriptions.cancel(database, leaves)
    await catalogue.edit(database, OPERATOR, "pro", price=35)
    assert (await subscription(database, stays)).price_minor == 2900
    counted = await operations.reprice(database, OPERATOR, plan_id="pro", dry_run=True)
    assert (counted.moved, counted.ending, counted.already) == (1, 1, 0)
    for moved_now, already in ((1, 0), (0, 1)):
        done = await operations.reprice(database, OPERATOR, plan_id="pro")
        assert (done.moved, done.already) == (moved_now, already)
    titles = [title for title, _ in await notices(database, stays.user_id)]
    assert titles.count("The price of Pro changes") == 1
    await run.forward(database, rail, database.clock.now() + timedelta(days=65))
    assert await paid(database, stays) == [2320, 3500, 3500]
    assert (await subscription(database, stays)).price_minor == 3500


async def test_an_unpaid_period_is_not_extended(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    with pytest.raises(Conflict, match="unpaid"):
        await extend(database, ada, datetime(2027, 4, 1, tzinfo=UTC))
