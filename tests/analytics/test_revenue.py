"""Reports of recurring revenue, with worked examples:
from purchases through the sandbox, and from a written ledger."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.billing.conftest import LATER, Buy, Buyer, add_plan, at, card_of, subscription
from tests.billing.killing import Killer

from ximler.analytics import retention, revenue, rollups, verification
from ximler.analytics.revenue import Mrr
from ximler.billing import changes, drifts, movements, rebates, run, subscriptions
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden, Invalid
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.coupon import Coupon
from ximler.schema.customer_day import CUSTOMER_DAYS
from ximler.schema.movement import MOVEMENTS, Movement
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

NOVEMBER = (date(2027, 11, 1), date(2027, 12, 1))


async def report(database: Database, start: date, end: date, **more: Any) -> list[Mrr]:
    return await revenue.mrr(database, SYSTEM, start=start, end=end, **more)


async def on(database: Database, *day: int) -> Mrr:
    """The only currency's figures at the end of a day."""
    start = date(*day)
    (found,) = await report(database, start, date.fromordinal(start.toordinal() + 1), by="DAY")
    return found


async def write(database: Database, *rows: tuple[ObjectId, str, int], currency: str = "USD") -> None:
    """A ledger: customers, days (or instants), and minor units a month from
    then on. One subscription each."""
    for user_id, moment, minor in rows:
        instant = datetime.fromisoformat(moment).replace(tzinfo=UTC)
        count = await database[MOVEMENTS].count({"userId": user_id})
        await database[MOVEMENTS].insert(
            Movement(
                id=f"{user_id}:{count}",
                user_id=user_id,
                subscription_id=user_id,
                number=count,
                at=instant,
                plan_id="pro",
                currency=currency,
                annual_minor=12 * minor,
                committed_minor=12 * minor,
                at_risk_minor=0,
                pending=True,
            )
        )


@pytest.mark.slow
async def test_years_and_months_are_summed_before_they_are_rounded(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    await add_plan(database, "yearly", 100, interval="YEAR")
    at(database, 2027, 11, 3)
    for _ in range(3):
        await buy(await buyer(), "yearly")
    assert (await on(database, 2027, 11, 3)).end_minor == 2500
    await add_plan(database, "large", 290, interval="YEAR", currency="EUR")
    await add_plan(database, "small", 29, currency="EUR")
    await buy(await buyer(), "large")
    await buy(await buyer(), "small")
    euros, dollars = await report(database, *NOVEMBER)
    assert (euros.currency, euros.end_minor, euros.customers, euros.arpa_minor) == ("EUR", 5317, 2, 2658)
    assert (dollars.currency, dollars.end_minor, dollars.customers) == ("USD", 2500, 3)


@pytest.mark.slow
async def test_a_coupon_counts_if_it_holds_for_ever(database: Database, rail: Sandbox, buyer: Buyer, buy: Buy) -> None:
    terms: Any = {
        "type": "PERCENTAGE",
        "value": 50,
        "valid_from": datetime(2026, 1, 1, tzinfo=UTC),
        "valid_until": datetime(2029, 1, 1, tzinfo=UTC),
    }
    await database.coupons.insert(Coupon(code="EVER", name="Ever", duration="FOREVER", **terms))
    at(database, 2027, 11, 3)
    await buy(await buyer(), coupon="EVER")
    assert (await on(database, 2027, 11, 3)).end_minor == 1450
    ada = await buyer()
    await buy(ada, coupon="WELCOME20")
    assert (await on(database, 2027, 11, 3)).end_minor == 1450 + 2900
    await database.coupons.insert(Coupon(code="LATE", name="Late", duration="FOREVER", **terms))
    await rebates.apply(database, ada, "LATE")
    found = await on(database, 2027, 11, 3)
    assert (found.end_minor, found.customers, found.new) == (2900, 2, 2)


@pytest.mark.slow
async def test_77_customers_at_15_with_14_off_once_are_1155(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    terms: Any = {
        "type": "FIXED",
        "value": 14,
        "valid_from": datetime(2026, 1, 1, tzinfo=UTC),
        "valid_until": datetime(2029, 1, 1, tzinfo=UTC),
    }
    await database.coupons.insert(Coupon(code="FIRST", name="First", duration="ONCE", **terms))
    await add_plan(database, "fifteen", 15)
    at(database, 2027, 11, 3)
    await buy(await buyer(), "fifteen", coupon="FIRST")
    (paid,) = await database.payments.find({})
    assert paid.amount == 1
    movement = await database[MOVEMENTS].find_one({})
    assert movement is not None
    await write(database, *((ObjectId(), "2027-11-03", movement.annual_minor // 12) for _ in range(76)))
    found = await on(database, 2027, 11, 3)
    assert (found.end_minor, found.customers, found.arpa_minor) == (115_500, 77, 1500)


@pytest.mark.slow
async def test_a_failed_payment_is_at_risk_and_a_trial_does_not_count(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    people = [await buyer() for _ in range(3)]
    for each in people:
        await buy(each)
    await add_plan(database, "try", 20, trial_days=14)
    await buy(await buyer(), "try", card=LATER)
    await card_of(database, people[0], "4000000000009995")
    assert (await on(database, 2027, 1, 15)).end_minor == 8700
    at(database, 2027, 2, 15, 1)
    await run.run(database, rail)
    found = await on(database, 2027, 2, 15)
    assert (await subscription(database, people[0])).status == "PAST_DUE"
    assert (found.at_risk_minor, found.committed_minor - found.end_minor) == (2900, 0)
    assert found.end_minor == 8700 + 2000


@pytest.mark.slow
async def test_a_cancellation_counts_when_it_is_made_and_churn_when_the_period_ends(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 10, 23)
    ada = await buyer()
    await buy(ada)
    at(database, 2027, 11, 3)
    await subscriptions.cancel(database, ada)
    await run.forward(database, rail, datetime(2027, 12, 24, tzinfo=UTC))
    third, before, last = [await on(database, 2027, 11, day) for day in (3, 22, 23)]
    assert (third.cancelled, third.committed_minor, third.end_minor) == (1, 0, 2900)
    assert (before.end_minor, before.churn_minor, before.cancelled) == (2900, 0, 0)
    assert (last.end_minor, last.churn_minor, last.churned, last.customers) == (0, 2900, 1, 0)


@pytest.mark.slow
async def test_an_upgrade_is_expansion_by_its_price_and_history_stays(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    await add_plan(database, "team", 99)
    at(database, 2027, 11, 1)
    ada, bob = await buyer(), await buyer()
    await buy(ada)
    at(database, 2027, 11, 15)
    await changes.change(database, rail, ada, plan_id="team")
    paid = await database.payments.find({"userId": ada.user_id, "status": "PAID"})
    assert 2900 in (amounts := sorted(each.amount_minor for each in paid))
    assert (len(amounts), 7000 in amounts) == (2, False)  # what the rest of the month costs
    (found,) = await report(database, *NOVEMBER)
    assert (found.start_minor, found.new_minor, found.expansion_minor, found.end_minor) == (0, 2900, 7000, 9900)
    assert found.committed_minor == 9900
    await changes.change(database, rail, ada, plan_id="pro")
    await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"price": 39}})
    await buy(bob)
    first, later = [await on(database, 2027, 11, day) for day in (1, 15)]
    assert (first.new_minor, first.end_minor) == (2900, 2900)
    assert (later.new_minor, later.expansion_minor, later.end_minor) == (3900, 7000, 13_800)
    assert later.committed_minor == 2900 + 3900


async def test_the_last_day_is_the_same_by_day_week_and_month(database: Database) -> None:
    ada, bob = ObjectId(), ObjectId()
    await write(
        database,
        (bob, "2027-02-20", 2900),
        (bob, "2027-03-10", 0),
        (ada, "2027-02-20", 2900),
        (ada, "2027-03-05", 9900),
    )
    for by in ("DAY", "WEEK", "MONTH"):
        lines = await report(database, date(2027, 2, 1), date(2027, 4, 1), by=by)
        assert lines[-1].end_minor == 9900, by
        assert lines[-1].end == date(2027, 4, 1)
        for line in lines:
            moved = line.new_minor + line.reactivation_minor + line.expansion_minor
            assert line.start_minor + moved - line.contraction_minor - line.churn_minor == line.end_minor


async def test_movements_are_netted_by_customer_and_day(database: Database) -> None:
    ada, bob = ObjectId(), ObjectId()
    await write(database, (ada, "2027-10-01", 2900), (ada, "2027-11-05T10:00", 0), (ada, "2027-11-05T10:05", 9900))
    await write(database, (bob, "2027-10-01", 2900), (bob, "2027-11-06T10:00", 9900), (bob, "2027-11-06T11:00", 2900))
    (found,) = await report(database, *NOVEMBER)
    assert (found.expansion_minor, found.churn_minor, found.contraction_minor) == (7000, 0, 0)
    page = await revenue.movements(database, SYSTEM, start=NOVEMBER[0], end=NOVEMBER[1], currency="usd")
    assert [(each.user_id, each.kind, each.start_minor, each.end_minor) for each in page.items] == [
        (ada, "EXPANSION", 2900, 9900)
    ]
    assert await rollups.refresh(database) == 0
    october: Any = {"start": date(2027, 10, 1), "end": date(2027, 11, 1), "currency": "USD", "first": 1}
    page = await revenue.movements(database, SYSTEM, **october)  # both of one day
    after = decode_cursor(page.cursors[0])
    rest = await revenue.movements(database, SYSTEM, **october, after=after)
    assert {page.items[0].user_id, rest.items[0].user_id} == {ada, bob}
    assert (page.has_next, rest.has_next) == (True, False)


@pytest.mark.slow
async def test_churn_is_of_those_who_were_customers_and_are_gone(database: Database) -> None:
    held, joined = [ObjectId() for _ in range(100)], [ObjectId() for _ in range(30)]
    rows = [(each, "2027-10-01", 1000) for each in held] + [(each, "2027-11-02", 1000) for each in joined]
    rows += [(each, "2027-11-10", 0) for each in [*held[:11], joined[0]]]
    await write(database, *rows, (held[0], "2027-11-20", 1000), (held[20], "2027-11-20", 1500))
    (found,) = await revenue.churn(database, SYSTEM, start=NOVEMBER[0], end=NOVEMBER[1])
    assert (found.customers, found.lost, found.logo_churn) == (100, 10, 0.1)
    assert (found.gross_retention, found.net_retention) == (0.9, 0.905)
    assert (found.gross_churn, found.net_churn) == (0.12, 0.115)
    assert found.lifetime_value_minor == 10_000
    (empty,) = await revenue.churn(database, SYSTEM, start=date(2027, 12, 1), end=date(2028, 1, 1))
    assert (empty.logo_churn, empty.lifetime_value_minor) == (0, None)
    (before,) = await revenue.churn(database, SYSTEM, start=date(2027, 9, 1), end=date(2027, 10, 1), currency="USD")
    assert (before.customers, before.logo_churn, before.gross_retention) == (0, None, None)


async def test_cohorts_follow_those_who_began_in_a_month(database: Database) -> None:
    ada, bob, eve = ObjectId(), ObjectId(), ObjectId()
    await write(database, (ada, "2027-10-01", 2900), (bob, "2027-10-31", 2900), (eve, "2027-11-30", 9900))
    await write(database, (bob, "2027-11-15", 0), (bob, "2027-12-15", 900), (ada, "2027-12-01", 5900))
    october, november = await revenue.cohorts(database, SYSTEM, start=date(2027, 10, 1), end=date(2028, 1, 1))
    assert (october.month, october.size) == (date(2027, 10, 1), 2)
    assert [(each.customers, each.mrr_minor) for each in october.months] == [(2, 5800), (1, 2900), (2, 6800)]
    assert [(each.customers, each.mrr_minor) for each in november.months] == [(1, 9900), (1, 9900)]


@pytest.mark.slow
async def test_months_that_a_range_cuts_say_what_their_days_say(database: Database) -> None:
    chance = random.Random(3)
    for _ in range(12):
        days = sorted(chance.sample(range(120), 4))
        moments = [date.fromordinal(date(2027, 9, 5).toordinal() + day).isoformat() for day in days]
        user_id = ObjectId()
        await write(database, *((user_id, moment, chance.choice((0, 2900, 9900))) for moment in moments))
    for start, end in (
        (date(2027, 9, 1), date(2028, 1, 1)),
        (date(2027, 10, 12), date(2027, 12, 20)),
        (date(2027, 10, 12), date(2027, 11, 1)),
        (date(2027, 11, 1), date(2027, 11, 9)),
        (date(2027, 11, 3), date(2027, 11, 9)),
    ):
        months, daily = [await report(database, start, end, by=by) for by in ("MONTH", "DAY")]
        assert (months[0].start_minor, months[-1].end_minor) == (daily[0].start_minor, daily[-1].end_minor)
        for name in ("new", "churned", "expanded", "contracted", "reactivated"):
            assert sum(getattr(each, name) for each in months) == sum(getattr(each, name) for each in daily), (
                name,
                start,
            )
        assert [each.customers for each in months] == [
            next(day.customers for day in daily if day.end == each.end) for each in months
        ]
    for by in ("DAY", "MONTH"):  # rolled up, and from the customers' days
        found = await revenue.churn(database, SYSTEM, start=date(2027, 9, 1), end=date(2027, 12, 20), by=by)
        of_customers = await retention.kept(database, [(each.currency, each.start, each.end) for each in found], by)
        assert [each.lost for each in found] == [kept.lost for kept in of_customers.values()]
        assert sum(each.lost for each in found) > 0


@pytest.mark.slow
async def test_rollups_that_race_and_are_repeated_say_the_same(database: Database) -> None:
    people = [ObjectId() for _ in range(40)]
    await write(database, *((each, "2027-11-02", 1000 + n) for n, each in enumerate(people)))
    await asyncio.gather(*(rollups.refresh(database) for _ in range(4)))
    await write(database, *((each, f"2027-11-{3 + n % 20:02}", 500) for n, each in enumerate(people)))
    await asyncio.gather(*(rollups.refresh(database) for _ in range(4)))
    kept = (REVENUE_DAYS, REVENUE_MONTHS, CUSTOMER_DAYS)
    once = [await database[each].find({}) for each in kept]
    assert {day.dirty for day in once[0]} == {None}
    await database[CUSTOMER_DAYS].delete_many({})
    for sums in (REVENUE_DAYS, REVENUE_MONTHS):
        await database[sums].patch_many({}, {"$set": {"newMinor": 5, "summed": 10_000}})
    await verification.rebuild(database)
    again = [await database[each].find({}) for each in kept]
    for day in [*once[0], *again[0]]:
        day.version = 0
    for each in [*once[0], *again[0], *once[1], *again[1]]:
        each.summed = 0
    assert [sorted(each, key=lambda row: row.id) for each in once] == [
        sorted(each, key=lambda row: row.id) for each in again
    ]
    (found,) = await report(database, *NOVEMBER)
    assert (found.customers, found.end_minor, found.new_minor) == (40, 20_000, 40_780)


async def test_a_report_sums_the_days_of_movements_that_another_process_takes_meanwhile(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = ObjectId()
    await write(database, (ada, "2027-11-02", 1000))
    pending = movements.pending

    async def late(asking: Database, limit: int) -> list[ObjectId]:
        """Another process takes the movements, and is not done with their days."""
        await rollups._roll_up(database, [ada])
        return await pending(asking, limit)

    monkeypatch.setattr(movements, "pending", late)
    (found,) = await report(database, *NOVEMBER)
    assert (found.new_minor, found.end_minor) == (1000, 1000)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(verification.rebuild, marks=pytest.mark.slow),
        # The server ends a transaction of a process that is gone after a minute.
        pytest.param(rollups.refresh, marks=pytest.mark.soak),
    ],
)
async def test_reports_are_the_same_bytes_wherever_a_rollup_is_killed(
    database: Database, monkeypatch: pytest.MonkeyPatch, act: Callable[[Database], Awaitable[int]]
) -> None:
    """Killed before each of its commands in turn, then run twice at once."""
    ada, bob, eve = ObjectId(), ObjectId(), ObjectId()
    await write(database, (ada, "2027-10-01", 2900), (bob, "2027-10-31", 2900), (ada, "2027-11-05", 9900))
    await write(database, (eve, "2027-11-05", 1500), currency="EUR")
    await write(database, (bob, "2027-11-15", 0), (bob, "2027-12-15", 900))
    whole: Any = {"start": date(2027, 10, 1), "end": date(2028, 1, 1)}

    async def bytes_of_reports() -> bytes:
        lines = [await report(database, **whole, by=by) for by in ("DAY", "WEEK", "MONTH")]
        kept = [await revenue.churn(database, SYSTEM, **whole), await revenue.cohorts(database, SYSTEM, **whole)]
        return msgspec.json.encode([lines, kept])

    async def forget() -> None:
        """Empty the rollups, or plant errors in those that only a rebuild corrects."""
        await database[MOVEMENTS].patch_many({}, {"$set": {"pending": True}})
        await database[CUSTOMER_DAYS].delete_many({})
        for each in (REVENUE_DAYS, REVENUE_MONTHS):
            if act is rollups.refresh:
                await database[each].delete_many({})
            else:
                await database[each].patch_many({}, {"$set": {"newMinor": 5, "summed": 10_000}})

    once = await bytes_of_reports()
    killer = Killer(monkeypatch)
    commands, was_killed = 0, True
    while was_killed:
        await forget()
        was_killed = await killer.run(partial(act, database), commands=commands)
        await asyncio.gather(act(database), act(database))
        assert await bytes_of_reports() == once, f"after {commands} commands"
        assert await verification.verify(database) == []
        commands += 1
    assert commands > 10


async def test_planted_errors_in_rollups_are_found_and_corrected(database: Database) -> None:
    ada, bob, eve = ObjectId(), ObjectId(), ObjectId()
    await write(database, (ada, "2027-11-02", 1000), (bob, "2027-11-02", 500), (ada, "2027-12-05", 0))
    assert await verification.verify(database) == []
    await database[CUSTOMER_DAYS].patch({"userId": ada}, {"$set": {"endMinor": 7}})
    await database[CUSTOMER_DAYS].delete({"userId": bob})
    invented = {
        "_id": f"{eve}:USD:2027-11-09",
        "userId": eve,
        "currency": "USD",
        "day": datetime(2027, 11, 9, tzinfo=UTC),
    }
    await database.raw["customerdays"].insert_one(
        invented | {"cohort": "2027-11", "startMinor": 0, "endMinor": 1, "committedMinor": 1, "atRiskMinor": 0}
    )
    await database[REVENUE_DAYS].patch({"_id": "USD:2027-12-05"}, {"$set": {"churned": 9}})
    await database[REVENUE_MONTHS].delete({"_id": "USD:2027-11"})
    await database[REVENUE_MONTHS].patch({"_id": "USD:2027-12"}, {"$set": {"lost": 9}})
    wrong = {(each.rollup, each.id): each.problem for each in await verification.verify(database)}
    assert "endMinor is 7, not 12000" in wrong["customerdays", f"{ada}:USD:2027-11-02"]
    assert wrong["customerdays", f"{bob}:USD:2027-11-02"] == "is missing"
    assert wrong["customerdays", invented["_id"]] == "does not follow from the ledger"
    assert "churned is 9, not 1" in wrong["revenuedays", "USD:2027-12-05"]
    assert wrong["revenuemonths", "USD:2027-11"] == "is missing"
    assert "retention differs" in wrong["revenuemonths", "USD:2027-12"]
    await verification.rebuild(database)
    assert await verification.verify(database) == []


async def test_a_report_reads_the_rollups_only(database: Database) -> None:
    await write(database, (ObjectId(), "2027-11-02", 1000))
    await report(database, *NOVEMBER)
    with round_trips() as trips:
        await report(database, *NOVEMBER, by="DAY")
    assert len(trips) == 4, trips  # the last two side by side: whole months, and the days of the others


async def test_subscriptions_of_other_applications_are_found_by_the_nightly_check(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 11, 3)
    await buy(await buyer())
    ada = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    theirs = await database.subscriptions.insert(
        Subscription(user_id=ada.id, plan_id="pro", status="ACTIVE", start_date=database.clock.now(), price=19)
    )
    (drift,) = await drifts.check(database)
    assert (drift.user_id, drift.recorded_minor, drift.actual_minor) == (ada.id, 0, 19 * 12 * 100)
    assert await rollups.check(database=database) == 1
    assert await rollups.check(database=database) == 0
    assert (await on(database, 2027, 11, 3)).end_minor == 2900 + 1900
    await database.subscriptions.patch({"_id": theirs.id}, {"$set": {"status": "EXPIRED"}})
    at(database, 2027, 11, 5)
    await database[MOVEMENTS].delete_many({"userId": {"$ne": ada.id}})  # lost
    found = await drifts.check(database, repair=True)
    assert sorted(each.actual_minor for each in found) == [0, 29 * 12 * 100]
    assert await drifts.check(database) == []


async def test_a_subscription_whose_currency_changes_counts_in_one_of_them(database: Database) -> None:
    ada = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    theirs = await database.subscriptions.insert(
        Subscription(user_id=ada.id, plan_id="pro", status="ACTIVE", start_date=database.clock.now(), price=19)
    )
    await rollups.check(database=database)
    await database.subscriptions.patch({"_id": theirs.id}, {"$set": {"currency": "EUR", "price": 17}})
    assert await rollups.check(database=database) == 1
    assert await drifts.check(database) == []
    today = database.clock.now().date()
    found = await report(database, today, date.fromordinal(today.toordinal() + 1))
    assert {line.currency: line.end_minor for line in found} == {"EUR": 1700, "USD": 0}
    odd = {"$set": {"startDate": "unreadable"}}
    await database.raw["subscriptions"].update_one({"_id": theirs.id}, odd, bypass_document_validation=True)
    assert await drifts.check(database, repair=True) == []


@pytest.mark.slow
async def test_a_step_that_changes_no_revenue_writes_no_movement(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 1, 15)
    await buy(await buyer())
    await run.forward(database, rail, datetime(2027, 4, 16, tzinfo=UTC))
    assert await database[MOVEMENTS].count({}) == 1
    assert await movements.pending(database, 10) != []


async def test_reports_are_for_operators_and_check_their_range(database: Database, actor: Actor) -> None:
    with pytest.raises(Forbidden):
        await revenue.mrr(database, actor, start=NOVEMBER[0], end=NOVEMBER[1])
    for start, end in (
        (NOVEMBER[1], NOVEMBER[0]),
        (NOVEMBER[0], NOVEMBER[0]),
        (date(2000, 1, 1), date(2027, 1, 1)),
        (NOVEMBER[0], date.max),
    ):
        with pytest.raises(Invalid) as refused:
            await report(database, start, end, by="DAY")
        assert list(refused.value.fields) == ["to"]
    with pytest.raises(Invalid):
        await report(database, *NOVEMBER, currency="XXX")
