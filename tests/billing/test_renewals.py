"""Subscriptions as time passes: renewals, retries, trials, cancellation."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.billing.conftest import (
    AUTHENTICATION,
    FAILS_LATER,
    GOOD,
    HARD,
    LATER,
    OPERATOR,
    SOFT,
    Buy,
    Buyer,
    add_plan,
    at,
    card_of,
    last_invoice,
    moved,
    notices,
    paid,
    renewed_with,
    subscription,
)

from ximler.billing import changes, invoices, renewals, run, statement, subscriptions
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.errors import Conflict
from ximler.core.money import Money
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.limits.plans import limits_of
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.checkout import CHECKOUTS

pytestmark = pytest.mark.slow


async def test_renewals_follow_the_anchor_and_the_coupon_counts_them(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 31, 12)
    await database.coupons.raw.update_one(
        {"code": "WELCOME20"},
        {"$set": {"duration": "REPEATING", "durationPeriods": 2, "validUntil": datetime(2030, 1, 1, tzinfo=UTC)}},
    )
    await buy(ada, coupon="WELCOME20")
    await run.forward(database, rail, datetime(2027, 5, 30, 12, 0, 1, tzinfo=UTC))
    assert await paid(database, ada) == [2320, 2320, 2900, 2900]
    at(database, 2027, 5, 30, 13)
    starts = [each.period_start for each in (await invoices.page(database, ada)).items]
    days = [(each.month, each.day, each.hour) for each in reversed(starts) if each]
    assert days == [(1, 31, 12), (2, 28, 12), (3, 31, 12), (4, 30, 12)]


async def test_a_run_before_and_after_the_due_instant_charges_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    end = (await subscription(database, ada)).period_end
    assert end is not None
    database.clock.offset_ms += to_ms(end) - database.clock.now_ms() - 1000
    await run.run(database, rail)
    assert await paid(database, ada) == [2900]
    database.clock.offset_ms += 2000
    await run.run(database, rail)
    await run.run(database, rail)
    assert await paid(database, ada) == [2900, 2900]


async def test_a_worker_that_was_down_for_three_periods_never_charges_them_at_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    at(database, 2027, 4, 20)
    await run.run(database, rail)
    assert await paid(database, ada) == [2900, 2900]
    at(database, 2027, 4, 22)
    await run.run(database, rail)
    assert await paid(database, ada) == [2900, 2900]
    at(database, 2027, 4, 23, 1)
    await run.run(database, rail)
    assert await paid(database, ada) == [2900, 2900, 2900]


async def test_a_failed_renewal_keeps_the_limits_while_it_is_retried_and_then_expires(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    await card_of(database, ada, SOFT)
    first = at(database, 2027, 2, 15, 0, 0, 5)
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "PAST_DUE"
    assert (await limits_of(database, ada.require_user())).api_calls == 100_000
    attempts = 1
    for days in (1, 3, 5, 7):
        database.clock.offset_ms += to_ms(first) + days * 86_400_000 - 60_000 - database.clock.now_ms()
        await run.run(database, rail)
        assert await database[CHARGES].count({"userId": ada.user_id, "status": "FAILED"}) == attempts
        database.clock.offset_ms += 120_000
        await run.run(database, rail)
        attempts += 1
        assert await database[CHARGES].count({"userId": ada.user_id, "status": "FAILED"}) == attempts
    assert (await subscription(database, ada)).status == "EXPIRED"
    assert (await limits_of(database, ada.require_user())).api_calls == 1000
    await run.forward(database, rail, database.clock.now() + timedelta(days=60))
    assert await paid(database, ada) == [2900]


async def test_a_retry_that_succeeds_makes_it_active_again(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=AUTHENTICATION)
    assert (await subscription(database, ada)).status == "PAST_DUE"
    await card_of(database, ada, GOOD)
    at(database, 2027, 2, 16, 2)
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "ACTIVE"
    at(database, 2027, 3, 15, 1)
    await run.run(database, rail)
    assert await paid(database, ada) == [2900, 2900, 2900]


async def test_a_hard_decline_is_not_retried_and_ends_at_the_same_deadline(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    await card_of(database, ada, HARD)
    at(database, 2027, 2, 15)
    await run.forward(database, rail, datetime(2027, 2, 21, 23, tzinfo=UTC))
    assert await database[CHARGES].count({"userId": ada.user_id}) == 2
    assert (await subscription(database, ada)).status == "PAST_DUE"
    at(database, 2027, 2, 22, 1)
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "EXPIRED"


async def test_cancelled_at_the_end_it_runs_until_then_and_can_be_resumed(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    found = await subscriptions.cancel(database, ada, reason="TOO_EXPENSIVE")
    assert (found.status, found.auto_renew, found.end_date) == ("ACTIVE", False, found.period_end)
    await subscriptions.cancel(database, ada)  # a second click
    titles = [title for title, _ in await notices(database, ada.user_id)]
    assert titles.count("Your subscription is cancelled") == 1
    found = await subscriptions.resume(database, ada)
    assert (found.auto_renew, found.end_date) == (True, None)
    with pytest.raises(Conflict):
        await subscriptions.resume(database, ada)
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    await subscriptions.cancel(database, ada)
    at(database, 2027, 3, 15, 1)
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "CANCELLED"
    assert await paid(database, ada) == [2900, 2900]
    assert (await limits_of(database, ada.require_user())).api_calls == 1000


async def test_cancelling_while_unpaid_ends_now_and_voids_the_invoice(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    assert (await subscriptions.cancel(database, ada)).status == "CANCELLED"
    assert (await last_invoice(database, ada)).status == "VOID"
    await run.forward(database, rail, datetime(2027, 4, 1, tzinfo=UTC))
    assert await paid(database, ada) == [2900]


async def test_money_that_comes_after_the_end_is_given_back_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=LATER)
    await subscriptions.cancel(database, ada, now=True)
    database.clock.offset_ms += 20 * 60_000
    await run.run(database, rail)
    await run.run(database, rail)
    assert await moved(database) == 2900
    assert {each.status for each in await database.payments.find({"userId": ada.user_id})} == {"PAID", "REFUNDED"}


async def test_a_subscription_that_another_application_ended_is_not_billed_and_late_money_goes_back(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=LATER)
    await database.raw["subscriptions"].update_one({"userId": ada.user_id}, {"$set": {"status": "CANCELLED"}})
    database.clock.offset_ms += 20 * 60_000
    await run.run(database, rail)
    assert await moved(database) == 2900
    await run.forward(database, rail, datetime(2027, 4, 1, tzinfo=UTC))
    assert await paid(database, ada) == [2900]


async def test_a_payment_makes_it_active_also_if_only_another_application_made_it_past_due(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=LATER)
    await database.raw["subscriptions"].update_one({"userId": ada.user_id}, {"$set": {"status": "PAST_DUE"}})
    database.clock.offset_ms += 20 * 60_000
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "ACTIVE"


async def test_status_follows_the_account_also_if_another_application_changes_it(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    _, ended, changed, unpaid = people = [await buyer() for _ in range(4)]
    for each in people:
        await buy(each)
    await subscriptions.cancel(database, ended)
    await card_of(database, unpaid, HARD)
    past_due = {"$set": {"status": "PAST_DUE"}}
    await database.raw["subscriptions"].update_many({}, past_due)
    await changes.change(database, rail, changed, plan_id="enterprise")
    await database.raw["subscriptions"].update_one({"userId": changed.user_id}, past_due)
    await changes.change(database, rail, changed, plan_id="pro")
    await database.raw["subscriptions"].update_one({"userId": changed.user_id}, past_due)
    assert (await subscriptions.cancel(database, changed)).status == "ACTIVE"  # until the end of the paid period
    at(database, 2027, 2, 15, 1)
    assert (await run.run(database, rail)).waiting == 0
    assert [(await subscription(database, each)).status for each in people] == [
        "ACTIVE", "CANCELLED", "CANCELLED", "PAST_DUE",
    ]  # fmt: skip
    assert [len(await paid(database, each)) for each in people] == [2, 1, 2, 1]
    await database.raw["subscriptions"].update_one({"userId": unpaid.user_id}, {"$set": {"status": "ACTIVE"}})
    at(database, 2027, 2, 23)
    assert (await run.run(database, rail)).waiting == 0
    assert (await subscription(database, unpaid)).status == "EXPIRED"


async def test_cancelled_while_a_renewal_is_being_paid_it_ends_when_the_payment_fails(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=FAILS_LATER)
    assert (await subscriptions.cancel(database, ada)).status == "ACTIVE"
    await run.forward(database, rail, datetime(2027, 3, 1, tzinfo=UTC))
    assert (await subscription(database, ada)).status == "CANCELLED"
    assert await database[CHARGES].count({"userId": ada.user_id}) == 2


async def test_retries_that_were_missed_are_one(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    for day, attempts, status in ((20, 2, "PAST_DUE"), (22, 3, "EXPIRED")):  # after 1, 3 and 5 days no worker ran
        at(database, 2027, 2, day, 2)
        await run.run(database, rail)
        assert await database[CHARGES].count({"userId": ada.user_id, "status": "FAILED"}) == attempts
        assert (await subscription(database, ada)).status == status


async def test_a_trial_is_free_and_bills_at_its_end_once_a_person(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, buyer: Buyer
) -> None:
    await add_plan(database, "try", 20, trial_days=14)
    at(database, 2027, 1, 1)
    await buy(ada, "try", coupon=None)
    found = await subscription(database, ada)
    assert found.status == "ACTIVE"
    assert found.trial_end == found.period_end
    assert await paid(database, ada) == []
    end = found.trial_end
    await subscriptions.cancel(database, ada)
    await subscriptions.resume(database, ada)
    owed = Money(-500, "USD")
    await statement.grant(database, OPERATOR, user_id=ada.require_user(), amount=owed, reason="-", key="owed")
    for plan_id in ("pro", "try"):  # changes are free, and a trial ends when it was to end
        found = await changes.change(database, rail, ada, plan_id=plan_id)
        assert (found.plan_id, found.trial_end, found.period_end) == (plan_id, end, end)
    await run.forward(database, rail, datetime(2027, 2, 16, tzinfo=UTC))
    assert await paid(database, ada) == [2500, 2000], "what was owed is on the first invoice"
    titles = [title for title, _ in await notices(database, ada.user_id)]
    assert titles.count("Your trial ends soon") == 1
    again = await buyer()
    assert (await buy(again, "try")).problem == "The free trial was used with this payment method already"
    at(database, 2027, 1, 1)


async def test_of_users_who_begin_a_trial_with_the_same_card_at_once_one_has_it(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    await add_plan(database, "try", 20, trial_days=14)
    await asyncio.gather(*[buy(await buyer(), "try") for _ in range(6)])
    # Read at the end: each of them may handle another's event.
    assert sorted(each.status for each in await database[CHECKOUTS].find({})) == ["PAID", *["REFUSED"] * 5]


async def test_accounts_that_are_due_together_are_billed_together_also_beside_one_that_is_declined(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    people = [await buyer() for _ in range(6)]
    for each in people:
        await buy(each)
    at(database, 2027, 2, 15, 1)
    with round_trips() as trips:
        result = await run.run(database, rail)
    assert (result.accounts, result.waiting) == (6, 0)
    assert len(trips) < 12 * 6  # 23 each if they are billed one by one
    declined = {"method.id": f"pm_{SOFT.replace(' ', '')}"}
    await database[BILLING_ACCOUNTS].patch({"_id": people[2].user_id}, {"$set": declined})
    at(database, 2027, 3, 15, 1)
    await run.run(database, rail)
    for number, each in enumerate(people):
        assert await paid(database, each) == [2900, 2900] + [2900] * (number != 2)
        assert (await subscription(database, each)).status == ("PAST_DUE" if number == 2 else "ACTIVE")


async def test_a_closed_account_is_not_charged_any_more_and_its_subscription_ends_with_the_period(
    database: Database, rail: Sandbox, ada: Actor, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    unpaid = await buyer()
    for actor in (ada, unpaid):
        await buy(actor)
    await card_of(database, unpaid, SOFT)
    at(database, 2027, 2, 10)
    await database.users.patch({"_id": ada.user_id}, {"$set": {"deletedAt": database.clock.now()}})
    await run.forward(database, rail, datetime(2027, 2, 15, 6, tzinfo=UTC))
    assert (await subscription(database, ada)).status == "CANCELLED"
    assert (await subscription(database, unpaid)).status == "PAST_DUE"
    await card_of(database, unpaid, GOOD)
    await database.users.patch({"_id": unpaid.user_id}, {"$set": {"deletedAt": database.clock.now()}})
    at(database, 2027, 2, 15, 6)
    await run.forward(database, rail, datetime(2027, 3, 20, tzinfo=UTC))
    assert (await subscription(database, unpaid)).status == "CANCELLED"
    for actor in (ada, unpaid):
        assert await paid(database, actor) == [2900]


async def test_an_account_that_is_erased_after_it_was_listed_as_due_is_not_made_again(
    database: Database, rail: Sandbox, ada: Actor, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    other = await buyer()
    for actor in (ada, other):
        await buy(actor)
    at(database, 2027, 2, 15, 6)
    user_id = ada.require_user()
    await database[BILLING_ACCOUNTS].delete({"_id": user_id})
    steps = await renewals.tick_each(database, rail, [user_id, other.require_user()])
    assert steps[user_id] == 0
    assert await database[BILLING_ACCOUNTS].count({"_id": user_id}) == 0
    assert await paid(database, other) == [2900, 2900]
