"""`verify` finds what contradicts itself."""

from typing import Any

from bson import ObjectId
from tests.billing.conftest import Buy

from ximler.billing import invoices
from ximler.billing.sandbox import Sandbox
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.subscription import Subscription


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
