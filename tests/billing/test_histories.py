"""Random histories of billing: events of the provider that are permuted, doubled, delayed and delivered concurrently,
and a provider that fails, end in the same state as in order; and nothing contradicts itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal

import hypothesis
import msgspec
import pytest
from bson import ObjectId
from hypothesis import strategies as st
from tests.billing.conftest import GOOD, HARD, LATER, OPERATOR, OTHER, SOFT, moved

from ximler.billing import changes, checkouts, events, methods, operations, rebates, refunds, run, subscriptions
from ximler.billing.provider import Notice
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Fault, Sandbox, sign
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.clock import Clock, to_ms
from ximler.core.errors import XimlerError
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.invoice import INVOICES
from ximler.schema.refund import REFUNDS
from ximler.schema.user import User

BEGIN = datetime(2027, 1, 31, 12, tzinfo=UTC)
REFUNDS_LATER, REFUNDS_FAIL = "4000000000007726", "4000000000003220"
WRITTEN = (
    "billingaccounts", "billingevents", "charges", "checkouts", "credits", "entitlements", "invoicenumbers", "invoices",
    "notifications", "outbox", "payments", "redemptions", "refunds", "sandboxobjects", "subscriptions", "trials", "users",
)  # fmt: skip
FAULTS = ("create_intent", "create_intent:answer", "confirm", "confirm:answer", "intent", "refund", "refund:answer")

Order = Literal["in order", "disturbed", "chaos"]
Act = Callable[["World"], Awaitable[object]]


class World:
    """One user, whose history is played. `disturbed` settles after every act, `chaos` only at the end."""

    def __init__(self, database: Database, rail: Sandbox, settings: Settings, order: Order, seed: int) -> None:
        self.database, self.rail, self.settings, self.order = database, rail, settings, order
        self.random = Random(seed)
        self.held: list[Notice] = []
        self.actor = Actor(kind="user", via="session", user_id=ObjectId())
        self.failing = 0
        rail.deliver = self._hold
        rail.fault = self._fault

    async def play(self, acts: list[Act]) -> None:
        await self.database.users.insert(
            User(id=self.actor.require_user(), name="Ada", email=f"{self.actor.user_id}@example.com", password="-")
        )
        for act in acts:
            if self.order != "in order":
                self.failing = self.random.choice((0, 0, 1, 2))
            with suppress(XimlerError):
                await act(self)
            if self.order == "chaos":
                await self._deliver(self.random.randint(0, len(self.held)))
            else:
                await self.settle()
        self.failing = 0
        for _ in range(3):
            await self.settle()

    async def settle(self) -> None:
        """All events arrive, and the provider answers again."""
        for _ in range(4):
            await self._deliver(len(self.held))
            self.failing = 0
            await run.run(self.database, self.rail)
            self.database.clock.offset_ms += 6 * 60_000

    async def pass_time(self, days: int) -> None:
        until = self.database.clock.now() + timedelta(days=days)
        await run.forward(self.database, self.rail, until)
        self.database.clock.offset_ms += to_ms(until) - self.database.clock.now_ms()

    async def charges(self) -> list[Any]:
        found = await self.database[CHARGES].find({"userId": self.actor.user_id}, sort=[("createdAt", 1), ("_id", 1)])
        return [each for each in found if each.status == "PAID"]

    async def _hold(self, body: bytes, signature: str) -> None:
        self.held.append(msgspec.json.decode(body, type=Notice))

    async def _deliver(self, count: int) -> None:
        """Some of the held events: in order, or shuffled, doubled, and processed by three at once."""
        if self.order == "in order":
            for notice in self.held:
                await self._receive(notice)
                await events.process(self.database, self.rail)
            self.held.clear()
            return
        self.random.shuffle(self.held)
        now, self.held = self.held[:count], self.held[count:]
        for notice in now:
            for copy in range(self.random.choice((1, 1, 2))):
                await self._receive(msgspec.structs.replace(notice, id=f"{notice.id}-{copy}"))
        await asyncio.gather(*(events.process(self.database, self.rail) for _ in range(3)))

    async def _receive(self, notice: Notice) -> None:
        body = msgspec.json.encode(notice)
        secret = self.rail._secret
        await events.receive(self.database, self.rail, body, sign(secret, self.database.clock.now(), body))

    def _fault(self, verb: str) -> Fault:
        if not self.failing or verb not in FAULTS or self.random.random() < 0.5:
            return None
        self.failing -= 1
        return "after" if verb.endswith(":answer") else "down"


def buy(plan: str, card: str, coupon: str | None) -> Act:
    async def act(world: World) -> None:
        begun = await checkouts.start(
            world.database,
            world.rail,
            world.settings,
            world.actor,
            plan_id=plan,
            coupon=coupon,
            return_url="http://localhost/",
        )
        await world.rail.enter_card(str(begun.session_id), card)

    return act


def new_card(card: str) -> Act:
    async def act(world: World) -> None:
        begun = await checkouts.change_card(
            world.database, world.rail, world.settings, world.actor, return_url="http://localhost/"
        )
        await world.rail.enter_card(str(begun.session_id), card)

    return act


def change(plan: str, when: changes.When | None) -> Act:
    return lambda world: changes.change(world.database, world.rail, world.actor, plan_id=plan, when=when)


def cancel(now: bool) -> Act:
    return lambda world: subscriptions.cancel(world.database, world.actor, now=now)


def coupon(code: str) -> Act:
    return lambda world: rebates.apply(world.database, world.actor, code)


def time(days: int) -> Act:
    return lambda world: world.pass_time(days)


def extend(days: int) -> Act:
    async def act(world: World) -> None:
        user_id = world.actor.require_user()
        until = world.database.clock.now().replace(minute=0, second=0) + timedelta(days=days)
        await operations.extend(world.database, OPERATOR, user_id=user_id, until=until, reason="-")

    return act


def refund(which: int, percent: int, to: Literal["CARD", "BALANCE"]) -> Act:
    async def act(world: World) -> None:
        if found := await world.charges():
            charge = found[which % len(found)]
            amount = max(charge.amount_minor * percent // 100, 1)
            await refunds.refund(
                world.database, world.rail, OPERATOR,
                user_id=charge.user_id, payment_id=charge.payment_id, amount_minor=amount, to=to, reason="-",
            )  # fmt: skip

    return act


def dispute(which: int, outcome: Literal["WON", "LOST"]) -> Act:
    async def act(world: World) -> None:
        if found := await world.charges():
            opened = await world.rail.open_dispute(str(found[which % len(found)].intent_id))
            await world.rail.decide_dispute(opened, outcome)

    return act


async def pay(world: World) -> None:
    account = await world.database[BILLING_ACCOUNTS].get(world.actor.require_user())
    if account.invoice_id is not None:
        await methods.pay(world.database, world.rail, world.actor, account.invoice_id)


PLANS, CARDS = (
    st.sampled_from(["pro", "enterprise", "yearly", "trial"]),
    st.sampled_from([GOOD, OTHER, LATER, REFUNDS_LATER]),
)
BAD = st.sampled_from([SOFT, HARD, REFUNDS_FAIL, GOOD])
CODES = st.sampled_from(["WELCOME20", "HALF", "TAKE9"])
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(change, PLANS, st.sampled_from([None, "NOW", "PERIOD_END"])),
    st.builds(cancel, st.booleans()),
    st.just(lambda world: subscriptions.resume(world.database, world.actor)),
    st.just(lambda world: changes.clear(world.database, world.actor)),
    st.builds(coupon, CODES),
    st.builds(time, st.sampled_from([1, 3, 10, 31, 40, 75])),
    st.builds(time, st.sampled_from([1, 3, 10, 31, 40, 75])),
    st.builds(extend, st.sampled_from([20, 50])),
    st.builds(refund, st.integers(0, 3), st.sampled_from([1, 33, 50, 100]), st.sampled_from(["CARD", "BALANCE"])),
    st.builds(dispute, st.integers(0, 3), st.sampled_from(["WON", "LOST"])),
    st.builds(new_card, BAD),
    st.builds(buy, PLANS, CARDS, st.one_of(st.none(), CODES)),
    st.just(pay),
)
HISTORIES = st.tuples(st.builds(buy, PLANS, CARDS, st.one_of(st.none(), CODES)), st.lists(ACTS, min_size=2, max_size=8))


async def ended(world: World) -> dict[str, Any]:
    """The state that a customer and an accountant see, and its invariants."""
    database, user_id = world.database, world.actor.require_user()
    assert await verify(database) == []
    account = await database[BILLING_ACCOUNTS].get(user_id)
    assert (account.charge_id, account.checkout_id, account.refunds) == (None, None, [])
    paid = sum(each.amount_minor for each in await world.charges())
    returned = await database[REFUNDS].find({"userId": user_id, "status": "SUCCEEDED", "to": {"$ne": "BALANCE"}})
    assert await moved(database) == paid - sum(each.amount_minor for each in returned)
    subscribed = await database.subscriptions.find({"userId": user_id})
    return {
        "subscriptions": sorted(
            (
                s.status,
                s.plan_id,
                s.price_minor,
                s.auto_renew,
                str(s.pending_plan_id),
                str(s.period_start),
                str(s.period_end),
            )
            for s in subscribed
        ),
        "payments": sorted((p.status, p.amount_minor) for p in await database.payments.find({"userId": user_id})),
        "invoices": sorted(
            (i.kind, i.status, i.total_minor, i.due_minor) for i in await database[INVOICES].find({"userId": user_id})
        ),
        "balances": {currency: minor for currency, minor in account.balances.items() if minor},
        "coupons": {each.code: each.used_count for each in await database.coupons.find({"code": {"$gt": ""}})},
    }


async def playing(database: Database, settings: Settings, acts: list[Act], order: Order, seed: int) -> dict[str, Any]:
    for name in WRITTEN:
        await database.raw[name].delete_many({})
    await database.raw["coupons"].update_many({}, {"$set": {"usedCount": 0, "pending": {}}})
    database.clock.offset_ms = 0
    world = World(database, sandbox(database, settings), settings, order, seed)
    await world.play(acts)
    return await ended(world)


@pytest.fixture
async def stage(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Plans, coupons, and a clock that stands still between acts."""
    limits = {"projects": 9, "storage": 9, "apiCalls": 9}
    for plan_id, price, more in (("yearly", 290, {"interval": "YEAR"}), ("trial", 19.9, {"trialDays": 14})):
        plan = {
            "_id": ObjectId(),
            "id": plan_id,
            "name": plan_id,
            "price": price,
            "interval": "MONTH",
            "limits": limits,
        }
        await database.raw["plans"].insert_one(plan | {"currency": "USD", "active": True} | more)
    for code, kind, value, duration in (("HALF", "PERCENTAGE", 50, "FOREVER"), ("TAKE9", "FIXED", 9, "ONCE")):
        await database.raw["coupons"].insert_one(
            {
                "code": code, "name": code, "type": kind, "value": value, "currency": "USD", "usedCount": 0,
                "validFrom": BEGIN - timedelta(days=400), "validUntil": BEGIN + timedelta(days=4000),
                "active": True, "duration": duration,
            }
        )  # fmt: skip
    begin = to_ms(BEGIN)
    monkeypatch.setattr(Clock, "now_ms", lambda clock: begin + clock.offset_ms)
    return database


async def check(stage: Database, settings: Settings, history: tuple[Act, list[Act]], seed: int) -> None:
    acts = [history[0], *history[1]]
    in_order = await playing(stage, settings, acts, "in order", seed)
    assert await playing(stage, settings, acts, "disturbed", seed) == in_order
    await playing(stage, settings, acts, "chaos", seed)


def histories(count: int, *, new: bool) -> hypothesis.settings:
    slow = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
    return hypothesis.settings(max_examples=count, deadline=None, suppress_health_check=slow, derandomize=not new)


@histories(2, new=False)
@hypothesis.given(history=HISTORIES, seed=st.integers(0, 2**32))
async def test_a_random_history_ends_as_in_order(
    stage: Database, settings: Settings, history: tuple[Act, list[Act]], seed: int
) -> None:
    await check(stage, settings, history, seed)


@pytest.mark.soak
@histories(1000, new=True)
@hypothesis.given(history=HISTORIES, seed=st.integers(0, 2**32))
async def test_a_thousand_random_histories_end_as_in_order(
    stage: Database, settings: Settings, history: tuple[Act, list[Act]], seed: int
) -> None:
    await check(stage, settings, history, seed)
