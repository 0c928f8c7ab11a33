"""Plans that Stripe sells and bills (`XIMLER_STRIPE_BILLING`):
bought on Stripe's page, mirrored from then on."""

import asyncio

import msgspec
import pytest
from localstripe import resources
from tests.billing.conftest import deliver, subscription
from tests.billing.peer import Peer

from ximler.billing import checkouts, run, stripe_mirror
from ximler.billing.stripe import Stripe
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.checkout import Checkout

PRO = "price_pro_monthly"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, stripe_billing=True)


async def begin(
    database: Database, stripe: Stripe, settings: Settings, actor: Actor, coupon: str | None = None
) -> Checkout:
    return await checkouts.start(
        database, stripe, settings, actor, plan_id="pro", coupon=coupon, return_url="http://localhost/back"
    )


@pytest.mark.slow
async def test_a_plan_is_sold_on_stripes_page_with_our_coupon_and_mirrored(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, settings: Settings
) -> None:
    peer.offer(PRO, 2900)
    begun = await begin(database, stripe, settings, ada, coupon="WELCOME20")
    assert begun.url == f"https://checkout.stripe.com/c/pay/{begun.session_id}"
    assert await checkouts.quote(database, begun) is None
    sells = peer.sessions[str(begun.session_id)]["sells"]
    assert sells["line_items"] == [{"price": PRO, "quantity": "1"}]
    assert sells["subscription_data"]["metadata"] == {"ximler": begun.id}
    (coupon,) = peer.ids("coupon")
    assert sells["discounts"] == [{"coupon": coupon}]
    found = resources.Coupon._api_retrieve(coupon)
    assert (float(found.percent_off), found.duration) == (20, "once")

    theirs = peer.pay(str(begun.session_id))
    await deliver(database, stripe, peer)
    database.clock.offset_ms += 6000
    await run.run(database, stripe)  # events of the subscription came before it was known
    bought = await checkouts.get(database, ada, begun.id)
    mine = await subscription(database, ada)
    assert (bought.status, bought.subscription_id, mine.status) == ("PAID", mine.id, "ACTIVE")
    assert (mine.stripe_subscription_id, mine.stripe_customer_id) == (theirs.id, theirs.customer)
    assert await database.payments.count({"userId": ada.user_id, "status": "PAID"}) == 1
    assert (await database.raw["redemptions"].find_one({}))["status"] == "CONFIRMED"
    assert await stripe_mirror.of_user(database, ada) is not None


@pytest.mark.slow
async def test_of_two_that_are_paid_at_once_one_is_kept_and_the_other_refunded(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, settings: Settings
) -> None:
    peer.offer(PRO, 2900)
    begun = [await begin(database, stripe, settings, ada) for _ in range(2)]
    theirs = [peer.pay(str(each.session_id)) for each in begun]
    await asyncio.gather(*(checkouts.complete(database, stripe, each.id) for each in begun * 2))
    after = [await checkouts.get(database, ada, each.id) for each in begun]
    assert sorted(each.status for each in after) == ["PAID", "REFUSED"]
    assert {"There is a subscription already: the payment was refunded"} == {e.problem for e in after if e.problem}
    assert sorted(each.status for each in theirs) == ["active", "canceled"]
    paid = [resources.PaymentIntent._api_retrieve(each) for each in peer.ids("payment_intent")]
    assert sorted(each.amount - each.latest_charge.amount_refunded for each in paid) == [0, 2900]
    assert (await subscription(database, ada)).status == "ACTIVE"
