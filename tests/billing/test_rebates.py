"""Coupons on running subscriptions."""

import asyncio
from datetime import UTC, datetime

import pytest
from tests.billing.conftest import OPERATOR, OTHER, Buy, Buyer, at, last_invoice, paid

from ximler.billing import account, changes, coupons, methods, rebates, run, subscriptions
from ximler.billing.coupons import CouponAlreadyUsed, CouponNotApplicable
from ximler.billing.methods import MethodNeeded
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.database import Database
from ximler.schema.coupon import Coupon

pytestmark = pytest.mark.slow


async def coupon(database: Database, code: str, value: float, **more: object) -> Coupon:
    values = {"name": code, "type": "PERCENTAGE", "valid_until": datetime(2030, 1, 1, tzinfo=UTC)} | more
    return await coupons.create(database, OPERATOR, code=code, value=value, **values)  # type: ignore[arg-type]


async def uses(database: Database, code: str) -> int:
    return (await database.coupons.get({"code": code})).used_count


async def test_a_coupon_holds_from_the_next_invoice_as_the_preview_says(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await coupon(database, "HALF", 50, duration="REPEATING", duration_periods=2)
    await buy(ada)
    await asyncio.gather(*(rebates.apply(database, ada, " half ") for _ in range(3)), return_exceptions=True)
    assert await uses(database, "HALF") == 1
    previewed = subscriptions.upcoming(await account.find(database, ada.require_user()), database.business).quote
    assert previewed.due_minor == 1450
    await run.forward(database, rail, datetime(2027, 4, 16, tzinfo=UTC))
    assert await paid(database, ada) == [2900, 1450, 1450, 2900]
    with pytest.raises(CouponAlreadyUsed):
        await rebates.apply(database, ada, "HALF")


async def test_a_new_coupon_replaces_the_present_one_and_a_change_of_plan_uses_it(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await coupon(database, "TENTH", 10, duration="FOREVER")
    await coupon(database, "TAKE9", 9, type="FIXED", duration="FOREVER")
    at(database, 2027, 1, 1)
    await buy(ada, coupon="TENTH")
    at(database, 2027, 1, 16, 12)  # halfway
    await rebates.apply(database, ada, "TAKE9")
    previewed = await changes.preview(database, ada, plan_id="enterprise")
    assert previewed.due_minor == 4500 - 1305
    await changes.change(database, rail, ada, plan_id="enterprise")
    assert await paid(database, ada) == [2610, 4500 - 1305]
    at(database, 2027, 2, 1, 1)
    await run.run(database, rail)
    assert (await last_invoice(database, ada)).due_minor == 9000


async def test_a_coupon_that_cannot_be_applied_keeps_no_use(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, buyer: Buyer
) -> None:
    await coupon(database, "EURO", 5, type="FIXED", currency="EUR")
    await coupon(database, "TEAM", 50, applicable_plans=["enterprise"])
    with pytest.raises(NotFound):
        await rebates.apply(database, ada, "WELCOME20")
    await buy(ada)
    for code in ("EURO", "TEAM"):
        with pytest.raises(CouponNotApplicable):
            await rebates.apply(database, ada, code)
    await rebates.apply(database, ada, "WELCOME20")
    same_card, third = await buyer(), await buyer()
    await buy(same_card)
    with pytest.raises(CouponAlreadyUsed, match="payment method"):
        await rebates.apply(database, same_card, "WELCOME20")
    await buy(third, card=OTHER)
    await subscriptions.cancel(database, third)
    with pytest.raises(Conflict, match="resume it first"):
        await rebates.apply(database, third, "WELCOME20")
    assert await uses(database, "WELCOME20") == 1


async def test_a_coupon_does_not_follow_to_a_plan_that_it_is_not_for(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, buyer: Buyer
) -> None:
    await coupon(database, "PROS", 50, duration="FOREVER", applicable_plans=["pro"])
    await coupon(database, "BIG", 50, duration="FOREVER", applicable_plans=["enterprise"])
    at(database, 2027, 1, 1)
    await buy(ada, coupon="PROS")
    bob = await buyer()
    await buy(bob, card=OTHER)
    at(database, 2027, 1, 16, 12)  # halfway
    await changes.change(database, rail, ada, plan_id="enterprise")
    assert await paid(database, ada) == [1450, 4950 - 725]

    await changes.change(database, rail, bob, plan_id="enterprise", when="PERIOD_END")
    await rebates.apply(database, bob, "BIG")
    await changes.clear(database, bob)
    at(database, 2027, 2, 1, 1)
    await run.run(database, rail)
    assert [(await last_invoice(database, each)).due_minor for each in (ada, bob)] == [9900, 2900]


async def test_a_coupon_needs_the_payment_method_that_uses_it(database: Database, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    await subscriptions.cancel(database, ada)
    await methods.remove(database, ada, (await methods.of_user(database, ada))[0].id)
    await subscriptions.resume(database, ada)
    with pytest.raises(MethodNeeded):
        await rebates.apply(database, ada, "WELCOME20")
