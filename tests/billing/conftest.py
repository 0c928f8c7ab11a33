"""People who buy, the plan Pro, and the sandbox."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from bson import ObjectId

from ximler.billing import checkouts, events, invoices, run
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Sandbox
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.checkout import Checkout
from ximler.schema.invoice import Invoice
from ximler.schema.job import OUTBOX
from ximler.schema.plan import Plan, PlanLimits
from ximler.schema.sandbox_object import SANDBOX_OBJECTS
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

if TYPE_CHECKING:
    from tests.billing.peer import Peer

    from ximler.billing.stripe import Stripe

OPERATOR = Actor(kind="operator", via="cli")
GOOD, OTHER = "4242 4242 4242 4242", "5555555555554444"
SOFT, HARD, AUTHENTICATION = "4000000000009995", "4000000000009987", "4000002760003184"
LATER, FAILS_LATER = "4000000000000077", "4000000000005126"
Buyer = Callable[[], Awaitable[Actor]]
Buy = Callable[..., Awaitable[Checkout]]


@pytest.fixture
def buyer(database: Database) -> Buyer:
    """`actor = await buyer()`: somebody new, on the free plan."""

    async def buyer() -> Actor:
        user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
        return Actor(kind="user", via="session", user_id=user.id)

    return buyer


@pytest.fixture
async def ada(buyer: Buyer) -> Actor:
    return await buyer()


@pytest.fixture
async def pro(database: Database) -> Plan:
    return await database.plans.get({"id": "pro"})


@pytest.fixture
async def rail(database: Database, settings: Settings) -> AsyncIterator[Sandbox]:
    """The sandbox; after the test everything adds up."""
    yield sandbox(database, settings)
    assert await verify(database) == []


@pytest.fixture
def buy(database: Database, rail: Sandbox, settings: Settings) -> Buy:
    async def buy(
        actor: Actor, plan: str = "pro", *, card: str = "4242 4242 4242 4242", coupon: str | None = None
    ) -> Checkout:
        begun = await checkouts.start(
            database, rail, settings, actor, plan_id=plan, coupon=coupon, return_url="http://localhost/back"
        )
        assert begun.session_id is not None
        await rail.enter_card(begun.session_id, card)
        await events.process(database, rail)
        return await checkouts.get(database, actor, begun.id)

    return buy


@pytest.fixture(scope="session")
async def _served() -> AsyncIterator["Peer"]:
    from stripe import HTTPClient  # here, because both take a while to import
    from tests.billing.peer import start

    HTTPClient.INITIAL_DELAY = 0.01  # before the library's own retry
    async with start() as peer:
        yield peer


@pytest.fixture
async def peer(_served: "Peer", database: Database) -> AsyncIterator["Peer"]:
    """Stripe on loopback; after the test everything adds up."""
    await _served.events()
    _served.forget()
    yield _served
    await _served.events()
    assert await verify(database) == []


@pytest.fixture
async def stripe(peer: "Peer") -> AsyncIterator["Stripe"]:
    from tests.billing.peer import SECRET

    from ximler.billing.stripe import Stripe

    rail = Stripe("sk_test_of_nobody", (SECRET,), api=peer.url)
    yield rail
    await rail.close()


async def deliver(database: Database, stripe: "Stripe", peer: "Peer") -> int:
    """Stripe sends its events, and background work applies them."""
    count = 0
    while waiting := await peer.events():
        for body, signature in waiting:
            count += await events.receive(database, stripe, body, signature)
        await events.process(database, stripe)
    return count


def at(database: Database, *moment: int) -> datetime:
    """Move the clock there."""
    wanted = datetime(*moment, tzinfo=UTC)  # type: ignore[misc]  # year, month, day and so on
    database.clock.offset_ms += to_ms(wanted) - database.clock.now_ms()
    return wanted


async def paid(database: Database, actor: Actor) -> list[int]:
    found = await database.payments.find({"userId": actor.user_id, "status": "PAID"}, sort=[("createdAt", 1)])
    return [payment.amount_minor for payment in found]


async def moved(database: Database) -> int:
    """The amount that the sandbox captured, less its refunds."""
    found = await database[SANDBOX_OBJECTS].find({"kind": "intent", "status": "SUCCEEDED"})
    return sum(each.amount_minor - each.refunded_minor for each in found)


async def add_plan(database: Database, plan_id: str, price: float, **more: Any) -> Plan:
    values: dict[str, Any] = {"interval": "MONTH", "limits": PlanLimits(projects=9, storage=9, api_calls=9), **more}
    return await database.plans.insert(Plan(id=plan_id, name=plan_id.title(), price=price, **values))


async def subscription(database: Database, actor: Actor) -> Subscription:
    (found,) = await database.subscriptions.find({"userId": actor.user_id})
    return found


async def last_invoice(database: Database, actor: Actor) -> Invoice:
    return (await invoices.page(database, actor)).items[0]


async def renewed_with(database: Database, rail: Sandbox, actor: Actor, buy: Buy, *, card: str) -> None:
    """Bought on 15 January with a card that works, and renewed on 15 February with another."""
    at(database, 2027, 1, 15)
    await buy(actor)
    await card_of(database, actor, card)
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)


async def card_of(database: Database, actor: Actor, number: str) -> None:
    """The customer's saved card becomes another."""
    method = f"pm_{number.replace(' ', '')}"
    await database[BILLING_ACCOUNTS].patch({"_id": actor.user_id}, {"$set": {"method.id": method}})


async def notices(database: Database, user_id: ObjectId | None) -> list[tuple[str, str]]:
    """Title and text of the user's notices, oldest first. No worker has added them to the inbox yet."""
    jobs = await database[OUTBOX].find(
        {"kind": "notifications.announce", "payload.userId": user_id}, sort=[("createdAt", 1), ("_id", 1)]
    )
    return [(each.payload["title"], each.payload["message"]) for each in jobs]
