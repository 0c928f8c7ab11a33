"""A coupon entered with a change of plan."""

import asyncio
from datetime import UTC, datetime

import pytest
from bson import ObjectId
from tests.billing.conftest import LATER, OPERATOR, OTHER, SOFT, Buy, Buyer, add_plan, at, card_of, last_invoice, paid

from ximler.billing import changes, coupons, methods, payments, rebates, run, subscriptions
from ximler.billing.account import find
from ximler.billing.coupons import CouponAlreadyUsed, CouponNotApplicable
from ximler.billing.methods import MethodNeeded
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Conflict
from ximler.database import Database
from ximler.schema.redemption import REDEMPTIONS


async def coupon(database: Database, code: str, value: float, **more: object) -> None:
    values = {"name": code, "type": "PERCENTAGE", "valid_until": datetime(2030, 1, 1, tzinfo=UTC)} | more
    await coupons.create(database, OPERATOR, code=code, value=value, **values)  # type: ignore[arg-type]  # as a row


async def uses(database: Database, code: str) -> tuple[int, list[str]]:
    found = await database[REDEMPTIONS].find({"code": code})
    return (await database.coupons.get({"code": code})).used_count, [each.status for each in found]


@pytest.mark.slow
async def test_an_upgrade_with_a_coupon_charges_what_the_preview_said_and_redeems_it_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await coupon(database, "BIG", 20, applicable_plans=["enterprise"])
    at(database, 2027, 1, 1)
    await buy(ada)
    at(database, 2027, 1, 16, 12)  # halfway
    seen = await changes.preview(database, ada, plan_id="enterprise", coupon=" big ")
    assert seen.due_minor == 3960 - 1450
    clicks = (changes.change(database, rail, ada, plan_id="enterprise", coupon="BIG") for _ in range(4))
    await asyncio.gather(*clicks, return_exceptions=True)
    assert await paid(database, ada) == [2900, 2510]
    assert await uses(database, "BIG") == (1, ["CONFIRMED"])
    again = await changes.change(database, rail, ada, plan_id="enterprise", coupon="BIG")
    assert again.plan_id == "enterprise"
    await run.forward(database, rail, datetime(2027, 3, 2, tzinfo=UTC))
    # Once is one renewal: the upgrade's invoice does not count.
    assert await paid(database, ada) == [2900, 2510, 7920, 9900]


async def test_a_change_with_a_coupon_follows_the_payment_of_the_change_before(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "more", 60)
    await coupon(database, "TENTH", 10)
    at(database, 2027, 1, 1)
    await buy(ada)
    at(database, 2027, 1, 16, 12)  # halfway
    first = asyncio.create_task(changes.change(database, rail, ada, plan_id="more"))
    while not first.done() and (await find(database, ada.require_user())).charge_id is None:
        pass
    await asyncio.gather(first, changes.change(database, rail, ada, plan_id="enterprise", coupon="TENTH"))
    assert (await find(database, ada.require_user())).terms.plan_id == "enterprise"  # type: ignore[union-attr]  # live
    assert await paid(database, ada) == [2900, 1550, 4455 - 3000]
    assert await uses(database, "TENTH") == (1, ["CONFIRMED"])


async def test_another_interval_with_a_coupon_is_a_whole_period_of_it(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await coupon(database, "TAKE20", 20, type="FIXED")
    await add_plan(database, "yearly", 120, interval="YEAR")
    at(database, 2027, 1, 1)
    await buy(ada)
    at(database, 2027, 1, 16, 12)
    assert (await changes.preview(database, ada, plan_id="yearly", coupon="TAKE20")).due_minor == 10000 - 1450
    await changes.change(database, rail, ada, plan_id="yearly", coupon="TAKE20")
    assert await paid(database, ada) == [2900, 8550]
    upcoming = subscriptions.upcoming(await find(database, ada.require_user()), database.business)
    assert (await uses(database, "TAKE20"), upcoming.quote.due_minor) == ((1, ["CONFIRMED"]), 12000)


@pytest.mark.slow
async def test_a_declined_change_gives_the_coupon_back_and_a_pending_one_holds_it(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await coupon(database, "ONE", 50, max_uses=1)
    await buy(ada)
    await card_of(database, ada, SOFT)
    with pytest.raises(payments.PaymentDeclined):
        await changes.change(database, rail, ada, plan_id="enterprise", coupon="ONE")
    assert await uses(database, "ONE") == (0, [])
    await card_of(database, ada, LATER)
    await changes.change(database, rail, ada, plan_id="enterprise", coupon="ONE")
    found = await changes.change(database, rail, ada, plan_id="enterprise", coupon="ONE")  # a second click
    assert (found.plan_id, found.pending_plan_id) == ("pro", None)
    with pytest.raises(Conflict, match="under way"):
        await rebates.apply(database, ada, "ONE")
    assert await uses(database, "ONE") == (1, ["RESERVED"])
    database.clock.offset_ms += 3_700_000  # longer than an ordinary reservation
    await run.run(database, rail)
    assert await uses(database, "ONE") == (1, ["CONFIRMED"])
    assert (await last_invoice(database, ada)).kind == "CHANGE"


@pytest.mark.slow
async def test_a_coupon_waits_with_its_change_for_the_end_of_the_period_and_is_taken_back_with_it(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await coupon(database, "SMALL", 50, applicable_plans=["pro"])
    await coupon(database, "TENTH", 10, duration="FOREVER")
    at(database, 2027, 1, 1)
    await buy(ada, "enterprise", coupon="TENTH")
    for _ in range(2):
        await changes.change(database, rail, ada, plan_id="pro", coupon="SMALL")
        await changes.change(database, rail, ada, plan_id="pro", coupon="SMALL")
        assert await uses(database, "SMALL") == (1, ["CONFIRMED"])
        await changes.clear(database, ada)
        assert await uses(database, "SMALL") == (0, [])
    upcoming = subscriptions.upcoming(await find(database, ada.require_user()), database.business)
    assert upcoming.quote.due_minor == 8910  # its first coupon is there still
    await changes.change(database, rail, ada, plan_id="pro", coupon="SMALL")
    await subscriptions.cancel(database, ada)
    assert await uses(database, "SMALL") == (0, [])
    await subscriptions.resume(database, ada)
    await changes.change(database, rail, ada, plan_id="pro", coupon="SMALL")
    await run.forward(database, rail, datetime(2027, 3, 2, tzinfo=UTC))
    assert await paid(database, ada) == [8910, 1450, 2900]


@pytest.mark.slow
async def test_a_coupon_that_a_change_cannot_use_changes_nothing_in_preview_and_change(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, buyer: Buyer
) -> None:
    await coupon(database, "PROS", 50, applicable_plans=["pro"])
    await coupon(database, "EURO", 5, type="FIXED", currency="EUR")
    await coupon(database, "ALL", 50)
    await buy(await buyer(), coupon="ALL")
    await buy(ada)
    refused = {"PROS": CouponNotApplicable, "EURO": CouponNotApplicable, "ALL": CouponAlreadyUsed}
    for code, problem in refused.items():
        with pytest.raises(problem):
            await changes.preview(database, ada, plan_id="enterprise", coupon=code)
        with pytest.raises(problem):
            await changes.change(database, rail, ada, plan_id="enterprise", coupon=code)
    assert [(await uses(database, code))[0] for code in refused] == [0, 0, 1]
    bob = await buyer()
    await buy(bob, card=OTHER)
    await subscriptions.cancel(database, bob)
    await methods.remove(database, bob, (await methods.of_user(database, bob))[0].id)
    await subscriptions.resume(database, bob)
    with pytest.raises(MethodNeeded):
        await changes.change(database, rail, bob, plan_id="enterprise", coupon="ALL")
    assert await database[REDEMPTIONS].find_one({"_id": f"ALL:{ObjectId(str(bob.user_id))}"}) is None


@pytest.mark.slow
async def test_on_trial_a_coupon_of_a_change_waits_for_the_first_invoice(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await coupon(database, "HALF", 50)
    await add_plan(database, "trialed", 10, trial_days=14)
    await add_plan(database, "dearer", 20)
    at(database, 2027, 1, 1)
    await buy(ada, "trialed")
    await changes.change(database, rail, ada, plan_id="dearer", coupon="HALF")
    assert await uses(database, "HALF") == (1, ["CONFIRMED"])
    await run.forward(database, rail, datetime(2027, 2, 16, tzinfo=UTC))
    assert await paid(database, ada) == [1000, 2000]


async def test_a_coupon_does_not_lower_the_period_that_is_paid(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "small", 9)
    await coupon(database, "HALF", 50)
    await buy(ada)
    await changes.change(database, rail, ada, plan_id="small")
    with pytest.raises(Conflict, match="apply the coupon instead"):
        await changes.change(database, rail, ada, plan_id="pro", coupon="HALF")
    account = await find(database, ada.require_user())
    assert (account.pending is not None, account.balances, await uses(database, "HALF")) == (True, {}, (0, []))
