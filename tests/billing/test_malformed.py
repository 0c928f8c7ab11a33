"""Malformed documents hold up their own user only."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from tests.billing.conftest import Buy, Buyer, subscription

from ximler.billing import invoices, renewals, run
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.database import Database

LATER = datetime(2100, 1, 1, tzinfo=UTC)


async def _insert(database: Database, collection: str, **document: Any) -> None:
    """Past the validator, as a restored backup of another schema would be."""
    await database.raw[collection].insert_one(document, bypass_document_validation=True)


@pytest.mark.slow
async def test_one_account_that_fails_does_not_hold_up_renewals(
    database: Database, rail: Sandbox, ada: Actor, buyer: Buyer, buy: Buy
) -> None:
    await buy(ada)
    end = (await subscription(database, ada)).period_end
    assert end is not None
    database.clock.offset_ms += to_ms(end) - database.clock.now_ms() + 1000
    broken: list[dict[str, Any]] = [
        {"subscriptionId": ObjectId()},  # without terms
        {"period": "x"},  # unreadable
        {"revision": "x"},  # refuses every change
    ]
    ids = [(await buyer()).user_id for _ in broken]
    for user_id, document in zip(ids, broken, strict=True):
        await _insert(database, "billingaccounts", _id=user_id, **{"nextAt": end} | document)
    await run.run(database, rail)
    renewed = await subscription(database, ada)
    await database.raw["billingaccounts"].delete_many({"_id": {"$in": ids}})
    assert renewed.period_end is not None
    assert renewed.period_end > end


async def test_an_account_that_does_not_come_to_rest_ends_no_run(
    database: Database, rail: Sandbox, buyer: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = (await buyer()).user_id
    await _insert(database, "billingaccounts", _id=user_id, nextAt=database.clock.now())

    async def decide(*_: object) -> bool:
        return True

    monkeypatch.setattr(renewals, "_decide", decide)
    async with asyncio.timeout(20):
        result = await run.run(database, rail)
    found = await database.raw["billingaccounts"].find_one_and_delete({"_id": user_id})
    assert (result.steps, result.waiting) == (renewals.MOST_STEPS, 1)
    assert found is not None
    assert found["nextAt"].replace(tzinfo=UTC) > database.clock.now()


async def test_malformed_events_do_not_hold_up_others(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    due = database.clock.now()
    await _insert(database, "billingevents", _id="evt_1", kind=5, objectId="x", tries=0, dueAt=due)
    await _insert(database, "billingevents", _id="evt_2", kind="intent.changed", objectId="x", tries="no", dueAt=due)
    checkout = await buy(ada)
    assert checkout.status == "PAID"


async def test_an_unreadable_invoice_does_not_hold_up_numbers(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    year, invoice_id = database.clock.now().year, ObjectId()
    await _insert(database, "invoices", _id=invoice_id, year=year, issuedAt=LATER, serial=None, userId="x")
    await buy(ada)
    found = await invoices.page(database, ada)
    await database.raw["invoices"].delete_one({"_id": invoice_id})
    await database.raw["invoicenumbers"].update_one({"_id": year}, {"$inc": {"last": -1}})
    assert [each.serial for each in found.items] == [1]


@pytest.mark.slow
async def test_a_coupon_that_cannot_be_swept_does_not_hold_up_the_rest(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    pending = {"$set": {"pending": {"x": 1}}}
    await database.raw["coupons"].update_one({"code": "WELCOME20"}, pending, bypass_document_validation=True)
    await buy(ada)
    result = await run.run(database, rail)
    await database.raw["coupons"].update_one({"code": "WELCOME20"}, {"$unset": {"pending": 1}})
    assert result.invoices == 1
