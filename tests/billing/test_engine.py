"""Subscriptions from purchase to end, against the sandbox: what is charged, when, and what the user has meanwhile."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.billing.conftest import Buy, Buyer, at, moved, paid

from ximler.billing import changes, checkouts, events, invoices, payments, redemptions, run, subscriptions
from ximler.billing.changes import PaymentDeclined
from ximler.billing.checkouts import AlreadySubscribed
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Fault, Sandbox, sign
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.errors import Conflict, Invalid, NotFound, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.metering.limits.plans import limits_of
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.invoice import INVOICES, Invoice
from ximler.schema.plan import Plan, PlanLimits
from ximler.schema.subscription import Subscription

GOOD, OTHER = "4242 4242 4242 4242", "5555555555554444"
SOFT, HARD, AUTHENTICATION = "4000000000009995", "4000000000009987", "4000002760003184"
LATER, FAILS_LATER, NEVER = "4000000000000077", "4000000000005126", "4000000000000259"


async def plan(database: Database, plan_id: str, price: float, **more: Any) -> Plan:
    values: dict[str, Any] = {"interval": "MONTH", "limits": PlanLimits(projects=9, storage=9, api_calls=9), **more}
    return await database.plans.insert(Plan(id=plan_id, name=plan_id.title(), price=price, **values))


async def subscription(database: Database, actor: Actor) -> Subscription:
    (found,) = await database.subscriptions.find({"userId": actor.user_id})
    return found


async def last_invoice(database: Database, actor: Actor) -> Invoice:
    return (await invoices.page(database, actor)).items[0]


async def renewed_with(database: Database, rail: Sandbox, actor: Actor, buy: Buy, *, card: str) -> None:
    """Bought on 15 January with a card that works, and renewed on 15 February with another."""
    at(database, 2027, 1, 15)
    await buy(actor)
    await _card(database, actor, card)
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)


async def test_a_plan_that_is_bought_is_active_with_its_limits_at_once(
    database: Database, ada: Actor, buy: Buy
) -> None:
    assert (await buy(ada, coupon="WELCOME20")).status == "PAID"
    found = await subscription(database, ada)
    assert (found.status, found.plan_id, found.price_minor, found.auto_renew) == ("ACTIVE", "pro", 2900, True)
    assert (await limits_of(database, ada.require_user())).api_calls == 100_000
    assert await paid(database, ada) == [2320]
    invoice = await last_invoice(database, ada)
    assert (invoice.number, invoice.status, invoice.due_minor) == (f"{invoice.year}-000001", "PAID", 2320)
    assert [(line["kind"], line["amount_minor"]) for line in invoice.lines] == [("PLAN", 2900), ("DISCOUNT", -580)]
    assert (await database.coupons.get({"code": "WELCOME20"})).used_count == 1


async def test_a_declined_card_leaves_the_checkout_open_for_another(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    begun = await buy(ada, card=SOFT)
    assert (begun.status, begun.problem) == ("OPEN", "The payment was declined: insufficient funds")
    assert await database.subscriptions.count({"userId": ada.user_id}) == 0
    assert (await invoices.page(database, ada)).items == []
    await rail.enter_card(str(begun.session_id), GOOD)
    await events.process(database, rail)
    assert (await checkouts.get(database, ada, begun.id)).status == "PAID"
    assert await paid(database, ada) == [2900]


async def test_a_payment_that_succeeds_later_starts_the_subscription_then(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    assert (await buy(ada, card=LATER)).status == "PROCESSING"
    assert await database.subscriptions.count({"userId": ada.user_id}) == 0
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert await paid(database, ada) == [2900]


async def test_a_user_has_one_subscription_however_many_checkouts_are_paid_at_once(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor
) -> None:
    begun = [
        await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/")
        for _ in range(100)
    ]
    rail.deliver = _deaf
    await asyncio.gather(*(rail.enter_card(str(each.session_id), GOOD) for each in begun))
    await asyncio.gather(*(checkouts.complete(database, rail, each.id) for each in begun))
    statuses = [(await checkouts.get(database, ada, each.id)).status for each in begun]
    assert statuses.count("PAID") == 1
    assert await moved(database) == 2900
    assert (await subscription(database, ada)).status == "ACTIVE"
    with pytest.raises(AlreadySubscribed):
        await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/")


async def _deaf(body: bytes, signature: str) -> None:
    """Loses every event."""


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


async def _card(database: Database, actor: Actor, number: str) -> None:
    """The customer's saved card becomes another."""
    method = f"pm_{number.replace(' ', '')}"
    await database[BILLING_ACCOUNTS].patch({"_id": actor.user_id}, {"$set": {"method.id": method}})


async def test_a_failed_renewal_keeps_the_limits_while_it_is_retried_and_then_expires(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    await _card(database, ada, SOFT)
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
    await _card(database, ada, GOOD)
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
    await _card(database, ada, HARD)
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


async def test_an_upgrade_charges_what_the_preview_said(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await plan(database, "ten", 10)
    await plan(database, "thirty", 29.99)
    at(database, 2027, 1, 1)
    await buy(ada, "ten")
    at(database, 2027, 1, 11)
    seen = await changes.preview(database, ada, plan_id="thirty")
    assert seen.due_minor == 1355
    found = await asyncio.gather(
        *(changes.change(database, rail, ada, plan_id="thirty") for _ in range(5)), return_exceptions=True
    )
    assert any(isinstance(each, Subscription) and each.plan_id == "thirty" for each in found)
    assert await paid(database, ada) == [1000, 1355]
    at(database, 2027, 2, 1, 1)
    await run.run(database, rail)
    assert await paid(database, ada) == [1000, 1355, 2999]


async def test_a_declined_upgrade_leaves_the_old_plan(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    await _card(database, ada, SOFT)
    with pytest.raises(PaymentDeclined):
        await changes.change(database, rail, ada, plan_id="enterprise")
    found = await subscription(database, ada)
    assert (found.plan_id, found.status) == ("pro", "ACTIVE")
    statuses = [each.status for each in (await payments.page(database, ada)).items]
    assert statuses == ["FAILED", "PAID"]


async def test_a_downgrade_waits_for_the_end_of_the_period_and_can_be_taken_back(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada, "enterprise")
    assert (await changes.change(database, rail, ada, plan_id="pro")).pending_plan_id == "pro"
    assert (await changes.clear(database, ada)).pending_plan_id is None
    await changes.change(database, rail, ada, plan_id="pro")
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    found = await subscription(database, ada)
    assert (found.plan_id, found.price_minor, found.pending_plan_id) == ("pro", 2900, None)
    assert await paid(database, ada) == [9900, 2900]
    assert (await limits_of(database, ada.require_user())).api_calls == 100_000


async def test_from_yearly_to_monthly_the_rest_becomes_credit_and_pays_the_months(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await plan(database, "yearly", 120, interval="YEAR")
    await plan(database, "monthly", 10)
    at(database, 2027, 1, 1)
    await buy(ada, "yearly")
    at(database, 2027, 4, 1)
    await changes.change(database, rail, ada, plan_id="monthly")
    await run.forward(database, rail, datetime(2028, 1, 1, 1, tzinfo=UTC))
    assert await paid(database, ada) == [12000, 959]


async def test_a_change_that_costs_less_than_the_minimum_goes_on_the_next_invoice(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await plan(database, "nine", 9)
    await plan(database, "nineteen", 19)
    at(database, 2027, 4, 1)
    await buy(ada, "nine")
    at(database, 2027, 4, 30, 12)
    await changes.change(database, rail, ada, plan_id="nineteen")
    assert (await subscription(database, ada)).plan_id == "nineteen"
    assert await paid(database, ada) == [900]
    at(database, 2027, 5, 1, 1)
    await run.run(database, rail)
    assert await paid(database, ada) == [900, 1917]


async def test_a_coupon_of_100_percent_needs_no_payment(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await database.coupons.raw.update_one({"code": "WELCOME20"}, {"$set": {"value": 100}})
    rail.fault = lambda verb: "down" if "intent" in verb else None
    assert (await buy(ada, coupon="WELCOME20")).status == "PAID"
    assert await paid(database, ada) == []
    assert (await last_invoice(database, ada)).due_minor == 0


async def test_a_trial_is_free_and_bills_at_its_end_once_a_person(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, buyer: Buyer
) -> None:
    await plan(database, "try", 20, trial_days=14)
    at(database, 2027, 1, 1)
    await buy(ada, "try", coupon=None)
    found = await subscription(database, ada)
    assert found.status == "ACTIVE"
    assert found.trial_end == found.period_end
    assert await paid(database, ada) == []
    end = found.trial_end
    await subscriptions.cancel(database, ada)
    await subscriptions.resume(database, ada)
    assert (await subscription(database, ada)).trial_end == end
    await run.forward(database, rail, datetime(2027, 2, 16, tzinfo=UTC))
    assert await paid(database, ada) == [2000, 2000]
    titles = [each.title for each in await database.notifications.find({"userId": ada.user_id})]
    assert titles.count("Your trial ends soon") == 1
    again = await buyer()
    assert (await buy(again, "try")).problem == "The free trial was used with this payment method already"
    at(database, 2027, 1, 1)


async def test_a_coupon_is_used_once_per_payment_method(database: Database, buy: Buy, buyer: Buyer) -> None:
    first, second = await buyer(), await buyer()
    await buy(first, coupon="WELCOME20")
    refused = await buy(second, coupon="WELCOME20")
    assert refused.status == "REFUSED"
    assert await paid(database, second) == []
    database.clock.offset_ms += 40 * 86_400_000
    await redemptions.sweep(database)
    assert (await database.coupons.get({"code": "WELCOME20"})).used_count == 1


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


async def test_invoice_numbers_have_no_gap_with_several_workers(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    for _ in range(7):
        await buy(await buyer())
    await asyncio.gather(*(invoices.number(database) for _ in range(6)))
    found = await database[INVOICES].find({"year": {"$gt": 0}})
    assert sorted(each.serial or 0 for each in found) == list(range(1, 8))


async def test_more_invoices_than_a_batch_are_numbered_in_the_order_of_issue(
    database: Database, ada: Actor, buy: Buy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoices, "_BATCH", 2)
    await buy(ada)
    (made,) = await database[INVOICES].find({})
    await database[INVOICES].delete_many({"userId": made.user_id})
    order = [3, 0, 4, 1, 2]
    for place in order:
        moment = database.clock.now().replace(month=6) + timedelta(minutes=place)
        values = {"id": ObjectId(), "key": f"k{place}", "issued_at": moment, "year": moment.year, "serial": None}
        await database[INVOICES].insert(msgspec.structs.replace(made, **values))
    assert await invoices.number(database) == len(order)
    numbered = await database[INVOICES].find({}, sort=[("serial", 1)])
    assert [each.key for each in numbered] == ["k0", "k1", "k2", "k3", "k4"]
    await database[INVOICES].delete_many({"userId": made.user_id})
    await database[INVOICES].insert(msgspec.structs.replace(made, serial=1))
    await database.raw["invoicenumbers"].update_one({}, {"$set": {"last": 1}})


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


async def test_a_card_is_not_taken_after_the_checkout_has_expired(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor
) -> None:
    begun = await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/back")
    database.clock.offset_ms += 2 * 3_600_000
    with pytest.raises(NotFound, match="expired"):
        await rail.enter_card(str(begun.session_id), GOOD)


async def test_checkouts_refuse_free_plans_unknown_plans_and_other_sites(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor
) -> None:
    async def start(plan_id: str, url: str = "http://localhost/") -> None:
        await checkouts.start(database, rail, settings, ada, plan_id=plan_id, return_url=url)

    with pytest.raises(Invalid):
        await start("free")
    with pytest.raises(NotFound):
        await start("none")
    for url in ("https://evil.example/", "javascript:alert(1)", "//evil.example", "http://localhost@evil.example/"):
        with pytest.raises(Invalid):
            await start("pro", url)


async def test_verify_finds_planted_errors(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada, coupon="WELCOME20")
    await invoices.number(database)
    plants: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("coupons", {"code": "WELCOME20"}, {"$inc": {"usedCount": 1}}),
        ("invoices", {}, {"$set": {"serial": 3}}),
        ("invoices", {}, {"$set": {"dueMinor": 1}}),
        ("billingaccounts", {}, {"$set": {"balances.USD": 5}}),
        ("billingaccounts", {}, {"$set": {"period": 1}}),
        ("payments", {}, {"$set": {"status": "FAILED"}}),
        ("charges", {}, {"$set": {"refundedMinor": 1}}),
        ("subscriptions", {}, {"$set": {"status": "EXPIRED"}}),
        ("entitlements", {}, {"$set": {"planId": "enterprise"}}),
    ]
    for name, where, update in plants:
        before = await database.raw[name].find_one(where)
        assert before is not None
        await database.raw[name].update_one({"_id": before["_id"]}, update)
        assert await verify(database) != [], (name, update)
        await database.raw[name].replace_one({"_id": before["_id"]}, before)
    await database.subscriptions.insert(
        Subscription(
            id=ObjectId(),
            user_id=ada.require_user(),
            plan_id="pro",
            status="ACTIVE",
            start_date=database.clock.now(),
            price=29,
            period_end=database.clock.now(),
        )
    )
    assert await verify(database) != []
    await database.subscriptions.delete({"userId": ada.user_id, "periodStart": None})
