"""Cash, usage, limits, storage and sign-ups: each number is the sum of the rows that it names."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.billing.conftest import OPERATOR, Buy, Buyer, at
from tests.database.following import running, until

from ximler.analytics import buckets, cash, customers, upkeep, verification
from ximler.analytics.following import Follower, usage_was_late
from ximler.billing import refunds
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.metering.ledger import settlement

NOVEMBER: dict[str, Any] = {"start": date(2027, 11, 1), "end": date(2027, 12, 1)}


@pytest.mark.slow
async def test_cash_is_what_was_paid_refunded_and_refused(
    database: Database, rail: Sandbox, buyer: Buyer, buy: Buy
) -> None:
    at(database, 2027, 11, 3)
    ada, bob = await buyer(), await buyer()
    await buy(ada)
    await buy(bob, card="4000000000009995")  # refused
    paid = await database.payments.find_one({"userId": ada.user_id, "status": "PAID"})
    assert paid is not None
    at(database, 2027, 11, 9)
    await refunds.refund(
        database, rail, OPERATOR, user_id=ada.require_user(), payment_id=paid.id, amount_minor=900, reason="a test"
    )
    (month,) = await cash.cash(database, OPERATOR, **NOVEMBER)
    assert (month.currency, month.payments, month.paid_minor, month.refunds, month.refunded_minor) == (
        "USD",
        1,
        2900,
        1,
        900,
    )
    assert (month.failed, month.failed_minor, month.net_minor) == (1, 2900, 2000)
    days = await cash.cash(database, OPERATOR, **NOVEMBER, by="DAY")
    assert [(each.start.day, each.paid_minor, each.refunded_minor) for each in days] == [(3, 2900, 0), (9, 0, 900)]
    rows = await cash.payments(database, OPERATOR, **NOVEMBER)
    assert sum(each.amount_minor for each in rows.items) == month.paid_minor
    refused = await cash.payments(database, OPERATOR, **NOVEMBER, failed=True)
    assert [each.user_id for each in refused.items] == [bob.user_id]
    # Those that another application wrote, in major units and other currencies.
    theirs = {"userId": ObjectId(), "status": "PAID", "paidAt": datetime(2027, 11, 30, 23, 59, tzinfo=UTC)}
    await database.raw["payments"].insert_many(
        [
            *(theirs | {"amount": 0.1, "currency": "EUR"} for _ in range(3)),
            theirs | {"amount": 500, "currency": "jpy"},
            theirs | {"amount": 5, "currency": "coins"},
        ]
    )
    found = await cash.cash(database, OPERATOR, **NOVEMBER)
    assert [(each.currency, each.paid_minor) for each in found] == [("EUR", 30), ("JPY", 500), ("USD", 2900)]
    (euros,) = await cash.cash(database, OPERATOR, **NOVEMBER, currency="eur")
    assert euros.paid_minor == 30


async def test_days_of_cash_that_change_after_they_were_rolled_up_are_computed_again(database: Database) -> None:
    at(database, 2027, 12, 24)
    third = datetime(2027, 11, 3, 9, tzinfo=UTC)
    theirs = {"userId": ObjectId(), "status": "PAID", "amount": 29, "paidAt": third, "createdAt": third}
    await database.raw["payments"].insert_many([theirs | {"_id": ObjectId()} for _ in range(2)])

    async def paid() -> int:
        (month,) = await cash.cash(database, OPERATOR, **NOVEMBER)
        return month.paid_minor

    assert await paid() == 5800
    with round_trips() as trips:
        assert await paid() == 5800
    assert len(trips) == 1, trips
    assert sum(each.paid_minor for each in await cash.cash(database, OPERATOR, **NOVEMBER, by="WEEK")) == 5800
    feed = Feed(database)
    follower = Follower(database, feed)
    async with running(feed):
        await until(lambda: feed.fresh)
        await follower.mark()  # of the gap
        await database.raw["payments"].insert_one(theirs | {"_id": ObjectId(), "amount": 1})
        await feed.caught_up()
        await follower.mark()
    assert await paid() == 5900
    await upkeep.roll_up(database=database)
    await database.raw["payments"].update_many({}, {"$set": {"amount": 2}})  # unseen
    assert await paid() == 5900
    assert [each.problem for each in await verification.verify(database)] == ["differs from its documents"] * 2
    await upkeep.check(database=database)
    assert await paid() == 600
    assert await verification.verify(database) == []


async def test_buckets_that_are_killed_marked_and_raced_say_what_their_documents_say(database: Database) -> None:
    at(database, 2027, 12, 24)
    rows = [
        {
            "userId": ObjectId(),
            "resourceType": "apiCalls",
            "amount": n,
            "periodStart": datetime(2027, 11, 1 + n % 30, 9, tzinfo=UTC),
            "periodEnd": datetime(2027, 11, 1 + n % 30, 10, tzinfo=UTC),
        }
        for n in range(1, 61)
    ]
    await database.raw["usage"].insert_many(rows)

    async def everything() -> list[Any]:
        return [
            [await customers.usage(database, OPERATOR, **NOVEMBER, by=by) for by in ("DAY", "WEEK", "MONTH")],
            await customers.largest(database, OPERATOR, resource="apiCalls", **NOVEMBER),
        ]

    once = await everything()
    assert once[0][2][0].amount == sum(range(1, 61))
    assert await everything() == once
    with round_trips() as trips:
        await customers.usage(database, OPERATOR, **NOVEMBER)
        await customers.largest(database, OPERATOR, resource="apiCalls", **NOVEMBER)
    assert len(trips) == 2, trips
    await buckets.mark(database, customers.USED, [date(2027, 11, 3)])
    killed = asyncio.create_task(verification.rebuild(database))
    await asyncio.sleep(0.005)
    killed.cancel()
    await asyncio.gather(
        killed, *(verification.rebuild(database) for _ in range(3)), everything(), return_exceptions=True
    )
    assert await everything() == once
    # A bucket that is marked while it is computed is not stored.
    late = {**rows[0], "_id": ObjectId(), "amount": 1000}
    compute = customers.USED.compute

    async def slow(*asked: Any) -> Any:
        found = await compute(*asked)
        if late["amount"]:
            await database.raw["usage"].insert_one(late.copy())
            late["amount"] = 0
            await usage_was_late(settlement.Late(days=[late["periodStart"]]), database=database)
        return found

    await buckets.again(database, msgspec.structs.replace(customers.USED, compute=slow), {})
    await upkeep.roll_up(database=database)
    (month,) = await customers.usage(database, OPERATOR, **NOVEMBER)
    assert month.amount == sum(range(1, 61)) + 1000
    assert await verification.verify(database) == []


async def test_usage_by_plan_and_its_largest_users(database: Database) -> None:
    hour = datetime(2027, 11, 3, 9, tzinfo=UTC)
    small, large, free = ObjectId(), ObjectId(), ObjectId()
    await database.raw["entitlements"].insert_many(
        [
            {"_id": each, "planId": "pro", "planName": "Pro", "projects": 1, "storageBytes": 1, "apiCalls": 1}
            for each in (small, large)
        ]
    )
    await database.raw["usage"].insert_many(
        [
            {
                "userId": who,
                "resourceType": kind,
                "amount": n,
                "periodStart": when,
                "periodEnd": when + timedelta(hours=1),
            }
            for who, kind, n, when in (
                (small, "apiCalls", 10, hour),
                (large, "apiCalls", 500, hour),
                (large, "apiCalls", 500, hour + timedelta(days=1)),
                (large, "storage", 9_000_000_000, hour),
                (free, "apiCalls", 7, hour),
                (free, "apiCalls", 1, hour + timedelta(days=40)),
            )
        ]
    )
    found = await customers.usage(database, OPERATOR, **NOVEMBER)
    assert [(each.resource, each.plan_id, each.users, each.amount) for each in found] == [
        ("apiCalls", None, 1, 7),
        ("apiCalls", "pro", 2, 1010),
        ("storage", "pro", 1, 9_000_000_000),
    ]
    with round_trips() as trips:  # months are counted, twice as many after an empty one, and two of them summed
        await customers.usage(database, OPERATOR, start=date(2025, 1, 1), end=date(2028, 1, 1))
    assert trips.count(("aggregate", "usage")) == 8 + 2
    by_day = await customers.usage(database, OPERATOR, **NOVEMBER, by="DAY")
    assert [each.amount for each in by_day if each.plan_id == "pro" and each.resource == "apiCalls"] == [510, 500]
    nobodys = [{"_id": ObjectId(), "planId": "team", "planName": "Team", "projects": 1} for _ in range(10)]
    await database.raw["entitlements"].insert_many([each | {"storageBytes": 1, "apiCalls": 1} for each in nobodys])
    weeks = await customers.usage(database, OPERATOR, **NOVEMBER, by="WEEK")  # fewer rows than users with a plan
    assert [(each.plan_id, each.users, each.amount) for each in weeks if each.resource == "apiCalls"] == [
        (None, 1, 7),
        ("pro", 2, 1010),
    ]
    rows = await customers.largest(database, OPERATOR, resource="apiCalls", **NOVEMBER, first=2)
    assert [(each.user_id, each.plan_id, each.amount) for each in rows] == [(large, "pro", 1000), (small, "pro", 10)]


async def test_users_near_their_limits_and_what_is_stored(database: Database) -> None:
    now = database.clock.now()
    period = {"periodStart": now - timedelta(days=5), "periodEnd": now + timedelta(days=25)}
    past = {"periodStart": now - timedelta(days=35), "periodEnd": now - timedelta(days=5)}
    full, near, far = ObjectId(), ObjectId(), ObjectId()
    await database.raw["quotas"].insert_many(
        [
            {"_id": f"{who}:{n}", "userId": who, "resource": "apiCalls", "limit": limit, "settled": used, "ingested": 5}
            | {"foreign": 0, "superseded": False, "planId": "pro", **when}
            for n, (who, used, limit, when) in enumerate(
                [
                    (full, 95, 100, period),
                    (near, 80, 100, period),
                    (far, 10, 100, period),
                    (far, 99, 100, past),
                    (far, 99, -1, period),
                ]
            )
        ]
    )
    await database.raw["gauges"].insert_many(
        [{"_id": full, "projects": 2, "storageBytes": 7_000_000_000}, {"_id": near, "projects": 1, "storageBytes": 5}]
    )
    found = await customers.near_limits(database, OPERATOR)
    assert [(each.user_id, each.used, each.share) for each in found] == [(full, 100, 1.0), (near, 85, 0.85)]
    (line,) = await customers.storage(database, OPERATOR)
    assert (line.users, line.projects, line.storage_bytes) == (2, 3, 7_000_000_005)
    rows = await customers.largest(database, OPERATOR, resource="storage", **NOVEMBER)
    assert sum(each.amount for each in rows) == line.storage_bytes


async def test_sign_ups_until_their_first_payment(database: Database) -> None:
    begun = datetime(2027, 11, 3, 12, tzinfo=UTC)
    people = [ObjectId() for _ in range(4)]
    await database.raw["users"].insert_many(
        [
            {
                "_id": who,
                "name": "n",
                "email": f"{who}@example.com",
                "password": "-",
                "createdAt": begun,
                "emailVerified": n < 3,
            }
            for n, who in enumerate(people)
        ]
    )
    await database.raw["payments"].insert_many(
        [
            {
                "userId": who,
                "amount": 29,
                "status": status,
                "paidAt": None if days is None else begun + timedelta(days=days),
            }
            for who, status, days in (
                (people[0], "PAID", 2),
                (people[0], "PAID", 33),
                (people[1], "REFUNDED", 5),
                (people[2], "FAILED", None),
            )
        ]
    )
    (month,) = await customers.signups(database, OPERATOR, **NOVEMBER)
    assert (month.registered, month.verified, month.paid, month.conversion, month.days_to_pay) == (4, 3, 2, 0.5, 3.5)
    rows = await customers.signups_of(database, OPERATOR, **NOVEMBER)
    assert sorted((each.days_to_pay or 0, each.verified) for each in rows) == [
        (0, False),
        (0, True),
        (2, True),
        (5, True),
    ]


async def test_they_are_for_operators_and_check_their_arguments(database: Database) -> None:
    somebody = Actor(kind="user", via="session", user_id=ObjectId())
    for report in (cash.cash, cash.payments, customers.usage, customers.signups, customers.signups_of):
        with pytest.raises(Forbidden):
            await report(database, somebody, **NOVEMBER)
        with pytest.raises(Invalid):
            await report(database, OPERATOR, start=NOVEMBER["end"], end=NOVEMBER["start"])
    for more in (customers.near_limits, customers.storage):
        with pytest.raises(Forbidden):
            await more(database, somebody)
    with pytest.raises(Invalid, match="share"):
        await customers.near_limits(database, OPERATOR, share=2)
