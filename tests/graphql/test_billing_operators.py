"""Billing as operators use it over GraphQL."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.graphql.test_billing import buy, rail
from tests.graphql.test_operators import grace, id_of
from tests.serving import Client

from ximler.billing import run
from ximler.billing.sandbox import Sandbox
from ximler.database import Database

__all__ = ["grace", "rail"]  # the fixtures

BILLING = """query ($id: ID!) { userBilling(userId: $id) {
  subscription { planId status } upcomingInvoice { quote { dueMinor } }
  creditBalance { currency balanceMinor } paymentMethods { label }
  invoices { number kind totalMinor } payments { id status amountMinor refundedMinor } refunds { paymentId status amountMinor }
  redemptions { code status }
} }"""
REFUND = """mutation ($input: RefundPaymentInput!) { refundPayment(input: $input) { status amountMinor to } }"""
CREDIT = "mutation ($input: GrantCreditInput!) { grantCredit(input: $input) { currency balanceMinor } }"
COUPON = "code type value valueMinor currency maxUses applicablePlans active duration durationPeriods"
CREATE = f"mutation ($input: CreateCouponInput!) {{ createCoupon(input: $input) {{ {COUPON} }} }}"
EDIT = (
    f"mutation ($code: String!, $input: EditCouponInput!) {{ editCoupon(code: $code, input: $input) {{ {COUPON} }} }}"
)


@pytest.mark.slow
async def test_an_operator_reads_a_users_billing_refunds_and_grants_credit(
    grace: Client, ada: Client, database: Database, rail: Sandbox
) -> None:
    await buy(ada, database, rail, coupon="WELCOME20")
    ada_id = await id_of(ada)
    seen = (await grace.ask(BILLING, id=ada_id))["userBilling"]
    assert seen["subscription"] == {"planId": "pro", "status": "ACTIVE"}
    assert [each["totalMinor"] for each in seen["invoices"]] == [2320]
    assert seen["upcomingInvoice"] == {"quote": {"dueMinor": 2900}}
    assert seen["redemptions"] == [{"code": "WELCOME20", "status": "CONFIRMED"}]
    given = {"userId": ada_id, "paymentId": seen["payments"][0]["id"], "reason": "Asked for", "key": "t1"}
    for _ in range(2):
        made = (await grace.ask(REFUND, input=given | {"amountMinor": 1000}))["refundPayment"]
        assert made == {"status": "SUCCEEDED", "amountMinor": 1000, "to": "CARD"}
    too_much = await grace.ask(REFUND, input=given | {"amountMinor": 1321, "key": "t2"})
    assert (too_much.code, list(too_much.fields)) == ("REFUND_TOO_HIGH", ["amountMinor"])
    rest = await grace.ask(REFUND, input=given | {"to": "BALANCE", "key": "t3"})
    assert rest["refundPayment"]["amountMinor"] == 1320
    credit = {"userId": ada_id, "amountMinor": 500, "currency": "usd", "reason": "Sorry", "key": "c1"}
    for _ in range(2):
        assert (await grace.ask(CREDIT, input=credit))["grantCredit"] == {"currency": "USD", "balanceMinor": 1820}
    for wrong, field in (
        ({"amountMinor": 0}, "amountMinor"),
        ({"currency": "XXX"}, "currency"),
        ({"reason": " "}, "reason"),
    ):
        assert list((await grace.ask(CREDIT, input=credit | wrong)).fields) == [field]
    seen = (await grace.ask(BILLING, id=ada_id))["userBilling"]
    assert [each["amountMinor"] for each in seen["refunds"]] == [1320, 1000]
    assert (seen["payments"][0]["status"], seen["payments"][0]["refundedMinor"]) == ("REFUNDED", 2320)
    log = await database.raw["auditlogs"].find({"userId": ObjectId(ada_id), "metadata.actor": "operator"}).to_list()
    assert {each["action"] for each in log} == {
        "accounts.user.viewed", "billing.payment.refunded", "billing.credit.granted",
    }  # fmt: skip
    assert (await grace.ask(BILLING, id=str(ObjectId()))).code == "NOT_FOUND"


async def test_an_operator_creates_edits_and_ends_a_coupon(grace: Client) -> None:
    terms: dict[str, Any] = {"code": "spring", "type": "FIXED", "value": 4.5, "validUntil": "2999-01-01T00:00:00Z"}
    made = (await grace.ask(CREATE, input=terms | {"maxUses": 3, "applicablePlans": ["pro"]}))["createCoupon"]
    assert made == {
        "code": "SPRING", "type": "FIXED", "value": 4.5, "valueMinor": 450, "currency": "USD", "maxUses": 3,
        "applicablePlans": ["pro"], "active": True, "duration": "ONCE", "durationPeriods": None,
    }  # fmt: skip
    assert (await grace.ask(CREATE, input=terms)).code == "CONFLICT"
    change: dict[str, Any] = {"type": "PERCENTAGE", "value": 15, "maxUses": None, "applicablePlans": None}
    changed = (await grace.ask(EDIT, code="SPRING", input=change))["editCoupon"]
    assert [changed[name] for name in ("value", "valueMinor", "maxUses", "applicablePlans")] == [15, None, None, []]
    for wrong, field in (
        ({"value": -50}, "value"), ({"value": None}, "value"), ({"currency": "XXX"}, "currency"),
        ({"duration": "REPEATING"}, "durationPeriods"), ({"applicablePlans": ["gold"]}, "applicablePlans"),
        ({"validUntil": "2020-01-01T00:00:00Z"}, "validUntil"), ({"validFrom": None}, "validFrom"),
    ):  # fmt: skip
        refused = await grace.ask(EDIT, code="SPRING", input=wrong)
        assert (refused.code, list(refused.fields)) == ("INVALID", [field])
    ended = await grace.ask('mutation { endCoupon(code: "spring") { active } }')
    assert ended["endCoupon"] == {"active": False}
    listed = await grace.ask("{ coupons(active: true) { nodes { code } } }")
    assert "SPRING" not in {each["code"] for each in listed["coupons"]["nodes"]}


@pytest.mark.slow
async def test_an_operator_creates_edits_and_retires_a_plan_without_a_change_for_its_subscribers(
    grace: Client, ada: Client, database: Database, rail: Sandbox
) -> None:
    plan = "id price priceMinor currency interval features limits { projects storage apiCalls } trialDays active"
    create = f"mutation ($input: CreatePlanInput!) {{ createPlan(input: $input) {{ {plan} }} }}"
    edit = f"mutation ($id: ID!, $input: EditPlanInput!) {{ editPlan(id: $id, input: $input) {{ {plan} }} }}"
    terms: dict[str, Any] = {
        "id": "team", "name": "Team", "price": 49.5, "interval": "MONTH",
        "limits": {"projects": 10, "storage": 5, "apiCalls": 1000},
    }  # fmt: skip
    for wrong, field in (
        ({"id": "Team!"}, "id"), ({"name": " "}, "name"), ({"price": -1}, "price"), ({"price": 1.234}, "price"),
        ({"currency": "XXX"}, "currency"), ({"trialDays": -1}, "trialDays"), ({"features": [""]}, "features"),
        ({"limits": terms["limits"] | {"apiCalls": -2}}, "apiCalls"),
    ):  # fmt: skip
        refused = await grace.ask(create, input=terms | wrong)
        assert (refused.code, list(refused.fields)) == ("INVALID", [field])
    made = (await grace.ask(create, input=terms))["createPlan"]
    assert (made["priceMinor"], made["limits"], made["active"]) == (4950, terms["limits"], True)
    assert (await grace.ask(create, input=terms)).code == "CONFLICT"

    await buy(ada, database, rail, "team")
    edited = await grace.ask(edit, id="team", input={"price": 60, "limits": {"projects": 20}, "trialDays": 14})
    assert edited["editPlan"]["limits"] == terms["limits"] | {"projects": 20}
    for wrong, field in (({"price": None}, "price"), ({"limits": {"storage": -5}}, "storage")):
        assert list((await grace.ask(edit, id="team", input=wrong)).fields) == [field]
    retired = await grace.ask('mutation { retirePlan(id: "team") { active } }')
    assert retired["retirePlan"] == {"active": False}
    me = (await ada.ask("{ me { subscription { status priceMinor } } plans { id } }")).data
    assert me["me"]["subscription"] == {"status": "ACTIVE", "priceMinor": 4950}
    assert "team" not in {each["id"] for each in me["plans"]}
    assert (
        await ada.ask('mutation { startCheckout(planId: "team", returnUrl: "http://localhost/") { id } }')
    ).code == "NOT_FOUND"
    assert [each["id"] for each in (await grace.ask("{ planCatalogue { id } }"))["planCatalogue"]][-1] == "team"
    assert list((await grace.ask('mutation { retirePlan(id: "free") { id } }')).fields) == ["active"]
    assert list((await grace.ask(edit, id="free", input={"price": 1})).fields) == ["price"]
    assert (await grace.ask(edit, id="none", input={})).code == "NOT_FOUND"
    log = await database.raw["auditlogs"].find({"resource": "plans"}).sort("_id").to_list()
    assert [each["action"] for each in log] == ["billing.plan.created", "billing.plan.edited", "billing.plan.retired"]
    assert log[1]["metadata"]["after"] == {
        "price": 60, "limits": terms["limits"] | {"projects": 20}, "trialDays": 14,
    }  # fmt: skip


@pytest.mark.slow
async def test_an_operator_extends_marks_as_paid_and_reprices(
    grace: Client, ada: Client, database: Database, rail: Sandbox
) -> None:
    await buy(ada, database, rail)
    ada_id = await id_of(ada)
    until = (database.clock.now() + timedelta(days=45)).replace(microsecond=0)
    given = {"userId": ada_id, "until": until.isoformat(), "reason": "Outage"}
    extend = "mutation ($input: ExtendSubscriptionInput!) { extendSubscription(input: $input) { periodEnd } }"
    assert (await grace.ask(extend, input=given))["extendSubscription"]["periodEnd"].startswith(f"{until:%Y-%m-%d}")
    assert list((await grace.ask(extend, input=given | {"reason": ""})).fields) == ["reason"]
    assert list((await grace.ask(extend, input=given | {"until": "2020-01-01T00:00:00Z"})).fields) == ["until"]

    await grace.ask('mutation { editPlan(id: "pro", input: {price: 39}) { id } }')
    reprice = 'mutation ($dry: Boolean!) { repricePlan(id: "pro", dryRun: $dry) { priceMinor moved already } }'
    for dry in (True, False):
        assert (await grace.ask(reprice, dry=dry))["repricePlan"] == {"priceMinor": 3900, "moved": 1, "already": 0}
    assert (await grace.ask(reprice, dry=False))["repricePlan"]["already"] == 1
    assert (await ada.ask("{ upcomingInvoice { quote { dueMinor } } }"))["upcomingInvoice"]["quote"]["dueMinor"] == 3900

    await database.raw["billingaccounts"].update_many({}, {"$set": {"method.id": "pm_4000000000009995"}})
    database.clock.offset_ms += 46 * 86_400_000
    await run.run(database, rail)
    database.clock.offset_ms = 0
    (unpaid, _) = (await ada.ask("{ invoices { nodes { id status } } }"))["invoices"]["nodes"]
    assert unpaid["status"] == "OPEN"
    mark = "mutation ($input: MarkInvoicePaidInput!) { markInvoicePaid(input: $input) { status amountMinor } }"
    paid = {"userId": ada_id, "invoiceId": unpaid["id"], "method": "bank transfer", "reason": "Statement"}
    assert (await grace.ask(mark, input=paid))["markInvoicePaid"] == {"status": "PAID", "amountMinor": 3900}
    assert (await ada.ask("{ me { subscription { status } } }"))["me"]["subscription"]["status"] == "ACTIVE"
