"""Billing as customers use it: over GraphQL, against the sandbox."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from bson import ObjectId
from tests.graphql.test_idempotency import send
from tests.graphql.test_scopes import key_of
from tests.serving import Answer, Client

from ximler.billing import events
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Sandbox
from ximler.billing.verify import verify
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips

pytestmark = pytest.mark.slow

GOOD, DECLINED = "4242424242424242", "4000000000009995"
START = """mutation ($plan: ID!, $coupon: String) {
  startCheckout(planId: $plan, coupon: $coupon, returnUrl: "http://localhost/back") {
    id url status priceMinor currency coupon trialDays
    quote { dueMinor discountMinor netMinor lines { kind amountMinor included } }
  }
}"""
CHECKOUT = "query ($id: ID!) { checkout(id: $id) { status problem quote { dueMinor } } }"
ME = """{ me { subscription { planId status priceMinor autoRenew endDate periodEnd pendingPlanId }
  usage { resource limit } } }"""
PREVIEW = "query ($plan: ID!) { previewChange(planId: $plan) { when dueMinor currency quote { dueMinor totalMinor } } }"
INVOICES = """{ invoices { nodes {
  id number status kind dueMinor totalMinor lines { kind description amountMinor planId start }
} } payments { nodes { amount amountMinor currency status failure invoiceId } } }"""


@pytest.fixture
async def rail(database: Database, settings: Settings) -> AsyncIterator[Sandbox]:
    """The application's sandbox. Everything adds up after each test."""
    yield sandbox(database, settings)
    assert await verify(database) == []


async def pay(database: Database, rail: Sandbox, checkout_id: str, card: str = GOOD) -> None:
    """The customer enters a card on the hosted page."""
    await rail.enter_card(f"cs_{checkout_id}", card)
    await events.process(database, rail)


async def buy(client: Client, database: Database, rail: Sandbox, plan: str = "pro", coupon: str | None = None) -> str:
    begun = (await client.ask(START, plan=plan, coupon=coupon))["startCheckout"]
    await pay(database, rail, begun["id"])
    return str(begun["id"])


async def subscription(client: Client) -> Any:
    return (await client.ask(ME))["me"]["subscription"]


async def limits(client: Client) -> dict[str, int]:
    return {each["resource"]: each["limit"] for each in (await client.ask(ME))["me"]["usage"]}


async def test_a_plan_is_bought_at_the_price_that_was_shown(ada: Client, database: Database, rail: Sandbox) -> None:
    offer = await ada.ask(
        '{ coupon(code: "welcome20", planId: "pro") { code valid problem priceMinor discountMinor } }'
    )
    assert offer["coupon"] == {
        "code": "WELCOME20", "valid": True, "problem": None, "priceMinor": 2900, "discountMinor": 580,
    }  # fmt: skip
    begun = (await ada.ask(START, plan="pro", coupon="WELCOME20"))["startCheckout"]
    assert (begun["status"], begun["coupon"], begun["priceMinor"]) == ("OPEN", "WELCOME20", 2900)
    assert begun["url"].endswith(f"/sandbox/checkout/cs_{begun['id']}")
    assert (begun["quote"]["discountMinor"], begun["quote"]["dueMinor"]) == (580, 2320)
    await pay(database, rail, begun["id"])
    assert (await ada.ask(CHECKOUT, id=begun["id"]))["checkout"] == {"status": "PAID", "problem": None, "quote": None}
    bought = await subscription(ada)
    assert (bought["planId"], bought["status"], bought["priceMinor"]) == ("pro", "ACTIVE", 2900)
    assert (await limits(ada))["projects"] == 100
    found = await ada.ask(INVOICES)
    invoice, payment = found["invoices"]["nodes"][0], found["payments"]["nodes"][0]
    assert (invoice["status"], invoice["kind"], invoice["dueMinor"]) == ("PAID", "CHECKOUT", 2320)
    assert [line["amountMinor"] for line in invoice["lines"]] == [2900, -580]
    assert payment == {
        "amount": 23.2, "amountMinor": 2320, "currency": "USD", "status": "PAID", "failure": None,
        "invoiceId": invoice["id"],
    }  # fmt: skip
    assert (await ada.ask("query ($id: ID!) { invoice(id: $id) { number } }", id=invoice["id"]))["invoice"] == {
        "number": invoice["number"]
    }
    used = await ada.ask('{ coupon(code: "WELCOME20", planId: "pro") { valid problemCode discountMinor } }')
    assert used["coupon"] == {"valid": False, "problemCode": "COUPON_ALREADY_USED", "discountMinor": 0}


async def test_an_upgrade_costs_its_preview_and_a_declined_card_changes_nothing(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    await buy(ada, database, rail)
    shown = (await ada.ask(PREVIEW, plan="enterprise"))["previewChange"]
    assert shown["when"] == "NOW"
    change = "mutation ($plan: ID!) { changePlan(planId: $plan) { planId pendingPlanId } }"
    account = {"_id": ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])}
    good = await database.raw["billingaccounts"].find_one(account)
    assert good is not None
    await database.raw["billingaccounts"].update_one(account, {"$set": {"method.id": f"pm_{DECLINED}"}})
    assert (await ada.ask(change, plan="enterprise")).code == "PAYMENT_DECLINED"
    assert (await subscription(ada))["planId"] == "pro"
    await database.raw["billingaccounts"].update_one(account, {"$set": {"method": good["method"]}})
    assert (await ada.ask(change, plan="enterprise"))["changePlan"]["planId"] == "enterprise"
    assert (await limits(ada))["projects"] == -1 or (await limits(ada))["projects"] is None
    paid = [each for each in (await ada.ask(INVOICES))["payments"]["nodes"] if each["status"] == "PAID"]
    assert abs(paid[0]["amountMinor"] - shown["dueMinor"]) <= 1  # a second can lie in between


async def test_a_downgrade_waits_for_the_period_and_can_be_undone(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    await buy(ada, database, rail, "enterprise")
    changed = await ada.ask('mutation { changePlan(planId: "pro") { planId pendingPlanId } }')
    assert changed["changePlan"] == {"planId": "enterprise", "pendingPlanId": "pro"}
    back = await ada.ask("mutation { cancelPendingChange { pendingPlanId } }")
    assert back["cancelPendingChange"] == {"pendingPlanId": None}
    assert (await ada.ask("mutation { cancelPendingChange { id } }")).code == "CONFLICT"
    log = await database.raw["auditlogs"].find({"action": {"$regex": "^billing.plan"}}).sort("_id").to_list()
    assert [(each["action"], each["metadata"]["actor"]) for each in log] == [
        ("billing.plan.change_requested", "user"),
        ("billing.plan.change_withdrawn", "user"),
    ]


async def test_a_cancellation_can_be_undone_and_an_immediate_one_takes_effect_at_once(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    await buy(ada, database, rail)
    cancelled = await ada.ask("mutation { cancelSubscription(reason: UNUSED) { status autoRenew endDate periodEnd } }")
    found = cancelled["cancelSubscription"]
    assert (found["status"], found["autoRenew"], found["endDate"]) == ("ACTIVE", False, found["periodEnd"])
    resumed = (await ada.ask("mutation { resumeSubscription { autoRenew endDate } }"))["resumeSubscription"]
    assert resumed == {"autoRenew": True, "endDate": None}
    cancel_now = "mutation ($text: String) { cancelSubscription(when: NOW, comment: $text) { status } }"
    assert list((await ada.ask(cancel_now, text="x" * 1001)).fields) == ["comment"]
    ended = await ada.ask(cancel_now, text=" Too few colours. ")
    assert ended["cancelSubscription"] == {"status": "CANCELLED"}
    assert (await limits(ada))["projects"] == 3
    log = await database.raw["auditlogs"].find({"action": {"$regex": "^billing"}}).sort("_id").to_list()
    assert [each["action"] for each in log] == [
        "billing.subscription.started", "billing.subscription.cancelled", "billing.subscription.resumed",
        "billing.subscription.ended",
    ]  # fmt: skip
    assert (log[1]["metadata"]["reason"], log[3]["metadata"]["comment"]) == ("UNUSED", "Too few colours.")


async def test_a_repeated_request_begins_one_checkout(ada: Client, database: Database, rail: Sandbox) -> None:
    answers: list[Answer] = [await send(ada, START, "a-key", plan="pro") for _ in range(3)]
    assert len({each["startCheckout"]["id"] for each in answers}) == 1
    assert await database.raw["checkouts"].count_documents({}) == 1


async def test_a_key_that_may_only_read_billing_changes_nothing(ada: Client, database: Database, rail: Sandbox) -> None:
    await buy(ada, database, rail)
    reader = await key_of(ada, "billing:read")
    assert (await reader.ask(INVOICES))["invoices"]["nodes"]
    refused = await reader.ask("mutation { cancelSubscription { status } }")
    assert (refused.code, refused.fields) == ("SCOPE_MISSING", {"scope": "billing:write"})
    writer = await key_of(ada, "billing:write")
    assert (await writer.ask("mutation { cancelSubscription { autoRenew } }"))["cancelSubscription"] == {
        "autoRenew": False
    }


@pytest.mark.parametrize(
    ("code", "problem"),
    [("NONE", "COUPON_NOT_FOUND"), ("STUDENT50", "COUPON_NOT_APPLICABLE"), ("WELCOME20", "COUPON_EXHAUSTED")],
)
async def test_an_unusable_coupon_is_rejected_with_the_reason(
    ada: Client, database: Database, code: str, problem: str
) -> None:
    await database.raw["coupons"].update_one({"code": "WELCOME20"}, {"$set": {"maxUses": 1, "usedCount": 1}})
    query = 'query ($code: String!) { coupon(code: $code, planId: "enterprise") { valid problem problemCode } }'
    found = (await ada.ask(query, code=code))["coupon"]
    assert (found["valid"], found["problemCode"]) == (False, problem)
    assert code in found["problem"]
    await database.raw["coupons"].update_one({"code": "WELCOME20"}, {"$set": {"usedCount": 0}})


async def test_a_coupon_on_a_running_subscription_takes_effect_with_the_upcoming_invoice(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    upcoming = "{ upcomingInvoice { at planId quote { dueMinor discountMinor } } }"
    assert (await ada.ask(upcoming))["upcomingInvoice"] is None
    await buy(ada, database, rail)
    apply = "mutation ($code: String!) { applyCoupon(code: $code) { planId priceMinor } }"
    assert (await ada.ask(apply, code="NONE")).code == "COUPON_NOT_FOUND"
    assert (await ada.ask(apply, code="welcome20"))["applyCoupon"] == {"planId": "pro", "priceMinor": 2900}
    assert (await ada.ask(apply, code="WELCOME20")).code == "COUPON_ALREADY_USED"
    end = (await subscription(ada))["periodEnd"]
    assert (await ada.ask(upcoming))["upcomingInvoice"] == {
        "at": end, "planId": "pro", "quote": {"dueMinor": 2320, "discountMinor": 580},
    }  # fmt: skip
    await ada.ask("mutation { cancelSubscription { id } }")
    assert (await ada.ask(upcoming))["upcomingInvoice"] is None


async def test_billing_details_are_on_the_next_invoice_and_checked_by_name(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    assert (await ada.ask("{ billingDetails { name country } }"))["billingDetails"] == {"name": None, "country": None}
    update = "mutation ($input: BillingDetailsInput!) { updateBillingDetails(input: $input) { name country vatId } }"
    given = {"name": "Analytical Engines", "address": "1 Street\nBerlin", "country": "de", "vatId": "DE 136 695 976"}
    for wrong, field in (
        ({"country": "XX"}, "country"),
        ({"vatId": "DE136695977"}, "vatId"),
        ({"name": "x" * 201}, "name"),
    ):
        refused = await ada.ask(update, input=given | wrong)
        assert (refused.code, list(refused.fields)) == ("INVALID", [field])
    saved = (await ada.ask(update, input=given))["updateBillingDetails"]
    assert saved == {"name": "Analytical Engines", "country": "DE", "vatId": "DE136695976"}
    await buy(ada, database, rail)
    (invoice,) = (await ada.ask("{ invoices { nodes { buyerName buyerAddress buyerCountry buyerVatId } } }"))[
        "invoices"
    ]["nodes"]
    assert invoice == {
        "buyerName": "Analytical Engines", "buyerAddress": "1 Street\nBerlin", "buyerCountry": "DE",
        "buyerVatId": "DE136695976",
    }  # fmt: skip


async def test_a_payment_method_is_removed_once_it_is_not_needed(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    await buy(ada, database, rail)
    (method,) = (await ada.ask("{ paymentMethods { id label } }"))["paymentMethods"]
    remove = "mutation ($id: ID!) { removePaymentMethod(id: $id) }"
    assert (await ada.ask(remove, id=method["id"])).code == "PAYMENT_METHOD_NEEDED"
    assert (await ada.ask(remove, id="pm_other")).code == "NOT_FOUND"
    await ada.ask("mutation { cancelSubscription { id } }")
    assert (await ada.ask(remove, id=method["id"]))["removePaymentMethod"] is True
    assert (await ada.ask("{ paymentMethods { id } }"))["paymentMethods"] == []


async def test_reading_costs_few_round_trips(ada: Client, database: Database, rail: Sandbox) -> None:
    await buy(ada, database, rail)
    await ada.ask(INVOICES)  # gives the invoice its number
    app: Any = ada.app
    for query, most in ((PREVIEW, 3), ("{ invoices { nodes { number } } }", 1), ("{ payments { nodes { id } } }", 1)):
        await app._app.state.feed.caught_up()
        with round_trips() as trips:
            (await ada.ask(query, **({"plan": "enterprise"} if query is PREVIEW else {})))
        assert len(trips) <= most, (query, trips)


async def test_of_many_checkouts_paid_at_once_one_is_bought(ada: Client, database: Database, rail: Sandbox) -> None:
    begun = [(await ada.ask(START, plan="pro"))["startCheckout"]["id"] for _ in range(4)]
    await asyncio.gather(*(pay(database, rail, each) for each in begun))
    statuses = [(await ada.ask(CHECKOUT, id=each))["checkout"]["status"] for each in begun]
    assert statuses.count("PAID") == 1
    assert (await ada.ask(START, plan="pro")).code == "ALREADY_SUBSCRIBED"


async def test_guessed_coupon_codes_are_limited_also_within_one_request(ada: Client, rail: Sandbox) -> None:
    guesses = " ".join(f'g{n}: coupon(code: "GUESS{n}", planId: "pro") {{ problemCode }}' for n in range(15))
    assert (await ada.ask(f"{{ {guesses} }}")).code == "TOO_MANY_ATTEMPTS"
    for field in (
        'coupon(code: "WELCOME20", planId: "pro") { valid }',
        'previewChange(planId: "pro", coupon: "A") { at }',
    ):
        assert (await ada.ask(f"{{ {field} }}")).code == "TOO_MANY_ATTEMPTS"
    for verb in ('applyCoupon(code: "A")', 'changePlan(planId: "pro", coupon: "A")'):
        assert (await ada.ask(f"mutation {{ {verb} {{ id }} }}")).code == "TOO_MANY_ATTEMPTS"
    assert (await ada.ask(START, plan="pro", coupon="WELCOME20")).code == "TOO_MANY_ATTEMPTS"
    assert (await ada.ask(START, plan="pro"))["startCheckout"]["status"] == "OPEN"


async def test_subscription_and_usage_are_the_same_together_and_apart(ada: Client, database: Database) -> None:
    user_id = ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])
    await ada.create("one")  # which makes the gauge: usage is read with the subscriptions from now on
    subscription, usage = "subscription { planId status priceMinor startDate plan { name } }", "usage { used limit }"

    async def check(plan: str | None, projects: int | None) -> None:
        apart = [(await ada.ask(f"{{ me {{ {field} }} }}"))["me"] for field in (subscription, usage)]
        for _ in range(2):  # the first may read apart
            with round_trips() as trips:
                together = (
                    await ada.ask(f"{{ a: me {{ {usage} {subscription} }} me {{ {subscription} {usage} }} }}")
                ).data
            assert together == {"a": apart[1] | apart[0], "me": apart[0] | apart[1]}
        assert ("find", "subscriptions") not in trips
        assert (apart[0]["subscription"] or {}).get("planId") == plan
        assert apart[1]["usage"][0]["limit"] == projects

    stored = {"userId": user_id, "startDate": database.clock.now(), "price": 29, "createdAt": database.clock.now()}
    await check(None, 3)
    await database.raw["subscriptions"].insert_one({**stored, "planId": "pro", "status": "EXPIRED"})
    await check("pro", 3)
    await database.raw["subscriptions"].insert_one({**stored, "planId": "enterprise", "status": "PAST_DUE"})
    await check("enterprise", None)
