"""Topic `billing`: a customer's reads: the preview of a change of plan,
the page of invoices, an invoice as PDF."""

import time
from collections.abc import Awaitable, Callable
from statistics import median

from bson import ObjectId

from bench.contest import percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.billing import changes, invoices, pdf
from ximler.billing.account import in_turn, lock
from ximler.billing.periods import period
from ximler.billing.pricing import Charge, price
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount, Method, Terms

__all__ = ["run"]

INVOICES = 20


async def run(setup: Setup) -> list[Table]:
    rounds = setup.rounds(80)
    async with setup.database(initialised=True) as database:
        actor = await _subscriber(database)
        newest = (await invoices.page(database, actor)).items[0]
        preview = "previewChange"
        reads: dict[str, tuple[Callable[[], Awaitable[object]], int | None]] = {
            preview: (lambda: changes.preview(database, actor, plan_id="enterprise"), 3),
            f"{preview}, with a coupon": (
                lambda: changes.preview(database, actor, plan_id="enterprise", coupon="WELCOME20"),
                3,
            ),
            f"{INVOICES} invoices": (lambda: invoices.page(database, actor), 1),
            "an invoice as PDF, warm": (lambda: pdf.download(database, actor, newest.id), None),
        }
        figures, rows, samples = [], [], {}
        for name, (read, most) in reads.items():
            seconds, trips = await _times(read, rounds)
            if most is not None:
                figures.append(Figure(what=f"round trips, {name}", value=trips, unit="", most=most))
            rows.append((name, ms(median(seconds)), ms(percentile(seconds, 95)), str(trips)))
            samples[name] = seconds
        figures.append(Figure(what="an invoice as PDF, warm, p50", value=median(seconds) * 1000, unit="ms", most=60))
    return [
        Table(
            title="billing: what a customer reads",
            figures=figures,
            columns=("", "p50", "p95", "round trips"),
            rows=rows,
            samples=samples,
        )
    ]


async def _times(read: Callable[[], Awaitable[object]], rounds: int) -> tuple[list[float], int]:
    await read()
    seconds, trips = [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        with round_trips() as sent:
            await read()
        seconds.append(time.perf_counter() - began)
        trips = max(trips, len(sent))
    return seconds, trips


async def _subscriber(database: Database) -> Actor:
    """Of Pro, with paid invoices that are numbered."""
    actor = Actor(kind="user", via="session", user_id=ObjectId())
    now = database.clock.now().replace(microsecond=0)
    terms = Terms(plan_id="pro", plan_name="Pro", price_minor=2900, currency="USD", interval="MONTH", net_minor=2900)
    account = BillingAccount(
        id=actor.require_user(),
        customer_id="cus_bench",
        method=Method(id="pm_4242424242424242", label="Test card 4242", fingerprint="-"),
        subscription_id=ObjectId(),
        terms=terms,
        anchor=now,
        period=0,
    )
    await database[BILLING_ACCOUNTS].insert(account)
    charge = Charge(plan_id="pro", description="Pro", price_minor=2900, start=now, end=period(now, "MONTH", 0).end)

    async def write(transaction: Database) -> None:
        locked = await lock(transaction, actor.require_user())
        for number in range(INVOICES):
            await invoices.make(
                transaction,
                locked,
                price("USD", charges=[charge]),
                key=f"{actor.user_id}:{number}",
                kind="RENEWAL",
                status="PAID",
                subscription_id=ObjectId(),
                plan_id="pro",
                period=period(now, "MONTH", number),
            )

    await in_turn(database, actor.require_user(), write)
    await invoices.number(database)
    return actor
