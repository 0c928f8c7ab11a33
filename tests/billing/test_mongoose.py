"""A database with users, subscriptions, payments and coupons that a Mongoose application wrote,
some of which Stripe bills."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.billing.conftest import Buy, deliver
from tests.billing.peer import Peer
from tests.mongoose.peer import Application
from tests.mongoose.peer import Peer as Node

from ximler.billing import account, events, run
from ximler.billing.coupons import CouponExhausted
from ximler.billing.redemptions import reserve
from ximler.billing.sandbox import Sandbox
from ximler.billing.stripe import Stripe
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering.limits import entitlements
from ximler.schema.charge import CHARGES
from ximler.schema.invoice import INVOICES
from ximler.schema.plan import Plan

BEGAN = datetime(2026, 1, 31, tzinfo=UTC)
SUBSCRIPTIONS: list[dict[str, Any]] = [
    {"status": "ACTIVE"},
    {"status": "ACTIVE", "price": 29.99, "endDate": BEGAN + timedelta(days=30)},  # over, and nobody wrote it
    {"status": "PAST_DUE", "currency": "JPY", "price": 2980},
    {"status": "CANCELLED", "autoRenew": False, "endDate": BEGAN},
    {"status": "EXPIRED"},
]


@pytest.fixture(scope="module")
async def node(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    node = await Node.start(mongodb_uri, tmp_path_factory.mktemp("mongoose"))
    yield node
    await node.close()


@pytest.fixture
async def app(node: Node, database: Database) -> Application:
    """Five users with a subscription and payments each, and a coupon of which one use is left."""
    app = Application(node, database.name, unbound=False)
    for number, values in enumerate(SUBSCRIPTIONS):
        await _customer(app, f"{number}@example.com", values)
    window = {"validFrom": BEGAN, "validUntil": datetime(2100, 1, 1, tzinfo=UTC)}
    coupon = {"code": "OLD", "name": "Old", "type": "FIXED", "value": 9.5, "maxUses": 5, "usedCount": 4, **window}
    await app.create("Coupon", coupon)
    return app


async def _customer(app: Application, email: str, values: dict[str, Any]) -> ObjectId:
    user = (await app.create("User", {"name": "Ada", "email": email, "password": "-"}))["_id"]
    row = {"userId": user, "planId": "pro", "startDate": BEGAN, "price": 29, **values}
    made = (await app.create("Subscription", row))["_id"]
    for amount, status in ((29.99, "PAID"), (0.1, "FAILED"), (5_000_000_000, "REFUNDED"), (29, "PENDING")):
        payment = {"userId": user, "subscriptionId": made, "amount": amount, "status": status, "paidAt": BEGAN}
        await app.create("Payment", payment)
    return ObjectId(user)


async def _written(database: Database) -> dict[str, Any]:
    return {name: await database.raw[name].find({}).sort("_id").to_list() for name in ("subscriptions", "payments")}


@pytest.mark.slow
async def test_billing_changes_nothing_that_another_application_wrote(
    app: Application, database: Database, rail: Sandbox, pro: Plan, ada: Actor, buy: Buy
) -> None:
    before = await _written(database)
    database.clock.offset_ms += timedelta(days=400) // timedelta(milliseconds=1)
    assert (await run.run(database, rail)).steps == 0
    assert await events.process(database, rail) == 0
    assert await _written(database) == before
    assert await verify(database) == []
    assert [await database[each].count({}) for each in (CHARGES, INVOICES)] == [0, 0]
    plans = await entitlements.resolve(database, [each["userId"] for each in before["subscriptions"]])
    assert [plans[each["userId"]].plan_id for each in before["subscriptions"]] == ["pro", "pro", "pro", "free", "free"]
    await reserve(database, ada, "old", plan=pro)
    with pytest.raises(CouponExhausted):
        await reserve(database, Actor(kind="user", via="session", user_id=ObjectId()), "old", plan=pro)
    await buy(ada, "pro")  # and beside them Ximler sells, and bills
    assert await database[INVOICES].count({"userId": ada.user_id}) == 1


async def test_a_subscription_of_theirs_that_stripe_bills_is_mirrored_and_never_billed(
    app: Application, database: Database, stripe: Stripe, peer: Peer
) -> None:
    theirs = peer.subscribe("price_pro_monthly", 2900)
    user_id = await _customer(app, "stripe@example.com", {"status": "ACTIVE", "stripeSubscriptionId": theirs.id})
    await deliver(database, stripe, peer)
    database.clock.offset_ms += timedelta(days=70) // timedelta(milliseconds=1)
    assert (await run.run(database, stripe)).steps == 0
    found = await database.raw["payments"].find({"userId": user_id}).to_list()
    assert [each["amount"] for each in found if each.get("stripeInvoiceId")] == [29]  # Stripe's one, beside their four
    assert (len(found), len(peer.ids("payment_intent"))) == (5, 1)
    theirs._api_delete(theirs.id)
    await deliver(database, stripe, peer)
    (row,) = await database.raw["subscriptions"].find({"userId": user_id}).to_list()
    assert (row["status"], row["__v"]) == ("CANCELLED", 0)
    assert (await account.find(database, user_id)).subscription_id is None
