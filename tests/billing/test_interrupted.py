"""Every act of billing, killed before each of its commands to the database:
afterwards all is as if it never was interrupted.

Either the customer repeats the act at once, or only the background work goes on. A run that was killed ends
in the state of one that was not; an act of a person either happened as a whole or not at all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.billing.conftest import GOOD, HARD, LATER, OPERATOR, OTHER, SOFT, add_plan, card_of
from tests.billing.killing import Killer
from tests.billing.ledger import at_rest, state

from ximler.billing import (
    changes,
    checkouts,
    methods,
    operations,
    rebates,
    refunds,
    run,
    statement,
    subscriptions,
)
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.clock import Clock, to_ms
from ximler.core.errors import XimlerError
from ximler.core.money import Money
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.checkout import CHECKOUTS
from ximler.schema.user import User

BEGIN = datetime(2027, 1, 15, 12, tzinfo=UTC)
LATER_REFUND = "4000000000007726"
WRITTEN = (
    "auditlogs", "billingaccounts", "billingevents", "charges", "checkouts", "coupons", "credits", "entitlements",
    "invoicenumbers", "invoices", "movements", "notifications", "outbox", "payments", "redemptions", "refunds",
    "sandboxobjects", "subscriptions", "trials", "users",
)  # fmt: skip

Act = Callable[["World"], Awaitable[object]]


class World:
    """One customer, whose state can be taken back to a moment."""

    def __init__(self, database: Database, rail: Sandbox, settings: Settings) -> None:
        self.database, self.rail, self.settings = database, rail, settings
        self.user_id = ObjectId()
        self.actor = Actor(kind="user", via="session", user_id=self.user_id)
        self.disputed = ""
        self._saved: dict[str, list[dict[str, Any]]] = {}

    async def save(self) -> None:
        self._offset_ms = self.database.clock.offset_ms
        for name in WRITTEN:
            self._saved[name] = await self.database.raw[name].find({}).to_list()

    async def restore(self) -> None:
        self.database.clock.offset_ms = self._offset_ms
        await asyncio.gather(*(self._restore(name, documents) for name, documents in self._saved.items()))

    async def _restore(self, name: str, documents: list[dict[str, Any]]) -> None:
        await self.database.raw[name].delete_many({})
        if documents:
            await self.database.raw[name].insert_many(documents)

    async def settle(self) -> None:
        """The worker goes on until what the process that died held has expired, and nothing is due."""
        for minutes in (0, 2, 6, 65):
            self.database.clock.offset_ms += minutes * 60_000
            await run.run(self.database, self.rail)

    async def charge(self) -> Any:
        return (await self.database[CHARGES].find({"userId": self.user_id, "status": "PAID"}))[0]


def buy(plan: str = "pro", card: str = GOOD, coupon: str | None = None) -> Act:
    async def act(world: World) -> None:
        """Again, it goes on with the page that was opened."""
        known = await world.database[CHECKOUTS].find({"userId": world.user_id, "sessionId": {"$ne": None}})
        begun = known[0] if known else await checkouts.start(
            world.database, world.rail, world.settings, world.actor,
            plan_id=plan, coupon=coupon, return_url="http://localhost/",
        )  # fmt: skip
        await world.rail.enter_card(str(begun.session_id), card)
        await checkouts.complete(world.database, world.rail, begun.id)

    return act


def new_card(card: str) -> Act:
    async def act(world: World) -> None:
        begun = await checkouts.add_method(
            world.database, world.rail, world.settings, world.actor, return_url="http://localhost/"
        )
        await world.rail.enter_card(str(begun.session_id), card)
        await checkouts.complete(world.database, world.rail, begun.id)

    return act


def saved_card(card: str) -> Act:
    return lambda world: card_of(world.database, world.actor, card)


def time(days: int) -> Act:
    async def act(world: World) -> None:
        world.database.clock.offset_ms += timedelta(days=days) // timedelta(milliseconds=1)

    return act


async def work(world: World) -> None:
    await run.run(world.database, world.rail)


def change(plan: str, when: changes.When | None = None) -> Act:
    return lambda world: changes.change(world.database, world.rail, world.actor, plan_id=plan, when=when)


def cancel(now: bool) -> Act:
    return lambda world: subscriptions.cancel(world.database, world.actor, now=now)


def coupon(code: str) -> Act:
    return lambda world: rebates.apply(world.database, world.actor, code)


def refund(amount_minor: int | None, to: refunds.RefundTarget) -> Act:
    async def act(world: World) -> None:
        charge = await world.charge()
        await refunds.refund(
            world.database, world.rail, OPERATOR, user_id=world.user_id, payment_id=charge.payment_id,
            amount_minor=amount_minor, to=to, reason="-", key="one",
        )  # fmt: skip

    return act


def dispute(outcome: Any = None) -> Act:
    """Opened, or decided."""

    async def act(world: World) -> None:
        if outcome is None:
            world.disputed = await world.rail.open_dispute(str((await world.charge()).intent_id))
        else:
            await world.rail.decide_dispute(world.disputed, outcome)

    return act


async def pay(world: World) -> None:
    account = await world.database[BILLING_ACCOUNTS].get(world.user_id)
    if account.invoice_id is not None:
        await methods.pay(world.database, world.rail, world.actor, account.invoice_id)


async def mark_paid(world: World) -> None:
    account = await world.database[BILLING_ACCOUNTS].get(world.user_id)
    if account.invoice_id is not None:
        await operations.mark_paid(
            world.database, OPERATOR, user_id=world.user_id, invoice_id=account.invoice_id, method="-", reason="-"
        )


async def grant(world: World) -> None:
    await statement.grant(
        world.database, OPERATOR, user_id=world.user_id, amount=Money(500, "USD"), reason="-", key="one"
    )


async def extend(world: World) -> None:
    until = BEGIN + timedelta(days=60)
    await operations.extend(world.database, OPERATOR, user_id=world.user_id, until=until, reason="-")


# Acts before, and the act that is killed. Acts of a person are repeated in half of the runs.
PERSON: dict[str, tuple[list[Act], Act]] = {
    "bought": ([], buy(coupon="WELCOME20")),
    "bought on trial": ([], buy("trial", coupon="HALF")),
    "bought for nothing": ([], buy(coupon="ALL")),
    "bought with a card that is declined": ([], buy(card=SOFT, coupon="WELCOME20")),
    "upgraded": ([buy(), time(10)], change("enterprise")),
    "upgraded with a coupon and a balance": ([buy(coupon="HALF"), grant, time(10)], change("enterprise")),
    "upgraded with a card that is declined": ([buy(), saved_card(HARD), time(10)], change("enterprise")),
    "changed to a year": ([buy(), time(10)], change("yearly")),
    "changed while the bank decides on another": (
        [buy(), saved_card(LATER), time(10), change("yearly"), saved_card(GOOD)],
        change("enterprise"),
    ),
    "downgraded": ([buy("enterprise"), time(10)], change("pro")),
    "downgraded now": ([buy("enterprise"), time(10)], change("pro", "NOW")),
    "withdrawn": ([buy("enterprise"), change("pro")], lambda world: changes.clear(world.database, world.actor)),
    "cancelled": ([buy()], cancel(now=False)),
    "cancelled now": ([buy(), time(3)], cancel(now=True)),
    "cancelled unpaid": ([buy(), saved_card(SOFT), time(31), work], cancel(now=False)),
    "resumed": ([buy(), cancel(now=False)], lambda world: subscriptions.resume(world.database, world.actor)),
    "coupon applied": ([buy()], coupon("WELCOME20")),
    "refunded": ([buy()], refund(None, "CARD")),
    "refunded in part": ([buy()], refund(1000, "CARD")),
    "refunded later": ([buy(card=LATER_REFUND)], refund(1000, "CARD")),
    "refunded to the balance": ([buy()], refund(1000, "BALANCE")),
    "card replaced": ([buy(), saved_card(HARD), time(31), work], new_card(OTHER)),
    "paid by hand": ([buy(), saved_card(SOFT), time(31), work, saved_card(GOOD)], pay),
    "marked paid": ([buy(), saved_card(SOFT), time(31), work], mark_paid),
    "granted": ([buy()], grant),
    "extended": ([buy()], extend),
}
# Acts before, after which the work is killed that is due.
WORKER: dict[str, list[Act]] = {
    "renewed": [buy(coupon="HALF"), grant, time(31)],
    "renewed after a trial": [buy("trial", coupon="HALF"), time(14)],
    "renewed to another plan": [buy("enterprise"), change("pro"), time(31)],
    "renewed with a card that is declined": [buy(), saved_card(SOFT), time(31)],
    "changed, once the bank has decided on another": [
        buy(),
        saved_card(LATER),
        time(10),
        change("yearly"),
        saved_card(GOOD),
        change("enterprise"),
        time(1),
    ],
    "retried": [buy(), saved_card(SOFT), time(31), work, saved_card(GOOD), time(1)],
    "expired": [buy(), saved_card(HARD), time(31), *([work, time(2)] * 4)],
    "ended": [buy(), cancel(now=False), time(31)],
    "overdue": [buy(), time(100)],
    "refund settled": [buy(card=LATER_REFUND), refund(None, "CARD"), time(1)],
    "disputed": [buy(), dispute()],
    "dispute lost": [buy(), dispute(), work, dispute("LOST")],
    "dispute won": [buy(), dispute(), work, dispute("WON")],
}


# In `make test`, some of the commands of some acts; every command of every act takes minutes.
SMALL = {
    "bought": 17,
    "upgraded": 13,
    "refunded later": 9,
    "renewed": 17,
    "changed while the bank decides on another": 11,
}


def each_of(acts: Iterable[str]) -> list[Any]:
    """Name, and the distance between the commands before which the act is killed."""
    small = [(name, SMALL[name]) for name in acts if name in SMALL]
    return [*small, *(pytest.param(name, 1, marks=pytest.mark.soak) for name in acts)]


@pytest.fixture
async def stage(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Plans, coupons, and a clock that stands still."""
    await add_plan(database, "yearly", 290, interval="YEAR")
    await add_plan(database, "trial", 19.9, trial_days=14)
    for code, value, duration in (("HALF", 50, "FOREVER"), ("ALL", 100, "ONCE")):
        await database.raw["coupons"].insert_one(
            {
                "code": code, "name": code, "type": "PERCENTAGE", "value": value, "currency": "USD", "usedCount": 0,
                "validFrom": BEGIN - timedelta(days=400), "validUntil": BEGIN + timedelta(days=4000),
                "active": True, "duration": duration,
            }
        )  # fmt: skip
    begin = to_ms(BEGIN)
    monkeypatch.setattr(Clock, "now_ms", lambda clock: begin + clock.offset_ms)
    return database


@pytest.fixture
async def world(stage: Database, settings: Settings) -> World:
    return await join(stage, settings)


async def join(database: Database, settings: Settings) -> World:
    world = World(database, sandbox(database, settings), settings)
    await database.users.insert(User(id=world.user_id, name="Ada", email=f"{world.user_id}@example.com", password="-"))
    return world


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), each_of(PERSON))
async def test_an_act_that_is_killed_happened_as_a_whole_or_not_at_all(
    name: str, every: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, act = PERSON[name]
    for each in before:
        await each(world)
    await world.save()
    killer = Killer(monkeypatch)

    async def acting() -> None:
        with suppress(XimlerError):
            await act(world)

    await world.settle()
    untouched = await state(world.database, world.user_id)
    await world.restore()
    assert not await killer.run(acting)
    commands = killer.commands
    await world.settle()
    await at_rest(world.database, world.user_id)
    done = await state(world.database, world.user_id)
    for count in range(commands % every, commands, every):
        await world.restore()
        assert await killer.run(acting, commands=count)
        repeated = count % 2
        if repeated:
            world.database.clock.offset_ms += (
                10_000  # after which an unfinished reservation of the user's is taken over
            )
            await acting()
        await world.settle()
        await at_rest(world.database, world.user_id)
        found = await state(world.database, world.user_id)
        assert found in ((done,) if repeated else (untouched, done)), f"killed after {count} of {commands} commands"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), each_of(WORKER))
async def test_work_that_is_killed_ends_as_if_it_was_not(
    name: str, every: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in WORKER[name]:
        await each(world)
    await world.save()
    killer = Killer(monkeypatch)
    assert not await killer.run(lambda: work(world))
    commands = killer.commands
    await world.settle()
    await at_rest(world.database, world.user_id)
    done = await state(world.database, world.user_id)
    for count in range(commands % every, commands, every):
        await world.restore()
        assert await killer.run(lambda: work(world), commands=count)
        await world.settle()
        await at_rest(world.database, world.user_id)
        assert await state(world.database, world.user_id) == done, f"killed after {count} of {commands} commands"


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.soak)])
async def test_work_for_several_customers_at_once_that_is_killed_ends_as_if_it_was_not(
    every: int, stage: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Billed together: renewed, declined, refunded, paid ten minutes later, ended,
    and moved to another plan."""
    acts = (
        [buy(coupon="HALF")],
        [buy(card=OTHER), saved_card(SOFT)],
        [buy(card=LATER_REFUND), refund(900, "CARD")],
        [buy(), saved_card(LATER)],
        [buy(), cancel(now=False)],
        [buy("enterprise"), change("pro")],
    )
    worlds = [await join(stage, settings) for _ in acts]
    for world, before in zip(worlds, acts, strict=True):
        for act in before:
            await act(world)
    await time(31)(worlds[0])
    await worlds[0].save()
    users = [world.user_id for world in worlds]
    killer = Killer(monkeypatch)

    async def end() -> list[dict[str, Any]]:
        await worlds[0].settle()
        await at_rest(stage, *users)
        return [await state(stage, user_id) for user_id in users]

    assert not await killer.run(lambda: work(worlds[0]))
    commands = killer.commands
    done = await end()
    for count in range(commands % every, commands, every):
        await worlds[0].restore()
        killed = await killer.run(lambda: work(worlds[0]), commands=count)
        assert killed or count > 0.9 * commands  # what runs together may share a few commands more
        assert await end() == done, f"killed after {count} of {commands} commands"
