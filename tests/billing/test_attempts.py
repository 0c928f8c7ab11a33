"""Stolen cards that are tried, coupon codes that are guessed, and cards of erased users."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from bson import ObjectId
from tests.billing.conftest import GOOD, SOFT, Buy, at, card_of, deliver, renewed_with, subscription
from tests.billing.peer import Peer

from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import Throttled
from ximler.billing import attempts, checkouts, erasure, events, invoices, methods, redemptions, run
from ximler.billing.attempts import TooManyDeclines
from ximler.billing.coupons import CouponNotFound
from ximler.billing.payments import PaymentDeclined
from ximler.billing.provider import ProviderUnavailable
from ximler.billing.reconcile import reconcile
from ximler.billing.sandbox import Sandbox
from ximler.billing.stripe import Stripe
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.plan import Plan

pytestmark = pytest.mark.slow

MINUTE_MS = 60_000


@pytest.fixture
def keyring(settings: Settings) -> Iterator[Keyring]:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


async def test_declined_payments_that_a_customer_asks_for_are_limited_and_retries_are_not(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    unpaid = (await invoices.page(database, ada)).items[0].id
    for _ in range(attempts.FREE_DECLINES):
        with pytest.raises(PaymentDeclined):
            await methods.pay(database, rail, ada, unpaid)
    with pytest.raises(TooManyDeclines, match="5 payments were declined: try again in 15 minutes") as refused:
        await methods.pay(database, rail, ada, unpaid)
    assert refused.value.retry_after_s == pytest.approx(900, abs=30)
    with pytest.raises(TooManyDeclines):
        await checkouts.add_method(database, rail, settings, ada, return_url="http://localhost/")
    database.clock.offset_ms += 16 * MINUTE_MS
    with pytest.raises(PaymentDeclined):
        await methods.pay(database, rail, ada, unpaid)
    database.clock.offset_ms += 16 * MINUTE_MS
    with pytest.raises(TooManyDeclines, match="6 payments were declined: try again in 14 minutes"):
        await methods.pay(database, rail, ada, unpaid)
    at(database, 2027, 2, 16, 2)
    await card_of(database, ada, GOOD)
    await run.run(database, rail)  # the retry of the first day
    assert (await subscription(database, ada)).status == "ACTIVE"


async def test_a_page_that_takes_one_card_after_another_is_closed(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor
) -> None:
    begun = await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/")
    declining = [SOFT, "4000000000000002"] * 3
    for number in declining:
        await rail.enter_card(str(begun.session_id), number)
        await events.process(database, rail)
    found = await checkouts.get(database, ada, begun.id)
    assert (found.status, found.problem) == ("REFUSED", "5 payments were declined: try again in 15 minutes")
    assert await database.payments.count({"userId": ada.user_id}) == attempts.FREE_DECLINES
    with pytest.raises(TooManyDeclines):
        await checkouts.start(database, rail, settings, ada, plan_id="pro", return_url="http://localhost/")


async def test_unknown_coupon_codes_are_limited_and_valid_ones_are_not(
    database: Database, keyring: Keyring, pro: Plan
) -> None:
    address = "192.0.2.7"

    async def enter(user_id: ObjectId, code: str) -> None:
        actor = Actor(kind="user", via="session", user_id=user_id, address=address)
        async with attempts.guessing(database, keyring, actor, code):
            await redemptions.check(database, actor, code, plan=pro)

    eve = ObjectId()
    for _ in range(12):
        await enter(eve, "WELCOME20")
    for n in range(10):
        with pytest.raises(CouponNotFound):
            await enter(eve, f"GUESS{n}")
    for code in ("GUESS99", "WELCOME20"):
        with pytest.raises(Throttled, match="try again in 6"):
            await enter(eve, code)
    await enter(ObjectId(), "WELCOME20")  # somebody else at the same address
    for n in range(40):
        with suppress(CouponNotFound, Throttled):
            await enter(ObjectId(), f"GUESS{n}")
    with pytest.raises(Throttled):
        await enter(ObjectId(), "WELCOME20")
    database.clock.offset_ms += timedelta(hours=1) // timedelta(milliseconds=1)
    await enter(eve, "WELCOME20")


async def test_the_customer_of_an_erased_user_is_deleted_at_stripe(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = "http://localhost/"
    monkeypatch.setattr(erasure, "rail", lambda *_: stripe)
    begun = await checkouts.start(database, stripe, settings, ada, plan_id="pro", return_url=back)
    await peer.enter_card(str(begun.session_id), GOOD.replace(" ", ""))
    await deliver(database, stripe, peer)
    (method,) = await methods.of_user(database, ada)
    for _ in range(2):
        await erasure.forget_cards(database, ada.require_user())
    await database.raw["billingaccounts"].delete_one({"_id": ada.user_id})
    (job,) = await database.raw["outbox"].find({"kind": "billing.forget_customer"}).to_list()
    (customer_id,) = peer.ids("customer")
    assert job["payload"] == {"customerId": customer_id, "methodIds": [method.id]}
    payload = erasure.AtProvider(customer_id=customer_id, method_ids=[method.id])
    peer.fault = lambda name: "down" if name.startswith("DELETE") else None
    with pytest.raises(ProviderUnavailable):
        await erasure.forget_customer(payload, database=database, settings=settings)
    peer.fault = lambda _: None
    (found,) = (await reconcile(database, stripe)).findings
    assert (
        found.problem == f"the customer {customer_id} of an erased user was not deleted at the provider yet: it waits"
    )
    for _ in range(2):
        await erasure.forget_customer(payload, database=database, settings=settings)
        assert (peer.ids("customer"), await stripe.usable(method.id)) == ([], False)
    assert [each.repaired for each in (await reconcile(database, stripe, repair=True)).findings] == [True]
    assert (await reconcile(database, stripe)).findings == []
