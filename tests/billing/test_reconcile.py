"""Differences between Ximler and the provider are found, and repaired where that moves no money."""

from typing import Any

import pytest
from tests.billing.conftest import OPERATOR, Buy, paid, subscription
from tests.billing.peer import Peer

from ximler.billing import checkouts, refunds
from ximler.billing.reconcile import reconcile
from ximler.billing.sandbox import Sandbox
from ximler.billing.stripe import VERSION, Stripe
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.sandbox_object import SANDBOX_OBJECTS
from ximler.schema.subscription import Subscription

LATER, REFUNDS_FAIL = "4000000000000077", "4000000000003220"


async def later(database: Database, minutes: int = 6) -> None:
    database.clock.offset_ms += minutes * 60_000


async def silent(_: bytes, __: str) -> None:
    """Every event is lost."""


async def problems(database: Database, rail: Any, *, repair: bool = False) -> list[tuple[str, bool, bool]]:
    report = await reconcile(database, rail, repair=repair)
    return [(each.problem, each.repairable, each.repaired) for each in report.findings]


async def test_without_differences_nothing_is_found(database: Database, rail: Sandbox, ada: Actor, buy: Buy) -> None:
    await buy(ada)
    await later(database)
    report = await reconcile(database, rail)
    assert (report.checked, report.findings) == (2, [])  # the payment, and the card


@pytest.mark.slow
async def test_a_payment_whose_event_was_lost_is_found_and_repaired(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, card=LATER)
    rail.deliver = silent
    await later(database, 11)
    await rail.advance()
    (payment,) = await database.payments.find({"userId": ada.user_id})
    said = f"payment {payment.id} (29.00 USD) is PENDING here, and paid at the provider"
    assert await problems(database, rail) == [(said, True, False)]
    assert await problems(database, rail, repair=True) == [(said, True, True)]
    assert (await paid(database, ada), (await subscription(database, ada)).status) == ([2900], "ACTIVE")
    assert await problems(database, rail) == []


@pytest.mark.slow
async def test_a_refund_that_failed_unseen_is_found_and_repaired(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, card=REFUNDS_FAIL)
    (payment,) = await database.payments.find({"userId": ada.user_id})
    made = await refunds.refund(
        database, rail, OPERATOR, user_id=ada.require_user(), payment_id=payment.id, reason="Asked for"
    )
    rail.deliver = silent
    await later(database, 11)
    await rail.advance()
    found = await problems(database, rail, repair=True)
    assert (f"refund {made.id} (29.00 USD) is PENDING here, and FAILED at the provider", True, True) in found
    assert (await paid(database, ada), await problems(database, rail)) == ([2900], [])


@pytest.mark.slow
async def test_a_completed_checkout_whose_event_was_lost_is_finished(
    database: Database, rail: Sandbox, ada: Actor, settings: Settings
) -> None:
    begun = await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/back")
    rail.deliver = silent
    await rail.enter_card(str(begun.session_id), "4242424242424242")
    assert await problems(database, rail, repair=True) == [
        ("the checkout of Pro was completed at the provider", True, True)
    ]
    assert (await checkouts.get(database, ada, begun.id)).status == "PAID"


@pytest.mark.slow
async def test_money_that_the_provider_moved_alone_is_reported_only(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    await later(database)
    (charge,) = await database[CHARGES].find({})
    await database[SANDBOX_OBJECTS].patch({"_id": charge.intent_id}, {"$inc": {"refundedMinor": 500}})
    name = f"payment {charge.payment_id} (29.00 USD)"
    said = f"{name}: 5.00 USD is refunded at the provider, and 0.00 USD here"
    assert await problems(database, rail, repair=True) == [(said, False, False)]
    await database[SANDBOX_OBJECTS].patch({"_id": charge.intent_id}, {"$set": {"status": "CREATED"}})
    assert await problems(database, rail) == [(f"{name} is PAID here, and CREATED at the provider", False, False)]
    await database.raw["sandboxobjects"].update_one(
        {"_id": charge.intent_id}, {"$set": {"status": "SUCCEEDED", "refundedMinor": 0}}
    )


@pytest.mark.slow
async def test_stripe_is_compared_too(database: Database, stripe: Stripe, peer: Peer, ada: Actor) -> None:
    """A card that was detached, and a mirrored subscription that went past due unseen."""
    theirs = peer.subscribe("price_pro_monthly", 2900)
    theirs.status = "past_due"
    await database.subscriptions.insert(
        Subscription(
            user_id=ada.require_user(),
            plan_id="pro",
            status="ACTIVE",
            start_date=database.clock.now(),
            price=29,
            stripe_subscription_id=theirs.id,
        )
    )
    gone = {"id": "pm_gone", "label": "Visa 4242", "fingerprint": "x"}
    await database.raw["billingaccounts"].insert_one({"_id": ada.user_id, "method": gone})
    assert await problems(database, stripe, repair=True) == [
        ("the payment method Visa 4242 does not exist at the provider any more", True, True),
        (
            f"the subscription {theirs.id} is ACTIVE here, and PAST_DUE at Stripe",
            True,
            True,
        ),
    ]
    assert (await subscription(database, ada)).status == "PAST_DUE"
    (account,) = await database[BILLING_ACCOUNTS].find({})
    assert account.method is not None
    assert account.method.declined
    assert await problems(database, stripe) == []


async def test_the_endpoint_of_events_is_checked(database: Database, stripe: Stripe, peer: Peer) -> None:
    url = "https://ximler.example/webhooks/stripe"

    async def found() -> list[str]:
        return [each.problem for each in (await reconcile(database, stripe, webhook=url)).findings]

    assert await found() == [f"no endpoint at Stripe sends events to {url}"]
    events = ["checkout.session.completed", "payment_intent.succeeded", "refund.updated"]
    endpoint = {"id": "we_1", "url": url, "status": "enabled", "api_version": "2020-08-27", "enabled_events": events}
    peer.endpoints.append({"object": "webhook_endpoint", **endpoint})
    assert await found() == [
        f"the webhook's endpoint has the API version 2020-08-27, not {VERSION}",
        "the webhook's endpoint sends no events charge.dispute.*",
    ]
    peer.endpoints[0] |= {"api_version": VERSION, "enabled_events": ["*"]}
    assert await found() == []
