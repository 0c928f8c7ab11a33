"""Invoices are numbered without a gap."""

import asyncio
from datetime import timedelta

import msgspec
import pytest
from bson import ObjectId
from tests.billing.conftest import Buy, Buyer
from tests.billing.test_refunds import refund

from ximler.billing import invoices
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.business import Business
from ximler.database import Database
from ximler.schema.invoice import INVOICES


@pytest.mark.slow
async def test_invoice_numbers_have_no_gap_with_several_workers(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    for _ in range(7):
        await buy(await buyer())
    await asyncio.gather(*(invoices.number(database) for _ in range(6)))
    found = await database[INVOICES].find({"year": {"$gt": 0}})
    assert sorted(each.serial or 0 for each in found) == list(range(1, 8))


async def test_an_invoice_and_its_credit_note_keep_the_parties_of_their_time(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "business", Business(seller="Acme Ltd; London"))
    await buy(ada)
    monkeypatch.setattr(database, "business", Business(seller="Acme Inc; Boston"))
    await database.users.patch({"_id": ada.user_id}, {"$set": {"name": "Grace"}})
    await refund(database, rail, ada)
    found = (await invoices.page(database, ada)).items
    assert [(each.seller, each.buyer_name) for each in found] == [("Acme Ltd; London", "Ada")] * 2


@pytest.mark.slow
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
