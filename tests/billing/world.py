"""People whose histories of billing are played: in order, with events and the provider disturbed, with the
process killed, or all of it left to chance. `tests.billing.model` checks every invoice of a history that is
played in order.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from random import Random
from typing import Any, Literal, NamedTuple

import msgspec
from bson import ObjectId
from tests.billing.conftest import OPERATOR
from tests.billing.killing import Killer
from tests.billing.model import Coupon, Model, Plan

from ximler.billing import (
    catalogue,
    changes,
    checkouts,
    erasure,
    events,
    methods,
    operations,
    rebates,
    refunds,
    run,
    statement,
    subscriptions,
)  # fmt: skip
from ximler.billing.provider import Notice
from ximler.billing.sandbox import CARDS, Fault, Sandbox, sign
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.errors import XimlerError
from ximler.core.money import Money
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.checkout import CHECKOUTS, Checkout
from ximler.schema.credit import CREDITS
from ximler.schema.invoice import INVOICES
from ximler.schema.sandbox_object import SANDBOX_OBJECTS
from ximler.schema.user import User

__all__ = [
    "Act", "Order", "Person", "Scale", "World", "apply", "buy", "cancel", "change", "clear", "close", "dispute", "extend",
    "grant", "mark_paid", "new_card", "pay", "refund", "reprice", "resume", "time",
]  # fmt: skip

FAULTS = (
    "create_intent", "create_intent:answer", "confirm", "confirm:answer", "intent", "refund", "refund:answer",
    "refund_state", "dispute",
)  # fmt: skip

DECLINED = {number for number, card in CARDS.items() if card.failure or card.later == "FAILED"}

# The least that Stripe charges, and the unit of its amounts, in minor units.
MINIMA = {"USD": (50, 1), "JPY": (50, 1), "KWD": (500, 10)}

Order = Literal["in order", "disturbed", "killed", "chaos"]
Act = Callable[["Person"], Awaitable[object]]


class Scale(NamedTuple):
    """The acts' amounts are of cents: of another currency's minor units here, and so many times as many."""

    currency: str
    times: int

    def money(self, minor: int) -> Money:
        return Money(minor * self.times, self.currency)

    def terms(self, coupon: Coupon | None) -> Coupon | None:
        return coupon and replace(coupon, minor=coupon.minor * self.times)


class World:
    """`disturbed` and `killed` settle after every act, `chaos` only at the end."""

    def __init__(
        self,
        database: Database,
        rail: Sandbox,
        settings: Settings,
        killer: Killer,
        order: Order,
        seed: int,
        scale: "Scale",
    ) -> None:
        self.scale = scale
        self.database, self.rail, self.settings, self.order = database, rail, settings, order
        self.random = Random(seed)
        self.people: list[Person] = []
        self.plans: dict[str, Plan] = {}
        self._killer = killer
        self._held: list[Notice] = []
        self._failing = 0
        self._until: datetime | None = None  # to which time passes, also after a kill
        rail.deliver = self._hold
        rail.fault = self._fault

    async def play(self, people: int, acts: list[tuple[int, Act]]) -> None:
        self.people = [await self._join(n) for n in range(people)]
        await self.read_plans()
        for who, act in acts:
            person = self.people[who % len(self.people)]
            if self.order in ("disturbed", "chaos"):
                self._failing = self.random.choice((0, 0, 1, 2))
            await self._attempt(act, person)
            if self.order == "chaos":
                await self._deliver(self.random.randint(0, len(self._held)))
            else:
                await self.settle()
            await self._see()
        for _ in range(3):
            await self.settle()
        await self._see()

    async def settle(self) -> None:
        """All events arrive, and the provider answers again."""
        for _ in range(3):
            await self._deliver(len(self._held))
            self._failing = 0
            if self.order in ("disturbed", "chaos"):
                await asyncio.gather(*(run.run(self.database, self.rail) for _ in range(2)))
            else:
                await self._killed(lambda: run.run(self.database, self.rail))
            self.database.clock.offset_ms += 12 * 60_000

    async def pass_time(self, length: timedelta) -> None:
        clock = self.database.clock
        reached = clock.now()
        self._until = until = self._until or reached + length

        def at(moment: datetime) -> None:
            nonlocal reached
            reached = moment

        try:
            await run.forward(self.database, self.rail, until, progress=at)
        except asyncio.CancelledError:
            clock.offset_ms += to_ms(reached) - clock.now_ms() + 1
            raise
        clock.offset_ms += max(to_ms(until) - clock.now_ms(), 0)

    async def read_plans(self) -> None:
        self.plans = {
            each.id: Plan(each.id, each.price_minor, 12 if each.interval == "YEAR" else 1, each.trial_days or 0)
            for each in await self.database.plans.find({"active": True})
        }

    async def _join(self, number: int) -> "Person":
        person = Person(self, Actor(kind="user", via="session", user_id=ObjectId()))
        await self.database.users.insert(
            User(id=person.user_id, name="Ada", email=f"{number}@example.com", password="-")
        )
        return person

    async def _attempt(self, act: Act, person: "Person") -> None:
        """The person does it; and once more, where the process was killed meanwhile."""
        self._until = person.page = None
        with suppress(XimlerError):
            await self._killed(lambda: act(person))

    async def _killed(self, step: Callable[[], Awaitable[object]]) -> None:
        if self.order != "killed" or self.random.random() < 0.4:
            await step()
            return

        async def trying() -> None:
            with suppress(XimlerError):
                await step()

        await self._killer.run(trying, commands=self.random.randint(0, self.random.choice((20, 100))))
        # The leases of events expire. A purchase that waited for that would begin, and cost, later.
        now = self.database.clock.now()
        await self.database.raw["billingevents"].update_many({"doneAt": None}, {"$set": {"dueAt": now}})
        await step()

    async def _see(self) -> None:
        if self.order == "in order":
            await self.read_plans()
            for person in self.people:
                await person.see()

    async def _hold(self, body: bytes, signature: str) -> None:
        self._held.append(msgspec.json.decode(body, type=Notice))

    async def _deliver(self, count: int) -> None:
        """Some of the held events: in order, or shuffled, doubled, and processed by three at once."""
        if self.order in ("in order", "killed"):
            for notice in self._held:
                await self._receive(notice)
                await self._killed(lambda: events.process(self.database, self.rail))
            self._held.clear()
            return
        self.random.shuffle(self._held)
        now, self._held = self._held[:count], self._held[count:]
        for notice in now:
            for copy in range(self.random.choice((1, 1, 2))):
                await self._receive(msgspec.structs.replace(notice, id=f"{notice.id}-{copy}"))
        await asyncio.gather(*(events.process(self.database, self.rail) for _ in range(3)))

    async def _receive(self, notice: Notice) -> None:
        body = msgspec.json.encode(notice)
        secret = self.rail._secret
        await events.receive(self.database, self.rail, body, sign(secret, self.database.clock.now(), body))

    def _fault(self, verb: str) -> Fault:
        if not self._failing or verb not in FAULTS or self.random.random() < 0.5:
            return None
        self._failing -= 1
        return "after" if verb.endswith(":answer") else "down"


class Person:
    """A customer. An act that succeeded says so to the model."""

    def __init__(self, world: World, actor: Actor) -> None:
        self.world, self.actor, self.user_id = world, actor, actor.require_user()
        self.database, self.rail = world.database, world.rail
        business = self.database.business
        units = MINIMA[world.scale.currency]
        self.model = Model(Fraction(business.rates.get("DE", 0)), business.inclusive, *units)
        self.page: Checkout | None = None  # of the purchase that is under way
        self._trials: set[str] = set()

    async def see(self) -> None:
        """Check the invoices since the last time."""
        bought = {"userId": self.user_id, "status": "PAID", "kind": {"$ne": "CARD"}}
        invoices = [
            each async for each in self.database[INVOICES].stream({"userId": self.user_id}, sort=[("$natural", 1)])
        ]
        paid_for = {each.checkout_id for each in invoices}
        for checkout in await self.database[CHECKOUTS].find(bought):
            if checkout.id not in paid_for | self._trials:
                self._trials.add(checkout.id)
                self.model.try_out(checkout.id)
        entries = [
            each async for each in self.database[CREDITS].stream({"userId": self.user_id}, sort=[("$natural", 1)])
        ]
        self.model.see(invoices, entries, self.world.plans)

    async def charges(self) -> list[Any]:
        found = await self.database[CHARGES].find({"userId": self.user_id}, sort=[("createdAt", 1), ("_id", 1)])
        return [each for each in found if each.status == "PAID"]


def buy(plan: str, card: str, code: str | None, terms: Coupon | None) -> Act:
    async def act(person: Person) -> None:
        world = person.world
        begun = person.page or await checkouts.start(
            world.database, world.rail, world.settings, person.actor,
            plan_id=plan, coupon=code, return_url="http://localhost/",
        )  # fmt: skip
        # A declined card that is entered on two pages is declined twice: a repeat uses the same page.
        person.page = begun if card in DECLINED else None
        person.model.asked[begun.id] = (
            world.plans[plan],
            world.scale.terms(terms),
            world.database.clock.now().replace(microsecond=0),
        )
        await world.rail.enter_card(str(begun.session_id), card)

    return act


def new_card(card: str) -> Act:
    async def act(person: Person) -> None:
        world = person.world
        begun = await checkouts.add_method(
            world.database, world.rail, world.settings, person.actor, return_url="http://localhost/"
        )
        await world.rail.enter_card(str(begun.session_id), card)

    return act


def change(plan: str, when: changes.When | None) -> Act:
    async def act(person: Person) -> None:
        found = await changes.change(person.database, person.rail, person.actor, plan_id=plan, when=when)
        # A change to the present plan withdraws a pending one.
        person.model.pending = person.world.plans[plan] if found.pending_plan_id == plan else None

    return act


async def clear(person: Person) -> None:
    await changes.clear(person.database, person.actor)
    person.model.pending = None


def cancel(now: bool) -> Act:
    async def act(person: Person) -> None:
        await subscriptions.cancel(person.database, person.actor, now=now)
        person.model.pending = None

    return act


async def resume(person: Person) -> None:
    await subscriptions.resume(person.database, person.actor)


def apply(code: str, terms: Coupon) -> Act:
    async def act(person: Person) -> None:
        await rebates.apply(person.database, person.actor, code)
        scaled = person.world.scale.terms(terms)
        assert scaled is not None
        person.model.apply(scaled)

    return act


def time(length: timedelta) -> Act:
    return lambda person: person.world.pass_time(length)


def extend(days: int) -> Act:
    async def act(person: Person) -> None:
        until = person.database.clock.now().replace(minute=0, second=0, microsecond=0) + timedelta(days=days)
        await operations.extend(person.database, OPERATOR, user_id=person.user_id, until=until, reason="-")
        person.model.extend(until)

    return act


def refund(which: int, percent: int, to: Literal["CARD", "BALANCE"]) -> Act:
    async def act(person: Person) -> None:
        if found := await person.charges():
            charge = found[which % len(found)]
            amount = max(charge.amount_minor * percent // 100, 1)
            await refunds.refund(
                person.database, person.rail, OPERATOR,
                user_id=charge.user_id, payment_id=charge.payment_id, amount_minor=amount, to=to, reason="-",
                key=str(person.database.clock.now()),
            )  # fmt: skip

    return act


def dispute(which: int, outcome: Literal["WON", "LOST"]) -> Act:
    async def act(person: Person) -> None:
        found = [each for each in await person.charges() if each.outside is None]
        if found:
            intent_id = str(found[which % len(found)].intent_id)
            known = await person.database[SANDBOX_OBJECTS].find({"kind": "dispute", "intentId": intent_id})
            opened = known[0].id if known else await person.rail.open_dispute(intent_id)
            await person.rail.decide_dispute(opened, outcome)

    return act


def grant(minor: int) -> Act:
    async def act(person: Person) -> None:
        await statement.grant(
            person.database, OPERATOR, user_id=person.user_id, amount=person.world.scale.money(minor), reason="-",
            key=str(person.database.clock.now()),
        )  # fmt: skip

    return act


async def pay(person: Person) -> None:
    account = await person.database[BILLING_ACCOUNTS].get(person.user_id)
    if account.invoice_id is not None:
        await methods.pay(person.database, person.rail, person.actor, account.invoice_id)


async def mark_paid(person: Person) -> None:
    account = await person.database[BILLING_ACCOUNTS].get(person.user_id)
    if account.invoice_id is not None:
        await operations.mark_paid(
            person.database, OPERATOR, user_id=person.user_id, invoice_id=account.invoice_id, method="-", reason="-"
        )


def reprice(plan: str, minor: int) -> Act:
    async def act(person: Person) -> None:
        price = person.world.scale.money(minor)
        await catalogue.edit(person.database, OPERATOR, plan, price=price.major)
        await operations.reprice(person.database, OPERATOR, plan_id=plan)
        for each in person.world.people:
            await _repriced(each, plan, price.minor)

    return act


async def _repriced(person: Person, plan: str, minor: int) -> None:
    found = await person.database.subscriptions.find_one(
        {"userId": person.user_id, "status": {"$in": ["ACTIVE", "PAST_DUE"]}}
    )
    if found is not None and found.plan_id == plan and found.auto_renew and found.pending_plan_id is None:
        person.model.reprice(minor)


async def close(person: Person) -> None:
    """The account is closed, and erased: its subscription has ended."""
    now = person.database.clock.now()
    await person.database.users.patch({"_id": person.user_id}, {"$set": {"deletedAt": now, "closedAt": now}})
    await erasure.end_subscriptions(person.database, person.user_id)
