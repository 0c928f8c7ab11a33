"""Billing's notices: each step that a user should know of has one, in the inbox and by mail."""

import asyncio
import email
import email.policy
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import msgspec
import pytest
from aiosmtpd.smtp import SMTP
from bson import ObjectId
from tests.billing.conftest import AUTHENTICATION, SOFT, Buy, add_plan, at, card_of, notices, renewed_with, subscription
from tests.billing.test_refunds import REFUNDS_FAIL, refund

from ximler.accounts.keyring import Keyring
from ximler.billing import changes, run, subscriptions
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.notifications import inbox
from ximler.notifications.email import Smtp
from ximler.worker import Tools, Worker

pytestmark = pytest.mark.slow


async def fresh(database: Database, actor: Actor) -> list[tuple[str, str]]:
    """Title and text of those since the last call, oldest first."""
    found = await notices(database, actor.user_id)
    seen = _seen.get(actor.user_id, 0)
    _seen[actor.user_id] = len(found)
    return found[seen:]


_seen: dict[ObjectId | None, int] = {}


async def test_a_purchase_has_a_welcome_and_a_receipt(database: Database, ada: Actor, buy: Buy) -> None:
    await buy(ada, coupon="WELCOME20")
    assert await fresh(database, ada) == [
        ("Welcome to Pro", "Your subscription to Pro has begun."),
        (
            "Your receipt: 23.20 USD",
            "We received your payment of 23.20 USD: Pro 29.00 USD; WELCOME20 -5.80 USD.",
        ),
    ]


async def test_a_year_is_announced_two_weeks_before_it_is_renewed_and_once(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await add_plan(database, "yearly", 120, interval="YEAR")
    at(database, 2027, 1, 1)
    await buy(ada, "yearly")
    await fresh(database, ada)
    for until, expected in (
        (datetime(2027, 12, 17, tzinfo=UTC), []),
        (datetime(2027, 12, 31, tzinfo=UTC), ["Yearly renews soon"]),
        (datetime(2028, 12, 31, tzinfo=UTC), ["Your receipt: 120.00 USD", "Yearly renews soon"]),
    ):
        await run.forward(database, rail, until)
        assert [title for title, _ in await fresh(database, ada)] == expected
        at(database, until.year, until.month, until.day)


async def test_a_failed_payment_says_why_and_what_follows(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=SOFT)
    title, text = (await fresh(database, ada))[-1]
    assert title == "Your payment failed"
    assert text.startswith("Your payment of 29.00 USD was declined (insufficient funds). Your plan stays as it is")
    await card_of(database, ada, AUTHENTICATION)
    database.clock.offset_ms += timedelta(days=1, minutes=1) // timedelta(milliseconds=1)
    await run.run(database, rail)
    assert (await fresh(database, ada))[0][0] == "Confirm your payment"
    await run.forward(database, rail, database.clock.now() + timedelta(days=8))
    assert (await fresh(database, ada))[-1] == (
        "Pro has ended",
        "Your subscription to Pro has ended because its payment failed for a week. You are on the free plan now.",
    )


async def test_a_refund_is_announced_once_the_provider_accepts_it_and_again_if_it_fails(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await buy(ada, card=REFUNDS_FAIL)
    await fresh(database, ada)
    rail.fault = lambda verb: "down" if verb == "refund" else None
    await refund(database, rail, ada, 500)
    assert await fresh(database, ada) == []
    rail.fault = lambda _: None
    for title in ("A refund of 5.00 USD", "A refund of 5.00 USD failed"):
        database.clock.offset_ms += 11 * 60_000
        await run.run(database, rail)
        assert [each for each, _ in await fresh(database, ada)] == [title]


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
    found = await fresh(database, ada)
    assert [title.split(":")[0] for title, _ in found[2:]] == [
        "A refund of 5.00 USD",
        "Your plan is Enterprise now",
        "Your receipt",
        "Your subscription is cancelled",
        "Enterprise has ended",
    ]
    assert found[-2][1].startswith(f"Enterprise ends on {end:%-d %B %Y}, and is yours until then.")
    assert "at the end of its period, as you asked" in found[-1][1]


class Postbox:
    """A mail server's, on loopback."""

    def __init__(self) -> None:
        self.received: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        self.received.append(email.message_from_bytes(envelope.content, policy=email.policy.default))  # type: ignore[arg-type]  # the policy's class
        return "250 taken"


async def test_mails_about_invoices_lead_to_them_and_respect_the_preference(
    database: Database, settings: Settings, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    await renewed_with(database, rail, ada, buy, card=AUTHENTICATION)
    postbox = Postbox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(postbox, hostname="test"), "127.0.0.1", 0)
    url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings, keyring = msgspec.structs.replace(settings, public_url="https://ximler.example"), Keyring(settings)
    worker = Worker(Tools(database=database, settings=settings, keyring=keyring, mailer=Smtp(url)))
    assert await worker.run_due() == 3
    found = {str(mail["Subject"]): mail for mail in postbox.received}
    assert set(found) == {"Welcome to Pro", "Your receipt: 29.00 USD", "Confirm your payment"}
    invoices = {each["kind"]: each["_id"] for each in await database.raw["invoices"].find({}).to_list()}
    for subject, kind, label in (
        ("Your receipt: 29.00 USD", "CHECKOUT", "Open the invoice"),
        ("Confirm your payment", "RENEWAL", "Confirm the payment"),
    ):
        text, html = (found[subject].get_body((kind,)) for kind in ("plain", "html"))
        assert text is not None
        assert html is not None
        link = f"https://ximler.example/invoices/{invoices[kind]}"
        assert link in text.get_content().splitlines()
        assert f'href="{link}"' in html.get_content()
        assert f">{label}</a>" in html.get_content()
    welcome = found["Welcome to Pro"].get_body(("plain",))
    assert welcome is not None
    assert "/invoices/" not in welcome.get_content()

    silent = {"$set": {"notificationSettings.email.billingAlerts": False}}
    await database.raw["users"].update_one({"_id": ada.user_id}, silent)
    await subscriptions.cancel(database, ada)
    await worker.run_due()
    assert len(postbox.received) == 3
    titles = [each.title for each in (await inbox.page(database, ada)).items]
    assert titles == ["Pro has ended", "Confirm your payment", "Your receipt: 29.00 USD", "Welcome to Pro"]
    server.close()
    keyring.close()
