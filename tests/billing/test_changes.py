"""Changing the plan: the preview is the charge."""

import asyncio
from datetime import UTC, datetime

import pytest
from tests.billing.conftest import (
    LATER,
    OPERATOR,
    SOFT,
    Buy,
    add_plan,
    at,
    card_of,
    paid,
    subscription,
)

from ximler.billing import catalogue, changes, payments, rebates, run, subscriptions
from ximler.billing.payments import PaymentDeclined
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Conflict
from ximler.database import Database
from ximler.metering.limits.plans import limits_of
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES


@pytest.mark.slow
async def test_an_upgrade_charges_what_the_preview_said(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "ten", 10)
    await add_plan(database, "thirty", 29.99)
    at(database, 2027, 1, 1)
    await buy(ada, "ten")
    at(database, 2027, 1, 11)
    seen = await changes.preview(database, ada, plan_id="thirty")
    assert seen.due_minor == 1355
    found = await asyncio.gather(*(changes.change(database, rail, ada, plan_id="thirty") for _ in range(5)))
    assert {each.plan_id for each in found} == {"thirty"}
    assert await paid(database, ada) == [1000, 1355]
    at(database, 2027, 2, 1, 1)
    await run.run(database, rail)
    assert await paid(database, ada) == [1000, 1355, 2999]


async def test_of_two_changes_at_once_the_one_that_was_asked_for_last_stands(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "more", 60)
    at(database, 2027, 1, 1)
    await buy(ada)
    at(database, 2027, 1, 16, 12)  # halfway
    first = asyncio.create_task(changes.change(database, rail, ada, plan_id="more"))
    while not first.done() and (await database[BILLING_ACCOUNTS].get(ada.require_user())).charge_id is None:
        pass
    await asyncio.gather(first, changes.change(database, rail, ada, plan_id="enterprise"))
    assert (await subscription(database, ada)).plan_id == "enterprise"
    assert await paid(database, ada) == [2900, 1550, 1950]


async def test_a_declined_upgrade_leaves_the_old_plan(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    await card_of(database, ada, SOFT)
    with pytest.raises(PaymentDeclined):
        await changes.change(database, rail, ada, plan_id="enterprise")
    found = await subscription(database, ada)
    assert (found.plan_id, found.status) == ("pro", "ACTIVE")
    statuses = [each.status for each in (await payments.page(database, ada)).items]
    assert statuses == ["FAILED", "PAID"]


@pytest.mark.slow
async def test_a_downgrade_waits_for_the_end_of_the_period_and_can_be_taken_back(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada, "enterprise")
    assert (await changes.change(database, rail, ada, plan_id="pro")).pending_plan_id == "pro"
    assert (await changes.clear(database, ada)).pending_plan_id is None
    await changes.change(database, rail, ada, plan_id="pro")
    await catalogue.edit(database, OPERATOR, "enterprise", price=120)
    seen = await changes.preview(database, ada, plan_id="enterprise", when="NOW")
    assert (seen.due_minor, seen.quote) == (0, None)
    assert (await changes.change(database, rail, ada, plan_id="enterprise", when="NOW")).pending_plan_id is None
    await changes.change(database, rail, ada, plan_id="pro")
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    found = await subscription(database, ada)
    assert (found.plan_id, found.price_minor, found.pending_plan_id) == ("pro", 2900, None)
    assert await paid(database, ada) == [9900, 2900]
    assert (await limits_of(database, ada.require_user())).api_calls == 100_000


@pytest.mark.slow
async def test_cancelled_while_a_change_is_being_paid_it_ends_with_the_period_that_was_paid(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "yearly", 120, interval="YEAR")
    at(database, 2027, 1, 15)
    await buy(ada)
    await card_of(database, ada, LATER)
    at(database, 2027, 1, 20)
    await changes.change(database, rail, ada, plan_id="yearly")
    with pytest.raises(Conflict, match="under way"):  # it would not survive the change
        await rebates.apply(database, ada, "WELCOME20")
    await subscriptions.cancel(database, ada)
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)
    found = await subscription(database, ada)
    assert (found.plan_id, found.auto_renew, found.end_date) == ("yearly", False, datetime(2028, 1, 20, tzinfo=UTC))
    await run.forward(database, rail, datetime(2028, 1, 20, 0, 0, 1, tzinfo=UTC))
    assert (await subscription(database, ada)).status == "CANCELLED"


@pytest.mark.slow
async def test_from_yearly_to_monthly_the_rest_becomes_credit_and_pays_the_months(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "yearly", 120, interval="YEAR")
    await add_plan(database, "monthly", 10)
    at(database, 2027, 1, 1)
    await buy(ada, "yearly")
    at(database, 2027, 4, 1)
    await changes.change(database, rail, ada, plan_id="monthly")
    await run.forward(database, rail, datetime(2028, 1, 1, 1, tzinfo=UTC))
    assert await paid(database, ada) == [12000, 959]


@pytest.mark.slow
async def test_a_change_that_costs_less_than_the_minimum_goes_on_the_next_invoice(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "nine", 9)
    await add_plan(database, "nineteen", 19)
    at(database, 2027, 4, 1)
    await buy(ada, "nine")
    at(database, 2027, 4, 30, 12)
    await changes.change(database, rail, ada, plan_id="nineteen")
    assert (await subscription(database, ada)).plan_id == "nineteen"
    assert await paid(database, ada) == [900]
    at(database, 2027, 5, 1, 1)
    await run.run(database, rail)
    assert await paid(database, ada) == [900, 1917]


async def test_several_clicks_on_a_change_try_a_declined_card_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    await card_of(database, ada, SOFT)
    asked = (changes.change(database, rail, ada, plan_id="enterprise") for _ in range(5))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each).__name__ for each in found} == {"PaymentDeclined"}
    attempts = await database[CHARGES].find({"userId": ada.user_id, "status": "FAILED"})
    assert len(attempts) < 5, "a click that waited for another's payment does not charge again"


async def test_a_change_that_follows_a_declined_one_to_another_plan_is_tried(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "more", 60)
    await buy(ada)
    await card_of(database, ada, SOFT)
    first = asyncio.create_task(changes.change(database, rail, ada, plan_id="enterprise"))
    while not first.done() and (await database[BILLING_ACCOUNTS].get(ada.require_user())).charge_id is None:
        pass
    await card_of(database, ada, "4242424242424242")
    second = changes.change(database, rail, ada, plan_id="more")
    await asyncio.gather(first, second, return_exceptions=True)
    assert (await subscription(database, ada)).plan_id == "more"
