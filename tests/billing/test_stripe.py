"""Stripe's rail, through its library, against localstripe on loopback."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from tests.billing.conftest import OPERATOR, deliver, paid, subscription
from tests.billing.peer import SECRET, Fault, Peer

from ximler.billing import checkouts, events, payments, refunds, run
from ximler.billing.provider import ProviderUnavailable
from ximler.billing.stripe import VERSION, Stripe, _intent, _reinstated
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_event import BILLING_EVENTS
from ximler.schema.charge import CHARGES
from ximler.schema.checkout import Checkout
from ximler.schema.refund import Refund

GOOD, DECLINED, AUTHENTICATION = "4242424242424242", "4000000000000341", "4000002760003184"
Buy = Callable[..., Awaitable[Checkout]]


@pytest.fixture
def buy(database: Database, stripe: Stripe, peer: Peer, settings: Settings) -> Buy:
    async def buy(actor: Actor, card: str = GOOD) -> Checkout:
        begun = await begin(database, stripe, settings, actor)
        await peer.enter_card(str(begun.session_id), card)
        await deliver(database, stripe, peer)
        return await checkouts.get(database, actor, begun.id)

    return buy


async def begin(database: Database, stripe: Stripe, settings: Settings, actor: Actor) -> Checkout:
    return await checkouts.start(database, stripe, settings, actor, plan_id="pro", return_url="http://localhost/back")


async def test_a_plan_is_bought_with_a_card_that_is_saved_on_stripes_page(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy, settings: Settings
) -> None:
    begun = await begin(database, stripe, settings, ada)
    assert begun.url == f"https://checkout.stripe.com/c/pay/{begun.session_id}"
    assert (await checkouts.complete(database, stripe, begun.id)).status == "OPEN"
    bought = await buy(ada)
    assert (bought.status, (await subscription(database, ada)).plan_id) == ("PAID", "pro")
    assert (await paid(database, ada), list(peer.money().values())) == ([2900], [2900])
    (charge,) = await database[CHARGES].find({})
    assert peer.money() == {charge.id: 2900}
    assert await database[BILLING_EVENTS].find({"problem": {"$gt": ""}}) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "problem"),
    [
        (DECLINED, "The payment was declined: the bank gave no reason"),
        (AUTHENTICATION, "The payment was declined: the bank asks you to confirm it"),
    ],
)
async def test_a_declined_card_takes_no_money_and_leaves_the_checkout_open(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy, card: str, problem: str
) -> None:
    tried = await buy(ada, card)
    assert (tried.status, tried.problem, peer.money()) == ("OPEN", problem, {})
    assert await database.subscriptions.find({"userId": ada.user_id}) == []
    assert tried.url == "https://checkout.stripe.com/c/pay/cs_test_1"  # the first page has taken its card
    await peer.enter_card("cs_test_1", GOOD)
    await deliver(database, stripe, peer)
    assert (await checkouts.get(database, ada, tried.id)).status == "PAID"


FAULTS: list[Fault] = ["down", "lost", "500"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "step"), [*((each, "confirm") for each in FAULTS), ("lost", "POST /v1/payment_intents")]
)
async def test_a_payment_whose_answer_is_lost_is_made_once_also_thirty_hours_later(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy, fault: Fault, step: str
) -> None:
    peer.fault = lambda name: fault if name.endswith(step) else None
    tried = await buy(ada)
    assert tried.status in ("PROCESSING", "PAID")
    peer.fault = lambda _: None
    peer.keys.clear()
    database.clock.offset_ms += 30 * 3_600_000
    await run.run(database, stripe)
    assert (await checkouts.get(database, ada, tried.id)).status == "PAID"
    assert (await paid(database, ada), list(peer.money().values())) == ([2900], [2900])


@pytest.mark.slow
async def test_a_slow_provider_is_not_waited_for_and_charges_once(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy
) -> None:
    answered = asyncio.Event()

    async def hold(name: str) -> None:
        if name.endswith("confirm"):
            await answered.wait()

    peer.hold, stripe._http._timeout = hold, 0.2
    try:
        bought = await buy(ada)  # the event says that it was paid
    finally:
        answered.set()
    assert (bought.status, await paid(database, ada), list(peer.money().values())) == ("PAID", [2900], [2900])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["lost", "500"])
async def test_a_refund_whose_answer_is_lost_is_made_once_also_thirty_hours_later(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy, fault: Fault
) -> None:
    await buy(ada)
    peer.fault = lambda name: fault if name == "POST /v1/refunds" else None
    made = await refund(database, stripe, ada, 1000)
    assert made.status == "PENDING"
    peer.fault = lambda _: None
    peer.keys.clear()
    database.clock.offset_ms += 30 * 3_600_000
    await run.run(database, stripe)
    (made,) = await refunds.of_user(database, ada.require_user())
    assert (made.status, list(peer.money().values())) == ("SUCCEEDED", [1900])


@pytest.mark.slow
async def test_a_rejected_request_ends_the_attempt(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy
) -> None:
    for fault, error in (("rate", ProviderUnavailable), ("key", ProviderUnavailable), (None, NotFound)):
        peer.fault = lambda _, fault=fault: fault
        with pytest.raises(error):
            await stripe.session("cs_none")
    with pytest.raises(Invalid, match="multiples of 10"):
        await stripe.create_intent(customer_id="cus_1", amount_minor=1001, currency="KWD", reference="x")
    await buy(ada)
    await database.raw["billingaccounts"].update_many({}, {"$set": {"method.id": "pm_detached"}})
    database.clock.offset_ms += 32 * 86_400_000
    await run.run(database, stripe)
    found = await database.payments.find({"userId": ada.user_id}, sort=[("createdAt", -1)])
    assert [(each.status, each.failure) for each in found] == [("FAILED", "card_not_usable"), ("PAID", None)]
    assert (await subscription(database, ada)).status == "PAST_DUE"


@pytest.mark.slow
async def test_a_lost_dispute_refunds_the_payment(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    (charge,) = await database[CHARGES].find({})
    disputed = {"id": "dp_1", "object": "dispute", "amount": 2900, "currency": "usd"}
    taken, reinstated = {"amount": -2900}, {"amount": 2900}
    for status, moves, ours in (
        ("needs_response", [], "OPEN"),
        ("lost", [taken], "LOST"),
        ("lost", [taken, reinstated], "WON"),
        ("lost", [taken, reinstated, taken], "LOST"),
    ):
        intent = await stripe._read(stripe._api.payment_intents, str(charge.intent_id))
        peer.disputes["dp_1"] = {**disputed, "payment_intent": intent, "status": status, "balance_transactions": moves}
        peer.send("charge.dispute.updated", {**disputed, "metadata": {}})
        await deliver(database, stripe, peer)
        assert (await database[CHARGES].get(charge.id)).dispute == ours
    (payment,) = await database.payments.find({"userId": ada.user_id})
    assert payment.status == "REFUNDED"


@pytest.mark.parametrize(
    ("moves", "reinstated"),
    [
        ([], False),
        ([-10820], False),
        ([-10820, 10820], True),
        ([-10820, 10790], True),  # at the rate of another day
        ([-10820, 10890], True),
        ([-10820, 5410], False),  # a part
        ([-10820, 10790, -10810], False),  # taken again
        ([-10820, 10790, -10810, 10850], True),
    ],
)
def test_disputed_money_came_back_also_at_the_exchange_rate_of_another_day(moves: list[int], reinstated: bool) -> None:
    assert _reinstated(moves) is reinstated


@pytest.mark.slow
async def test_of_two_readers_the_one_that_began_later_stands(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy
) -> None:
    """The slow one has read that nothing was paid; it arrives last, and no event follows."""
    peer.fault = lambda name: "down" if name.endswith("confirm") else None
    await buy(ada)
    peer.fault = lambda _: None
    (charge,) = await database[CHARGES].find({})
    reads, slow = asyncio.Event(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == f"GET /v1/payment_intents/{charge.intent_id}" and not reads.is_set():
            reads.set()
            await slow.wait()

    peer.hold = hold
    late = asyncio.create_task(payments.observe(database, stripe, str(charge.intent_id), charge.id))
    await reads.wait()
    assert (await payments.drive(database, stripe, charge.id)).status == "PAID"
    slow.set()
    assert await late
    assert (await database[CHARGES].get(charge.id)).status == "PAID"
    assert (await subscription(database, ada)).status == "ACTIVE"


@pytest.mark.slow
async def test_events_doubled_reordered_and_handled_at_once_end_in_the_same_state(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, buy: Buy
) -> None:
    begun = await buy(ada)
    await refund(database, stripe, ada, 900)
    (charge,) = await database[CHARGES].find({})
    for kind in ("payment_intent.created", "payment_intent.succeeded", "payment_intent.payment_failed"):
        peer.send(kind, {"id": charge.intent_id, "metadata": {"ximler": charge.id}})
    peer.send("refund.updated", {"id": peer.ids("refund")[0], "metadata": {}})
    peer.send("checkout.session.completed", peer.sessions[str(begun.session_id)])
    waiting = await peer.events()
    for body, signature in reversed(waiting):
        stored = [await events.receive(database, stripe, body, signature) for _ in range(2)]
        assert stored == [True, False]
    await asyncio.gather(*(events.process(database, stripe) for _ in range(4)))
    assert (await paid(database, ada), list(peer.money().values())) == ([2900], [2000])
    assert await database[BILLING_EVENTS].find({"problem": {"$gt": ""}}) == []


def event(**changes: Any) -> bytes:
    found = {"id": "pi_1", "object": "payment_intent", "metadata": {"ximler": "charge"}}
    kind = "payment_intent.succeeded"
    return msgspec.json.encode(
        {"id": "evt_1", "type": kind, "api_version": VERSION, "livemode": False, "data": {"object": found}} | changes
    )


def sign(body: bytes, secret: str = SECRET, *, age_s: int = 0) -> str:
    moment = int(time.time()) - age_s
    return f"t={moment},v1={hmac.new(secret.encode(), b'%d.' % moment + body, hashlib.sha256).hexdigest()}"


@pytest.fixture(scope="session")
async def offline() -> AsyncIterator[Stripe]:
    """For what needs no peer."""
    rail = Stripe("sk_test_of_nobody", ("whsec_of_tomorrow", SECRET))
    yield rail
    await rail.close()


def test_an_event_is_accepted_under_either_secret_for_five_minutes(offline: Stripe) -> None:
    for signature in (
        sign(event(), "whsec_of_tomorrow"),
        sign(event(), age_s=290),
        f"{sign(event(), 'whsec_other')},{sign(event()).partition(',')[2]}",
    ):
        notice = offline.verify(event(), signature)
        assert notice is not None
        found = (notice.id, notice.kind, notice.object_id, notice.reference)
        assert found == ("evt_1", "intent.changed", "pi_1", "charge")


def test_a_wrong_signature_is_refused(offline: Stripe) -> None:
    right = sign(event())
    for body, signature in (
        (event(), sign(event(), "whsec_of_another_endpoint")),
        (event(), sign(event(), age_s=310)),
        (event().replace(b"pi_1", b"pi_2"), right),
        (event() + b" ", right),
        (event(), ""),
        (event(), "t=1,v1"),
        (event(), "v1=" + right.partition("v1=")[2]),
        (event(), right.replace("v1=", "v0=")),
        (event(), right.replace("v1=", "v1=é")),
        (b"\xff", sign(b"\xff")),
    ):
        with pytest.raises(Unauthenticated):
            offline.verify(body, signature)


def test_a_body_that_is_no_event_is_refused(offline: Stripe) -> None:
    for body in (b"{}", b"[", b"[" * 5000, b'{"id":1,"type":"a","data":{"object":{"id":"x"}}}'):
        with pytest.raises(Invalid, match="not an event"):
            offline.verify(body, sign(body))


def test_events_of_other_applications_and_modes_are_of_no_concern(offline: Stripe) -> None:
    for changes in (
        {"type": "customer.created"},
        {"livemode": True},
        {"data": {"object": {"id": "pi_1", "metadata": {}}}},
        {"data": {"object": {"id": "pi_1"}}},
    ):
        body = event(**changes)
        assert offline.verify(body, sign(body)) is None


def test_a_decline_says_whether_the_card_may_be_tried_again() -> None:
    found = {"id": "pi_1", "status": "requires_payment_method", "amount": 100, "currency": "usd"}
    for error, shown, hard in (
        ({"code": "card_declined", "decline_code": "insufficient_funds"}, "insufficient_funds", False),
        ({"code": "card_declined", "decline_code": "stolen_card"}, "card_declined", True),
        ({"code": "expired_card"}, "expired_card", True),
        ({"code": "card_declined", "advice_code": "do_not_try_again"}, "card_declined", True),
        ({"code": "payment_intent_authentication_failure"}, "authentication_required", False),
    ):
        read = _intent({**found, "last_payment_error": error})
        assert (read.status, read.failure, read.hard) == ("FAILED", shown, hard)


async def refund(database: Database, stripe: Stripe, actor: Actor, amount_minor: int) -> Refund:
    (payment,) = await database.payments.find({"userId": actor.user_id})
    return await refunds.refund(
        database,
        stripe,
        OPERATOR,
        user_id=actor.require_user(),
        payment_id=payment.id,
        amount_minor=amount_minor,
        reason="Asked for",
    )


async def test_a_removed_card_is_detached_and_one_that_is_gone_already_is_fine(
    database: Database, stripe: Stripe, peer: Peer, ada: Actor, settings: Settings
) -> None:
    begun = await begin(database, stripe, settings, ada)
    await peer.enter_card(str(begun.session_id), GOOD)
    method = (await stripe.session(str(begun.session_id))).method
    assert method is not None
    assert (method.expires, await stripe.usable(method.id)) == ("2030-12", True)
    for _ in range(2):
        await stripe.detach(method.id)
    await stripe.detach("pm_never_was")
    assert not await stripe.usable(method.id)


async def test_texts_of_stripe_reach_the_customer_only_where_they_are_written_for_them(
    stripe: Stripe, peer: Peer
) -> None:
    peer.fault = lambda _: "invalid"
    with pytest.raises(Invalid) as rejected:
        await stripe.change_subscription("sub_1", "price_1")
    assert (rejected.value.code, rejected.value.fields) == ("PAYMENT_PROVIDER_REJECTED", {})
    assert rejected.value.message == "The payment provider rejected the request. Contact us, or try again later."
    peer.fault = lambda name: "card" if name.startswith("POST") else None
    with pytest.raises(Conflict, match=r"^The payment was declined: Your card is too thin$"):
        await stripe.end_subscription("sub_1", now=False)
