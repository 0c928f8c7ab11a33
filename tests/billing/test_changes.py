"""Changing the plan: the preview is the charge."""

import asyncio
from datetime import UTC, datetime

import pytest
from tests.billing.conftest import (
    FAILS_LATER,
    GOOD,
    LATER,
    OPERATOR,
    SOFT,
    Buy,
    add_plan,
    at,
    card_of,
    moved,
    notices,
    paid,
    subscription,
)

from ximler.audit.actions import Action
from ximler.billing import catalogue, changes, coupons, payments, rebates, run, subscriptions
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


async def undecided(database: Database, rail: Sandbox, ada: Actor, buy: Buy, card: str, plan_id: str = "more") -> None:
    """Pro on 1 January, and halfway a change that the bank takes ten minutes to decide on."""
    await add_plan(database, "more", 60)
    at(database, 2027, 1, 1)
    await buy(ada)
    await card_of(database, ada, card)
    at(database, 2027, 1, 16, 12)
    await changes.change(database, rail, ada, plan_id=plan_id)


async def half_off(database: Database) -> None:
    until = datetime(2030, 1, 1, tzinfo=UTC)
    await coupons.create(database, OPERATOR, code="HALF", name="-", type="PERCENTAGE", value=50, valid_until=until)


async def decide(database: Database, rail: Sandbox, ada: Actor, card: str = GOOD) -> None:
    """The bank decides, and what waited for it is paid with another card."""
    await card_of(database, ada, card)
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)


@pytest.mark.parametrize("card", [LATER, FAILS_LATER])
async def test_a_change_replaces_one_that_the_bank_has_not_decided_on(
    card: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await undecided(database, rail, ada, buy, card)
    for plan_id in ("more", "enterprise", "enterprise", "more", "enterprise"):  # the first is a second click
        found = await changes.change(database, rail, ada, plan_id=plan_id)
        assert (found.plan_id, found.pending_plan_id) == ("pro", None if found.pending_plan_id is None else plan_id)
        assert (plan_id == "more") or found.pending_plan_id == plan_id
    seen = await changes.preview(database, ada, plan_id="enterprise")
    assert (seen.waits, seen.due_minor) == (True, 3500)
    await decide(database, rail, ada)
    found = await subscription(database, ada)
    assert (found.plan_id, found.pending_plan_id) == ("enterprise", None)
    charged = (await paid(database, ada))[-1]
    assert 3490 < charged < 3500  # eleven minutes less
    assert await moved(database) == 2900 + charged
    charges = await database[CHARGES].find({"userId": ada.user_id}, sort=[("createdAt", 1)])
    returned = 1550 if card == LATER else 0
    assert [(each.amount_minor, each.refunded_minor) for each in charges] == [(2900, 0), (1550, returned), (charged, 0)]
    assert not (await changes.preview(database, ada, plan_id="more", when="NOW")).waits


@pytest.mark.slow
@pytest.mark.parametrize("how", ["change", "clear", "free", "period end", "cancel"])
async def test_a_change_that_the_bank_has_not_decided_on_gives_way_to_any_other_wish(
    how: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await undecided(database, rail, ada, buy, LATER)
    await add_plan(database, "small", 9)
    await changes.change(database, rail, ada, plan_id="enterprise")
    match how:
        case "change":
            await changes.change(database, rail, ada, plan_id="pro")
        case "clear":
            await changes.clear(database, ada)
        case "free":
            assert (await changes.change(database, rail, ada, plan_id="small", when="NOW")).plan_id == "small"
        case "period end":
            assert (await changes.change(database, rail, ada, plan_id="small")).pending_plan_id == "small"
        case "cancel":
            await subscriptions.cancel(database, ada)
    await decide(database, rail, ada)
    assert await moved(database) == 2900
    found = await subscription(database, ada)
    assert found.plan_id == ("small" if how == "free" else "pro")
    assert found.pending_plan_id == ("small" if how == "period end" else None)
    assert found.auto_renew == (how != "cancel")


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["declined", "retired", "no card"])
async def test_a_change_that_waited_and_cannot_be_made_leaves_the_plan_and_is_reported(
    problem: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await undecided(database, rail, ada, buy, FAILS_LATER)
    await half_off(database)
    await changes.change(database, rail, ada, plan_id="enterprise", coupon="HALF")
    assert (await database.coupons.get({"code": "HALF"})).used_count == 1
    if problem == "retired":
        await catalogue.retire(database, OPERATOR, "enterprise")
    if problem == "no card":
        await database[BILLING_ACCOUNTS].patch({"_id": ada.user_id}, {"$set": {"method.declined": True}})
    await decide(database, rail, ada, SOFT)
    found = await subscription(database, ada)
    assert (found.plan_id, found.pending_plan_id, found.status) == ("pro", None, "ACTIVE")
    title, text = (await notices(database, ada.user_id))[-1]
    assert title == "Your plan is still Pro"
    assert {"declined": "insufficient", "retired": "on offer", "no card": "payment method"}[problem] in text
    assert (await database.coupons.get({"code": "HALF"})).used_count == 0
    assert await moved(database) == 2900


@pytest.mark.slow
async def test_changes_at_once_while_the_bank_decides_leave_one(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await undecided(database, rail, ada, buy, LATER)
    await half_off(database)
    wishes = [("enterprise", None), ("enterprise", "HALF"), ("more", "HALF"), ("more", None), ("enterprise", "HALF")]
    asked = (changes.change(database, rail, ada, plan_id=plan, coupon=code) for plan, code in wishes)
    await asyncio.gather(*asked)
    last = await database.audit_logs.find({"action": Action.PLAN_CHANGE_REQUESTED}, sort=[("createdAt", -1)], limit=1)
    await decide(database, rail, ada)
    assert (await subscription(database, ada)).plan_id == last[0].metadata["after"]["planId"]
    assert len(await paid(database, ada)) == 2
    assert await moved(database) == sum(await paid(database, ada))
    used = last[0].metadata.get("coupon") == "HALF"
    assert (await database.coupons.get({"code": "HALF"})).used_count == used
