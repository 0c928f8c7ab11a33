"""Subscriptions that Stripe bills for another application: mirrored, never billed."""

import asyncio
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.billing.conftest import Buyer, deliver, subscription
from tests.billing.peer import SECRET, Peer

from ximler.billing import checkouts, drifts, erasure, movements, run, stripe_mirror
from ximler.billing.checkouts import AlreadySubscribed
from ximler.billing.provider import ProviderUnavailable
from ximler.billing.reconcile import reconcile
from ximler.billing.stripe import Stripe, of_process
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.metering.limits import entitlements
from ximler.schema.subscription import Subscription
from ximler.schema.trial import TRIALS, trial_id
from ximler.schema.user import User

PRO, ENTERPRISE = "price_pro_monthly", "price_enterprise_monthly"


@pytest.fixture
async def theirs(database: Database, peer: Peer, ada: Actor) -> Any:
    """Ada subscribed to Pro by another application, which wrote this document."""
    theirs = peer.subscribe(PRO, 2900)
    peer.offer(ENTERPRISE, 29900)
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
    return theirs


def changed(peer: Peer, theirs: Any, **values: Any) -> None:
    peer.send("customer.subscription.updated", theirs._export() | values)


async def plan_of(database: Database, actor: Actor) -> str:
    (found,) = (await entitlements.resolve(database, [actor.require_user()])).values()
    return found.plan_id


async def mirrored(database: Database, actor: Actor) -> Subscription:
    found = await stripe_mirror.of_user(database, actor)
    assert found is not None
    return found


@pytest.mark.slow
async def test_status_dates_payments_and_limits_follow_stripe(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any
) -> None:
    await deliver(database, stripe, peer)
    found = await subscription(database, ada)
    assert (found.status, found.plan_id, found.auto_renew, found.end_date) == ("ACTIVE", "pro", True, None)
    assert found.stripe_customer_id == theirs.customer
    assert found.period_end is not None
    assert int(found.period_end.timestamp()) == theirs.current_period_end
    (payment,) = await database.payments.find({"userId": ada.user_id})
    assert (payment.status, payment.amount_minor, payment.subscription_id) == ("PAID", 2900, found.id)
    assert payment.stripe_invoice_id == theirs.latest_invoice
    assert payment.invoice_url == f"https://invoice.stripe.com/{theirs.latest_invoice}"
    assert payment.stripe_payment_intent_id == peer.ids("payment_intent")[0]
    assert payment.paid_at is not None

    theirs.status = "past_due"
    changed(peer, theirs)
    await deliver(database, stripe, peer)
    assert ((await subscription(database, ada)).status, await plan_of(database, ada)) == ("PAST_DUE", "pro")

    theirs._api_delete(theirs.id)
    await deliver(database, stripe, peer)
    found = await subscription(database, ada)
    assert (found.status, found.auto_renew, await plan_of(database, ada)) == ("CANCELLED", False, "free")
    assert found.end_date is not None
    assert await database.payments.count({"userId": ada.user_id}) == 1


@pytest.mark.slow
async def test_recurring_revenue_follows_stripe(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any
) -> None:
    await deliver(database, stripe, peer)
    for status in ("active", "past_due", "canceled", "canceled"):
        theirs.status = status
        changed(peer, theirs)
        await deliver(database, stripe, peer)
    rows = (await movements.of_users(database, [ada.require_user()]))[ada.require_user()]
    assert [(row.annual_minor, row.at_risk_minor) for row in rows] == [(34_800, 0), (34_800, 34_800), (0, 0)]
    assert await drifts.check(database) == []


async def test_it_is_never_billed_by_ximler_and_no_second_one_is_sold(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any, settings: Settings
) -> None:
    database.clock.offset_ms += 70 * 86_400_000
    assert (await run.run(database, stripe)).steps == 0
    with pytest.raises(AlreadySubscribed):
        await checkouts.start(database, stripe, settings, ada, plan_id="pro", return_url="http://localhost/back")


@pytest.mark.slow
async def test_cancel_resume_and_change_of_plan_are_passed_on(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any
) -> None:
    found = await stripe_mirror.cancel(database, stripe, await mirrored(database, ada), ada, now=False, reason="Dear")
    assert (found.auto_renew, theirs.cancel_at_period_end) == (False, True)
    assert found.end_date == found.period_end
    with pytest.raises(Conflict, match="about to end"):
        await stripe_mirror.change(database, stripe, found, ada, plan_id="enterprise")
    found = await stripe_mirror.resume(database, stripe, found, ada)
    assert (found.auto_renew, found.end_date, theirs.cancel_at_period_end) == (True, None, False)

    quoted = await stripe_mirror.preview(database, stripe, found, plan_id="enterprise")
    assert (quoted.due_minor, quoted.when) == (27000, "NOW")
    peer.declines = True
    with pytest.raises(Conflict, match="declined"):
        await stripe_mirror.change(database, stripe, found, ada, plan_id="enterprise")
    assert ((await subscription(database, ada)).plan_id, await plan_of(database, ada)) == ("pro", "pro")
    peer.declines = False
    found = await stripe_mirror.change(database, stripe, found, ada, plan_id="enterprise")
    assert (found.plan_id, found.price_minor, await plan_of(database, ada)) == ("enterprise", 29900, "enterprise")
    with pytest.raises(Invalid, match="now only"):
        await stripe_mirror.change(database, stripe, found, ada, plan_id="pro", when="PERIOD_END")

    found = await stripe_mirror.cancel(database, stripe, found, ada, now=True)
    assert (found.status, theirs.status, await plan_of(database, ada)) == ("CANCELLED", "canceled", "free")
    await deliver(database, stripe, peer)
    written = database.raw["auditlogs"].find({"userId": ada.user_id}, sort=[("_id", 1)])
    actions = [each["action"] async for each in written]
    assert [each.removeprefix("billing.") for each in actions] == [
        "subscription.cancelled",
        "subscription.resumed",
        "plan.change_requested",
        "plan.changed",
        "subscription.cancelled",
        "subscription.ended",
    ]


async def test_of_two_readers_the_one_that_began_later_stands(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any
) -> None:
    read, go_on = asyncio.Event(), asyncio.Event()

    async def hold(name: str) -> None:
        if name.startswith("GET /v1/subscriptions") and not read.is_set():
            read.set()
            await go_on.wait()

    peer.hold = hold
    slow = asyncio.create_task(stripe_mirror.see_subscription(database, stripe, theirs.id))
    await read.wait()
    theirs.status = "past_due"
    assert await stripe_mirror.see_subscription(database, stripe, theirs.id)
    go_on.set()
    assert await slow
    assert (await subscription(database, ada)).status == "PAST_DUE"


@pytest.mark.slow
async def test_an_invoice_that_is_seen_twice_at_once_is_one_payment_and_follows_refunds(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any
) -> None:
    seen = await asyncio.gather(*(stripe_mirror.see_invoice(database, stripe, theirs.latest_invoice) for _ in range(4)))
    assert seen == [True] * 4
    (payment,) = await database.payments.find({"userId": ada.user_id})
    for amount, status in ((1000, "PAID"), (1900, "REFUNDED")):
        refund = peer.refund(str(payment.stripe_payment_intent_id), amount)
        peer.send("refund.created", {"id": refund, "metadata": {}})
        await deliver(database, stripe, peer)
        assert (await database.payments.get({"_id": payment.id, "userId": ada.user_id})).status == status
    assert await stripe_mirror.see_invoice(database, stripe, theirs.latest_invoice)
    assert (await database.payments.get({"_id": payment.id, "userId": ada.user_id})).status == "REFUNDED"


async def test_what_is_not_known_yet_waits(database: Database, stripe: Stripe, peer: Peer, buyer: Buyer) -> None:
    theirs = peer.subscribe(PRO, 2900)
    await deliver(database, stripe, peer)
    waiting = await database.raw["billingevents"].count_documents({"problem": "unknown object"})
    assert waiting == 3  # of the subscription, and two of its invoice
    eve = await buyer()
    await database.subscriptions.insert(
        Subscription(
            user_id=eve.require_user(),
            plan_id="free",
            status="EXPIRED",
            start_date=database.clock.now(),
            price=0,
            stripe_subscription_id=theirs.id,
        )
    )
    database.clock.offset_ms += 6000
    await run.run(database, stripe)
    assert ((await subscription(database, eve)).status, await plan_of(database, eve)) == ("ACTIVE", "pro")
    assert await database.payments.count({"userId": eve.user_id, "status": "PAID"}) == 1


async def test_a_subscription_of_an_erased_user_ends_at_stripe(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any, settings: Settings
) -> None:
    await erasure.end_subscriptions(database, ada.require_user())
    (job,) = await database.raw["outbox"].find({"kind": "billing.end_at_stripe"}).to_list()
    assert job["payload"] == {"subscriptionId": theirs.id}
    given = {"stripe_key": "sk_test_of_nobody", "stripe_webhook_secrets": (SECRET,), "stripe_api": peer.url}
    paying = msgspec.structs.replace(settings, **given)
    payload = erasure.AtStripe(subscription_id=theirs.id)
    theirs.status = "unpaid"  # and Stripe may collect it one day
    peer.fault = lambda name: "down" if name.startswith("GET /v1/subscriptions/") else None
    for those, why in ((paying, "does not answer"), (settings, "there is no key")):
        with pytest.raises(ProviderUnavailable, match=why):
            await erasure.end_at_stripe(payload, database=database, settings=those)
    peer.fault = lambda _: None
    (found,) = (await reconcile(database, stripe)).findings
    assert (found.problem, found.repairable) == (
        f"the subscription {theirs.id} of an erased user was not ended at Stripe yet: it waits",
        True,
    )
    await erasure.end_at_stripe(erasure.AtStripe(subscription_id="sub_gone"), database=database, settings=paying)
    for _ in range(2):
        await erasure.end_at_stripe(payload, database=database, settings=paying)
        assert theirs.status == "canceled"
    await of_process(paying).close()
    assert [each.repaired for each in (await reconcile(database, stripe, repair=True)).findings] == [True]
    assert (await reconcile(database, stripe)).findings == []
    theirs.status = "active"  # revived at Stripe: the next event ends it again
    await database.raw["users"].delete_one({"_id": ObjectId(ada.require_user())})
    assert await stripe_mirror.see_subscription(database, stripe, theirs.id)
    assert theirs.status == "canceled"


@pytest.mark.slow
async def test_a_trial_at_stripe_counts_for_its_payment_method_and_a_second_one_is_audited(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, theirs: Any
) -> None:
    other = peer.subscribe("price_other", 2900)
    row = (await database.subscriptions.find({"userId": ada.user_id}))[0]
    await database.subscriptions.insert(
        msgspec.structs.replace(row, id=ObjectId(), user_id=ObjectId(), stripe_subscription_id=other.id)
    )
    await database.users.insert(
        User(id=(await rows(database, other))[0].user_id, name="B", email="b@c.de", password="-")
    )
    for each in (theirs, other):
        each.trial_end = int(database.clock.now().timestamp()) + 86_400
        each.default_payment_method = peer.ids("payment_method")[-1]
        for _ in range(2):
            assert await stripe_mirror.see_subscription(database, stripe, each.id)
    fingerprint = (await stripe.subscription(other.id)).fingerprint
    assert fingerprint is not None
    assert await database[TRIALS].find_one({"_id": trial_id(fingerprint)}) is not None
    (entry,) = await database.audit_logs.find({"action": "billing.trial.repeated"})
    assert entry.resource_id == str((await rows(database, other))[0].id)


async def rows(database: Database, theirs: Any) -> list[Subscription]:
    return await database.subscriptions.find({"stripeSubscriptionId": theirs.id})
