"""Random histories of billing: events of the provider that are permuted, doubled, delayed and delivered
concurrently, a provider that fails, and a process that is killed, end in the same state as in order; nothing
contradicts itself; and every invoice says what the rules say.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from tests.billing import world
from tests.billing.conftest import AUTHENTICATION, FAILS_LATER, GOOD, HARD, LATER, OTHER, SOFT, add_plan
from tests.billing.killing import Killer
from tests.billing.ledger import at_rest, state
from tests.billing.model import Coupon
from tests.billing.world import Act, Order, Scale, World

from ximler.billing import redemptions
from ximler.billing.rails import sandbox
from ximler.core.business import Business
from ximler.core.clock import Clock, to_ms
from ximler.core.settings import Settings
from ximler.database import Database

BEGIN = datetime(2027, 1, 31, 12, tzinfo=UTC)
REFUNDS_LATER, REFUNDS_FAIL = "4000000000007726", "4000000000003220"
WRITTEN = (
    "auditlogs", "billingaccounts", "billingevents", "charges", "checkouts", "credits", "entitlements", "invoicenumbers",
    "invoices", "movements", "notifications", "outbox", "payments", "redemptions", "refunds", "sandboxobjects",
    "subscriptions", "trials", "users",
)  # fmt: skip
COUPONS = {
    "WELCOME20": Coupon(percent=Fraction(20), plans=("pro", "enterprise")),
    "HALF": Coupon(percent=Fraction(50), left=None),
    "THRICE": Coupon(percent=Fraction("12.5"), left=3),
    "TAKE9": Coupon(minor=900),
    "ALL": Coupon(percent=Fraction(100), left=2),
}

PLANS = st.sampled_from(["pro", "enterprise", "yearly", "trial"])
CARDS = st.sampled_from([GOOD, GOOD, OTHER, LATER, REFUNDS_LATER])
BAD = st.sampled_from([SOFT, HARD, AUTHENTICATION, FAILS_LATER, REFUNDS_FAIL, GOOD, OTHER])
CODES = st.none() | st.sampled_from(list(COUPONS))
LENGTHS = st.sampled_from([timedelta(hours=4), *(timedelta(days=days) for days in (1, 3, 10, 28, 31, 40, 75, 400))])


def buy(plan: str, card: str, code: str | None) -> Act:
    return world.buy(plan, card, code, COUPONS[code] if code else None)


FIRST = st.builds(buy, PLANS, CARDS, CODES)
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(world.change, PLANS, st.sampled_from([None, "NOW", "PERIOD_END"])),
    st.builds(world.cancel, st.booleans()),
    st.just(world.resume),
    st.just(world.clear),
    st.builds(lambda code: world.apply(code, COUPONS[code]), st.sampled_from(list(COUPONS))),
    st.builds(world.time, LENGTHS),
    st.builds(world.time, LENGTHS),
    st.builds(world.extend, st.sampled_from([20, 50])),
    st.builds(world.refund, st.integers(0, 3), st.sampled_from([1, 33, 50, 100]), st.sampled_from(["CARD", "BALANCE"])),
    st.builds(world.dispute, st.integers(0, 3), st.sampled_from(["WON", "LOST"])),
    st.builds(world.new_card, BAD),
    st.builds(world.new_card, BAD),
    st.builds(buy, PLANS, st.one_of(CARDS, BAD), CODES),
    st.builds(world.grant, st.sampled_from([500, 20_000, -30])),
    st.builds(world.reprice, st.sampled_from(["pro", "trial"]), st.sampled_from([1950, 3100])),
    st.sampled_from([world.pay, world.mark_paid, world.pay, world.close]),
)
HISTORIES = st.tuples(
    st.lists(FIRST, min_size=1, max_size=2), st.lists(st.tuples(st.integers(0, 1), ACTS), min_size=2, max_size=9)
)
SCALES = st.sampled_from([Scale("USD", 1), Scale("USD", 1), Scale("JPY", 1), Scale("KWD", 1), Scale("KWD", 34_000_000)])
PRICES = {"pro": 2900, "enterprise": 9900, "yearly": 29_000, "trial": 1990}
TAXES = st.sampled_from([(0, False), (19, False), ("7.7", True)])


async def playing(
    database: Database, settings: Settings, killer: Killer, history: Any, order: Order, seed: int, scale: Scale
) -> list[dict[str, Any]]:
    for name in WRITTEN:
        await database.raw[name].delete_many({})
    await database.raw["coupons"].update_many({}, {"$set": {"usedCount": 0, "pending": {}}})
    for plan_id, minor in PRICES.items():
        values = {"price": scale.money(minor).major, "currency": scale.currency}
        await database.raw["plans"].update_one({"id": plan_id}, {"$set": values})
    fixed = {"value": scale.money(COUPONS["TAKE9"].minor).major, "currency": scale.currency}
    await database.raw["coupons"].update_one({"code": "TAKE9"}, {"$set": fixed})
    database.clock.offset_ms = 0
    playing = World(database, sandbox(database, settings), settings, killer, order, seed, scale)
    first, then = history
    await playing.play(len(first), [*enumerate(first), *then])
    users = [person.user_id for person in playing.people]
    await at_rest(database, *users)
    return [await state(database, user_id) for user_id in users]


@pytest.fixture
async def stage(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Plans, coupons, and a clock that stands still between acts."""
    await add_plan(database, "yearly", 290, interval="YEAR")
    await add_plan(database, "trial", 19.9, trial_days=14)
    validity = {"validFrom": BEGIN - timedelta(days=400), "validUntil": BEGIN + timedelta(days=40_000)}
    for code, terms in COUPONS.items():
        kind, value = ("PERCENTAGE", float(terms.percent)) if terms.percent else ("FIXED", terms.minor / 100)
        duration = {None: "FOREVER", 1: "ONCE"}.get(terms.left, "REPEATING")
        values = {
            "name": code, "type": kind, "value": value, "currency": "USD", "usedCount": 0, "active": True,
            "duration": duration, "durationPeriods": terms.left, "applicablePlans": list(terms.plans),
        }  # fmt: skip
        await database.raw["coupons"].update_one({"code": code}, {"$set": values | validity}, upsert=True)
    begin = to_ms(BEGIN)
    monkeypatch.setattr(Clock, "now_ms", lambda clock: begin + clock.offset_ms)
    monkeypatch.setattr(redemptions, "_TAKE_OVER", timedelta(seconds=-1))  # the clock stands still
    return database


def shown(act: Act) -> str:
    """`change("pro", None)`: the act, and what it was made with."""
    values = [cell.cell_contents for cell in getattr(act, "__closure__", None) or ()]
    return f"{act.__qualname__.removesuffix('.<locals>.act').removesuffix('.<locals>.<lambda>')}{values}"


async def check(
    stage: Database, settings: Settings, monkeypatch: Any, history: Any, tax: Any, seed: int, scale: Scale
) -> None:
    first, then = history
    hypothesis.note(
        f"{[shown(act) for act in first]}, {[(who, shown(act)) for who, act in then]}, {tax}, {scale}, {seed}"
    )
    percent, inclusive = tax
    monkeypatch.setattr(
        stage,
        "business",
        Business(country="DE", rates={"DE": Decimal(percent)} if percent else {}, inclusive=inclusive),
    )
    killer = Killer(monkeypatch)
    in_order = await playing(stage, settings, killer, history, "in order", seed, scale)
    assert await playing(stage, settings, killer, history, "disturbed", seed, scale) == in_order
    assert await playing(stage, settings, killer, history, "killed", seed, scale) == in_order
    await playing(stage, settings, killer, history, "chaos", seed, scale)


def histories(count: int, *, new: bool) -> hypothesis.settings:
    slow = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
    return hypothesis.settings(max_examples=count, deadline=None, suppress_health_check=slow, derandomize=not new)


@pytest.mark.slow
@histories(2, new=False)
@hypothesis.given(history=HISTORIES, tax=TAXES, scale=SCALES, seed=st.integers(0, 2**32))
async def test_a_random_history_ends_as_in_order(
    stage: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    history: Any,
    tax: Any,
    scale: Scale,
    seed: int,
) -> None:
    await check(stage, settings, monkeypatch, history, tax, seed, scale)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(1, 41))
@histories(25, new=True)
@hypothesis.given(history=HISTORIES, tax=TAXES, scale=SCALES, seed=st.integers(0, 2**32))
async def test_a_thousand_random_histories_end_as_in_order(
    stage: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    history: Any,
    tax: Any,
    scale: Scale,
    seed: int,
    part: int,
) -> None:
    """In forty parts, so that progress is seen, and one part can be run alone."""
    await check(stage, settings, monkeypatch, history, tax, seed, scale)


LEAP = (  # bought on 29 February 2028, and renewed on 28 February 2029
    [world.time(timedelta(days=394)), world.time(timedelta(hours=4))],
    [
        (0, buy("pro", GOOD, "THRICE")), (1, buy("yearly", GOOD, "TAKE9")), (0, world.time(timedelta(days=31))),
        (0, world.refund(0, 33, "CARD")), (0, world.change("enterprise", None)), (0, world.cancel(False)),
        (1, world.refund(0, 1, "BALANCE")), (1, world.change("pro", "PERIOD_END")), (1, world.time(timedelta(days=336))),
    ],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("scale", [Scale("KWD", 34_000_000), pytest.param(Scale("JPY", 1), marks=pytest.mark.soak)])
async def test_leap_years_in_currencies_without_and_with_three_decimals(
    scale: Scale, stage: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amounts of up to 10^12 minor units. The model checks every invoice."""
    monkeypatch.setattr(stage, "business", Business(country="DE", rates={"DE": Decimal("7.7")}))
    first, second = await playing(stage, settings, Killer(monkeypatch), LEAP, "in order", 0, scale)
    (ended,), (renewed,) = first["subscriptions"], second["subscriptions"]
    assert (ended[0], ended[1], ended[8]) == ("CANCELLED", "enterprise", "2028-04-29")
    assert (renewed[0], renewed[1], renewed[5:7]) == ("ACTIVE", "pro", ("2029-02-28", "2029-03-28"))


DISPUTED = (  # a part went to the balance, and then the bank took the whole payment back
    [buy("pro", GOOD, None)],
    [(0, world.refund(2, 50, "BALANCE")), (0, world.dispute(3, "LOST")), (0, world.time(timedelta(days=31)))],
)


@pytest.mark.slow
async def test_a_payment_that_was_refunded_to_the_balance_and_then_disputed(
    stage: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a random history."""
    killer, scale = Killer(monkeypatch), Scale("KWD", 1)
    (in_order,) = await playing(stage, settings, killer, DISPUTED, "in order", 83098890, scale)
    assert in_order["payments"][0] == ("PAID", 2900)  # of the renewal: the balance has nothing to pay with
    for order in ("disturbed", "killed"):
        assert await playing(stage, settings, killer, DISPUTED, order, 83098890, scale) == [in_order]
