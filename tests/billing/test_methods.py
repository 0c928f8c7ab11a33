"""Payment methods of running subscriptions: a new one is tried at once, and users pay open invoices."""

import asyncio
from datetime import timedelta

import pytest
from tests.billing.conftest import (
    GOOD,
    HARD,
    LATER,
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

from ximler.billing import changes, checkouts, erasure, events, invoices, methods, run, subscriptions
from ximler.billing.payments import PaymentDeclined
from ximler.billing.sandbox import CARDS, Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.schema.billing_account import BILLING_ACCOUNTS


async def new_card(
    database: Database, rail: Sandbox, settings: Settings, actor: Actor, number: str, *, default: bool = True
) -> str:
    """Its status, once the customer has entered it."""
    back = "http://localhost/back"
    begun = await checkouts.add_method(database, rail, settings, actor, return_url=back, makes_default=default)
    await rail.enter_card(str(begun.session_id), number)
    await asyncio.gather(*(checkouts.complete(database, rail, begun.id) for _ in range(3)))
    await events.process(database, rail)
    return (await checkouts.get(database, actor, begun.id)).status


@pytest.mark.slow
async def test_a_new_card_is_tried_at_once_after_one_that_was_declined_for_good(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=HARD)
    assert (await methods.of_user(database, ada))[0].declined
    assert await new_card(database, rail, settings, ada, OTHER) == "PAID"
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert await paid(database, ada) == [2900, 2900]
    shown = [(each.label, each.declined) for each in await methods.of_user(database, ada)]
    assert shown == [("Test card 4444", False), ("Test card 4242", True)]
    (entry,) = await database.audit_logs.find({"action": "billing.method.changed"})
    assert (entry.metadata["actor"], entry.user_id) == ("user", ada.user_id)


@pytest.mark.slow
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


@pytest.mark.slow
async def test_a_new_card_costs_nothing_while_nothing_is_unpaid(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    with pytest.raises(NotFound):
        await new_card(database, rail, settings, ada, OTHER)
    await buy(ada)
    assert await new_card(database, rail, settings, ada, OTHER) == "PAID"
    assert await paid(database, ada) == [2900]


@pytest.mark.slow
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


async def labels(database: Database, actor: Actor) -> list[str]:
    return [each.label[-4:] for each in await methods.of_user(database, actor)]


async def detach_removed(database: Database, settings: Settings) -> None:
    while (job := await outbox.claim(database, ["billing.detach"])) is not None:
        await erasure.detach.run(job, {"database": database, "settings": settings})
        await outbox.complete(database, job)


@pytest.mark.slow
async def test_the_default_of_several_methods_is_charged_and_a_removed_one_is_detached(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(ada)
    assert await new_card(database, rail, settings, ada, OTHER, default=False) == "PAID"
    assert await new_card(database, rail, settings, ada, SOFT, default=False) == "PAID"
    assert await new_card(database, rail, settings, ada, OTHER, default=False) == "PAID"  # the same card again
    assert await labels(database, ada) == ["4242", "4444", "9995"]
    first, other, soft = await methods.of_user(database, ada)
    assert (other.expires, other.declined) == ("2034-12", False)
    with pytest.raises(NotFound):
        await methods.make_default(database, rail, ada, "pm_none")
    await methods.make_default(database, rail, ada, soft.id)
    assert await labels(database, ada) == ["9995", "4242", "4444"]
    with pytest.raises(methods.MethodNeeded):
        await methods.remove(database, ada, soft.id)
    await methods.remove(database, ada, first.id)
    await detach_removed(database, settings)
    assert [await rail.usable(each.id) for each in (first, other, soft)] == [False, True, True]
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "PAST_DUE"
    await methods.make_default(database, rail, ada, other.id)  # and the open invoice is charged to it
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert await paid(database, ada) == [2900, 2900]
    actions = ["billing.method.added", "billing.method.changed", "billing.method.removed"]
    counted = [len(await database.audit_logs.find({"action": action})) for action in actions]
    assert counted == [3, 2, 1]


@pytest.mark.slow
async def test_ten_methods_are_the_most_and_one_declined_for_good_is_not_made_default(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    for number in [number for number in CARDS if number not in (GOOD.replace(" ", ""), LATER)][:9]:
        await new_card(database, rail, settings, ada, number, default=False)
    assert len(await methods.of_user(database, ada)) == 10
    with pytest.raises(Conflict, match="remove one first"):
        await new_card(database, rail, settings, ada, LATER)
    hard = next(each for each in await methods.of_user(database, ada) if each.label.endswith("9987"))
    await methods.make_default(database, rail, ada, hard.id)
    with pytest.raises(PaymentDeclined):
        await changes.change(database, rail, ada, plan_id="enterprise")
    first = (await methods.of_user(database, ada))[1]
    await methods.make_default(database, rail, ada, first.id)
    with pytest.raises(Conflict, match="declined for good"):
        await methods.make_default(database, rail, ada, hard.id)
    assert await new_card(database, rail, settings, await cleared(database, ada), HARD) == "PAID"  # entered again
    assert not (await methods.of_user(database, ada))[0].declined


async def cleared(database: Database, actor: Actor) -> Actor:
    """Room for one more method."""
    await methods.remove(database, actor, (await methods.of_user(database, actor))[-1].id)
    return actor


async def test_the_card_of_a_declined_purchase_gives_way_to_the_next(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    begun = await buy(ada, card=SOFT)
    assert await labels(database, ada) == ["9995"]
    await rail.enter_card(str(begun.session_id), GOOD)
    await events.process(database, rail)
    assert ((await subscription(database, ada)).status, await labels(database, ada)) == ("ACTIVE", ["4242"])


async def test_an_account_of_an_earlier_release_has_the_one_method_it_had(database: Database, ada: Actor) -> None:
    old = {"id": "pm_4242424242424242", "label": "Test card 4242", "fingerprint": "-", "declined": False}
    await database.raw["billingaccounts"].insert_one({"_id": ada.user_id, "method": old})
    (method,) = await methods.of_user(database, ada)
    assert (method.id, method.expires) == ("pm_4242424242424242", None)


async def test_a_void_invoice_cannot_be_paid(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    await subscriptions.cancel(database, ada)
    void = (await invoices.page(database, ada)).items[0]
    with pytest.raises(Conflict, match="void"):
        await methods.pay(database, rail, ada, void.id)


@pytest.mark.slow
async def test_a_payment_method_can_be_removed_once_no_period_will_be_charged_to_it(
    database: Database, rail: Sandbox, ada: Actor, buyer: Buyer, buy: Buy
) -> None:
    await buy(ada)
    (method,) = await methods.of_user(database, ada)
    with pytest.raises(
        methods.MethodNeeded, match="Pro is charged to Test card 4242: choose another default, or cancel"
    ):
        await methods.remove(database, ada, method.id)
    await subscriptions.cancel(database, ada)
    with pytest.raises(NotFound):
        await methods.remove(database, await buyer(), method.id)
    await methods.remove(database, ada, method.id)
    assert await methods.of_user(database, ada) == []
    await subscriptions.resume(database, ada)
    await run.forward(database, rail, database.clock.now() + timedelta(days=32))
    assert (await subscription(database, ada)).status == "PAST_DUE"
