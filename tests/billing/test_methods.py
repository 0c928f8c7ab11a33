"""Payment methods of running subscriptions: a new one is tried at once, and users pay open invoices."""

import asyncio
from datetime import timedelta

import pytest
from tests.billing.conftest import (
    GOOD,
    HARD,
    OTHER,
    SOFT,
    Buy,
    Buyer,
    at,
    card_of,
    last_invoice,
    paid,
    renewed_with,
    subscription,
)

from ximler.billing import checkouts, events, invoices, methods, run, subscriptions
from ximler.billing.payments import PaymentDeclined
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS


async def new_card(database: Database, rail: Sandbox, settings: Settings, actor: Actor, number: str) -> str:
    """Its status, once the customer has entered it."""
    begun = await checkouts.change_card(database, rail, settings, actor, return_url="http://localhost/back")
    await rail.enter_card(str(begun.session_id), number)
    await asyncio.gather(*(checkouts.complete(database, rail, begun.id) for _ in range(3)))
    await events.process(database, rail)
    return (await checkouts.get(database, actor, begun.id)).status


async def test_a_new_card_is_tried_at_once_after_one_that_was_declined_for_good(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=HARD)
    assert (await methods.of_user(database, ada))[0].declined
    assert await new_card(database, rail, settings, ada, OTHER) == "PAID"
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert await paid(database, ada) == [2900, 2900]
    (method,) = await methods.of_user(database, ada)
    assert (method.label, method.declined) == ("Test card 4444", False)
    (entry,) = await database.audit_logs.find({"action": "billing.method.changed"})
    assert (entry.metadata["actor"], entry.user_id) == ("user", ada.user_id)


async def test_a_card_that_is_declined_for_good_after_it_was_replaced_says_nothing_about_the_new_one(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    await card_of(database, ada, HARD)
    rail.fault = lambda verb: "down" if verb == "confirm" else None
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    assert await new_card(database, rail, settings, ada, OTHER) == "PAID"
    rail.fault = lambda verb: None
    database.clock.offset_ms += 6 * 60_000
    await run.run(database, rail)
    assert [each.status for each in await database.payments.find({"userId": ada.user_id})] == ["PAID", "FAILED", "PAID"]
    assert (await methods.of_user(database, ada))[0].declined is False
    assert (await subscription(database, ada)).status == "ACTIVE"


async def test_a_new_card_costs_nothing_while_nothing_is_unpaid(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    with pytest.raises(NotFound):
        await new_card(database, rail, settings, ada, OTHER)
    await buy(ada)
    assert await new_card(database, rail, settings, ada, OTHER) == "PAID"
    assert await paid(database, ada) == [2900]


async def test_an_unpaid_invoice_is_paid_once_however_often_it_is_asked_for(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    invoice = await last_invoice(database, ada)
    with pytest.raises(PaymentDeclined, match="insufficient funds"):
        await methods.pay(database, rail, ada, invoice.id)
    assert (await subscription(database, ada)).status == "PAST_DUE"
    assert (await database[BILLING_ACCOUNTS].get(ada.require_user())).retries == 0
    await card_of(database, ada, GOOD)
    await asyncio.gather(*(methods.pay(database, rail, ada, invoice.id) for _ in range(5)), return_exceptions=True)
    assert (await methods.pay(database, rail, ada, invoice.id)).status == "PAID"
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert await paid(database, ada) == [2900, 2900]


async def test_a_void_invoice_cannot_be_paid(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    await subscriptions.cancel(database, ada)
    void = (await invoices.page(database, ada)).items[0]
    with pytest.raises(Conflict, match="void"):
        await methods.pay(database, rail, ada, void.id)


async def test_a_payment_method_can_be_removed_once_no_period_will_be_charged_to_it(
    database: Database, rail: Sandbox, ada: Actor, buyer: Buyer, buy: Buy
) -> None:
    await buy(ada)
    (method,) = await methods.of_user(database, ada)
    with pytest.raises(methods.MethodNeeded, match="Pro is charged to Test card 4242: replace it, or cancel"):
        await methods.remove(database, ada, method.id)
    await subscriptions.cancel(database, ada)
    with pytest.raises(NotFound):
        await methods.remove(database, await buyer(), method.id)
    await methods.remove(database, ada, method.id)
    assert await methods.of_user(database, ada) == []
    await subscriptions.resume(database, ada)
    await run.forward(database, rail, database.clock.now() + timedelta(days=32))
    assert (await subscription(database, ada)).status == "PAST_DUE"
