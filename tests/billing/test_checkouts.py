"""Buying a plan: the charge, and the plan's limits before and after it."""

import asyncio

import msgspec
import pytest
from tests.billing.conftest import (
    GOOD,
    LATER,
    SOFT,
    Buy,
    Buyer,
    last_invoice,
    moved,
    paid,
    subscription,
)

from ximler.billing import checkouts, events, invoices, redemptions, run
from ximler.billing.checkouts import AlreadySubscribed
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.metering.limits.plans import limits_of


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


@pytest.mark.slow
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


@pytest.mark.slow
async def test_a_payment_that_succeeds_later_starts_the_subscription_then(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    assert (await buy(ada, card=LATER)).status == "PROCESSING"
    assert await database.subscriptions.count({"userId": ada.user_id}) == 0
    database.clock.offset_ms += 11 * 60_000
    await run.run(database, rail)
    assert (await subscription(database, ada)).status == "ACTIVE"
    assert await paid(database, ada) == [2900]


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.soak)])
async def test_a_user_has_one_subscription_however_many_checkouts_are_paid_at_once(
    count: int, database: Database, rail: Sandbox, settings: Settings, ada: Actor
) -> None:
    begun = [
        await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/")
        for _ in range(count)
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


@pytest.mark.slow
async def test_a_checkout_is_paid_for_each_of_those_who_complete_it_at_once(
    database: Database, rail: Sandbox, settings: Settings, buyer: Buyer
) -> None:
    """The page and the worker do: the page leads back to the shop when it returns,
    and the limits must hold by then."""
    rail.deliver = _deaf
    for _ in range(5):
        begun = await checkouts.start(
            database, rail, settings, await buyer(), plan_id="pro", return_url="http://localhost/"
        )
        await rail.enter_card(str(begun.session_id), GOOD)
        both = await asyncio.gather(*(checkouts.complete(database, rail, begun.id) for _ in range(2)))
        assert [each.status for each in both] == ["PAID", "PAID"]
    assert await moved(database) == 5 * 2900


async def _deaf(body: bytes, signature: str) -> None:
    """Loses every event."""


@pytest.mark.slow
async def test_a_coupon_of_100_percent_needs_no_payment(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await database.coupons.raw.update_one({"code": "WELCOME20"}, {"$set": {"value": 100}})
    rail.fault = lambda verb: "down" if "intent" in verb else None
    assert (await buy(ada, coupon="WELCOME20")).status == "PAID"
    assert await paid(database, ada) == []
    assert (await last_invoice(database, ada)).due_minor == 0


@pytest.mark.slow
async def test_a_coupon_is_used_once_per_payment_method(database: Database, buy: Buy, buyer: Buyer) -> None:
    first, second = await buyer(), await buyer()
    await buy(first, coupon="WELCOME20")
    refused = await buy(second, coupon="WELCOME20")
    assert refused.status == "REFUSED"
    assert await paid(database, second) == []
    database.clock.offset_ms += 40 * 86_400_000
    await redemptions.sweep(database)
    assert (await database.coupons.get({"code": "WELCOME20"})).used_count == 1


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
    foreign = ("https://evil.example/", "javascript:alert(1)", "//evil.example", "http://localhost@evil.example/")
    for url in (
        *foreign,
        "http://evil.example\\@localhost/",
        "http://localhost:80.evil.example/",
        "http://localhost/\r\nSet-Cookie: a=b",
    ):
        with pytest.raises(Invalid):
            await start("pro", url)
    settings = msgspec.structs.replace(settings, cors_origins=("https://*.shop.example", "*"))
    with pytest.raises(Invalid):
        await start("pro", "https://evil.example/.shop.example")
    await start("pro", "HTTPS://App.Shop.example:443/back")
