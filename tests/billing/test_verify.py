"""`verify` finds contradictions, and names them."""

import re
from typing import Any

import pytest
from bson import ObjectId
from tests.billing.conftest import OPERATOR, Buy

from ximler.billing import invoices, redemptions, refunds
from ximler.billing.sandbox import Sandbox
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.subscription import Subscription

# Collection, document, planted error, and the sentence that names it.
PLANTED: list[tuple[str, dict[str, Any], Any, str]] = [
    ("coupons", {"code": "WELCOME20"}, {"$inc": {"usedCount": 1}}, "usedCount is 2, and 1 redemptions are counted"),
    ("coupons", {"code": "WELCOME20"}, {"$set": {"maxUses": 0}}, "usedCount 1 exceeds maxUses 0"),
    ("redemptions", {}, None, "usedCount is 1, and 0 redemptions"),
    ("invoices", {"serial": 1}, {"$set": {"serial": 7}}, r"Invoices of \d+: 2 follows 0"),
    ("invoices", {"serial": 2}, {"$set": {"serial": 1}}, r"Invoices of \d+: 1 follows 1"),
    ("invoices", {"serial": 2}, None, r"the last number is 1, and the counter 2"),
    ("invoices", {"kind": "CHECKOUT"}, {"$set": {"dueMinor": 1}}, r"is PAID for 0\.01 USD, and 2320 was kept"),
    ("invoices", {"kind": "CHECKOUT"}, {"$set": {"status": "VOID"}}, r"is VOID for 23\.20 USD, and 2320 was kept"),
    ("invoices", {"kind": "CHECKOUT"}, {"$set": {"lines": []}}, "its lines add up to 0, and 2320 is due"),
    ("invoices", {"kind": "CHECKOUT"}, {"$set": {"totalMinor": 1}}, "total, due and balance contradict each other"),
    ("invoices", {"kind": "CHECKOUT"}, {"$set": {"periodStart": None}}, "period 0 has no invoice"),
    ("invoices", {"kind": "CREDIT_NOTE"}, None, "the credit note of refund .* is missing"),
    ("invoices", {"kind": "CREDIT_NOTE"}, {"$set": {"status": "VOID"}}, "the credit note of refund .* says something else"),
    ("billingaccounts", {}, {"$inc": {"balances.USD": 5}}, "the balance is 105 USD, its entries add up to 100"),
    ("billingaccounts", {}, {"$set": {"balances.EUR": 5}}, "the balance is 5 EUR, its entries add up to 0"),
    ("credits", {}, {"$inc": {"amountMinor": 5}}, "the balance is 100 USD, its entries add up to 105"),
    ("billingaccounts", {}, {"$set": {"period": 1}}, "period 1 has no invoice"),
    ("payments", {}, {"$set": {"status": "FAILED"}}, "the payment of charge .* is not PAID, or of another amount"),
    ("payments", {}, {"$set": {"amount": 23}}, "the payment of charge .* is not PAID, or of another amount"),
    ("charges", {}, None, "payment .* of an invoice has no charge"),
    ("charges", {}, {"$set": {"status": "PENDING"}}, r"is PAID for 23\.20 USD, and 0 was kept"),
    ("charges", {}, {"$set": {"refundedMinor": 1}}, "counts 1 refunded, not 100"),
    ("charges", {}, {"$set": {"amountMinor": 99}}, "was refunded beyond its amount"),
    ("refunds", {}, None, "credit note .* belongs to no refund"),
    ("refunds", {}, {"$set": {"amountMinor": 99}}, "counts 100 refunded, not 99"),
    ("subscriptions", {}, {"$set": {"status": "EXPIRED"}}, "the account's subscription is not live"),
    ("subscriptions", {}, {"$set": {"price": 1}}, "the subscription's price is 100, and the account's 2900"),
    ("subscriptions", {}, {"$set": {"autoRenew": False}}, "the subscription's autoRenew is False"),
    ("subscriptions", {}, {"$set": {"status": "PAST_DUE"}}, "status is PAST_DUE, and the account's ACTIVE"),
    ("entitlements", {}, {"$set": {"planId": "enterprise"}}, "limits are of enterprise, and the plan is pro"),
]  # fmt: skip


@pytest.mark.slow
async def test_verify_finds_and_names_each_planted_error(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, coupon="WELCOME20")
    (payment,) = await database.payments.find({"userId": ada.user_id})
    await refunds.refund(
        database, rail, OPERATOR, user_id=ada.require_user(), payment_id=payment.id, amount_minor=100, to="BALANCE",
        reason="-",
    )  # fmt: skip
    await invoices.number(database)
    await redemptions.sweep(database)  # so that the coupon has no use under way
    for name, where, update, sentence in PLANTED:
        before = await database.raw[name].find_one(where)
        assert before is not None
        if update is None:
            await database.raw[name].delete_one({"_id": before["_id"]})
        else:
            await database.raw[name].update_one({"_id": before["_id"]}, update)
        found = await verify(database)
        assert any(re.search(sentence, problem) for problem in found), (name, update, found)
        await database.raw[name].replace_one({"_id": before["_id"]}, before, upsert=True)
    assert await verify(database) == []


@pytest.mark.slow
async def test_two_live_subscriptions_are_found(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
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
    assert any("2 live subscriptions" in problem for problem in await verify(database))
    await database.subscriptions.delete({"userId": ada.user_id, "periodStart": None})
