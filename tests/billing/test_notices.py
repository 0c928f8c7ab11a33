"""Billing's notices: each step that a user should know of has one, in the inbox and by mail."""

from datetime import UTC, datetime, timedelta

from tests.billing.conftest import AUTHENTICATION, SOFT, Buy, add_plan, at, card_of, renewed_with, subscription
from tests.billing.test_refunds import refund

from ximler.billing import changes, run, subscriptions
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.job import OUTBOX


async def notices(database: Database, actor: Actor) -> list[tuple[str, str]]:
    """Title and text of those since the last call, oldest first."""
    found = await database.notifications.find(
        {"userId": actor.user_id, "readAt": None}, sort=[("createdAt", 1), ("_id", 1)]
    )
    await database.notifications.patch_many({"userId": actor.user_id}, {"$set": {"readAt": database.clock.now()}})
    assert {each.type for each in found} <= {"BILLING"}
    return [(each.title, each.message) for each in found]


async def test_a_purchase_has_a_welcome_and_a_receipt_and_each_is_mailed(
    database: Database, ada: Actor, buy: Buy
) -> None:
    await buy(ada, coupon="WELCOME20")
    assert await notices(database, ada) == [
        ("Welcome to Pro", "Your subscription to Pro has begun."),
        (
            "Your receipt: 23.20 USD",
            "We received your payment of 23.20 USD: Pro 29.00 USD; WELCOME20 -5.80 USD. The invoice is in your account.",
        ),
    ]
    assert await database[OUTBOX].count({"kind": "notifications.send"}) == 2


async def test_a_year_is_announced_two_weeks_before_it_is_renewed_and_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "yearly", 120, interval="YEAR")
    at(database, 2027, 1, 1)
    await buy(ada, "yearly")
    await notices(database, ada)
    for until, told in (
        (datetime(2027, 12, 17, tzinfo=UTC), []),
        (datetime(2027, 12, 31, tzinfo=UTC), ["Yearly renews soon"]),
        (datetime(2028, 12, 31, tzinfo=UTC), ["Your receipt: 120.00 USD", "Yearly renews soon"]),
    ):
        await run.forward(database, rail, until)
        assert [title for title, _ in await notices(database, ada)] == told
        at(database, until.year, until.month, until.day)


async def test_a_failed_payment_says_why_and_what_follows(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    title, text = (await notices(database, ada))[-1]
    assert title == "Your payment failed"
    assert text.startswith("Your payment of 29.00 USD was declined (insufficient funds). Your plan stays as it is")
    await card_of(database, ada, AUTHENTICATION)
    database.clock.offset_ms += timedelta(days=1, minutes=1) // timedelta(milliseconds=1)
    await run.run(database, rail)
    assert (await notices(database, ada))[0][0] == "Confirm your payment"
    await run.forward(database, rail, database.clock.now() + timedelta(days=8))
    assert (await notices(database, ada))[-1] == (
        "Pro has ended",
        "Your subscription to Pro has ended because its payment failed for a week. You are on the free plan now.",
    )


async def test_changes_cancellations_and_refunds_are_reported(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada)
    await refund(database, rail, ada, 500)
    await changes.change(database, rail, ada, plan_id="enterprise")
    await subscriptions.cancel(database, ada)
    end = (await subscription(database, ada)).end_date
    assert end is not None
    await run.forward(database, rail, end + timedelta(hours=1))
    found = await notices(database, ada)
    assert [title.split(":")[0] for title, _ in found[2:]] == [
        "A refund of 5.00 USD",
        "Your plan is Enterprise now",
        "Your receipt",
        "Your subscription is cancelled",
        "Enterprise has ended",
    ]
    assert found[-2][1].startswith(f"Enterprise ends on {end:%-d %B %Y}, and is yours until then.")
    assert "at the end of its period, as you asked" in found[-1][1]
