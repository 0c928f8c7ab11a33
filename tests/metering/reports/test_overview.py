"""What somebody has used, against what they may."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from tests.metering.conftest import Subscribe

from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, LimitExceeded, NotFound, Unauthenticated
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.ledger import settlement
from ximler.metering.ledger.events import Event, record
from ximler.metering.limits import periods
from ximler.metering.quota.meter import Meter
from ximler.metering.reports.overview import ResourceUsage, _shapes, overview, quota


async def seen(database: Database, actor: Actor) -> dict[str, ResourceUsage]:
    assert actor.user_id is not None
    plans = {plan.id: plan for plan in await database.plans.find({})}
    found = await overview(database, actor, [actor.user_id], plans=plans)
    return {usage.resource: usage for usage in found[actor.user_id]}


def calls(actor: Actor, amount: Any, start: datetime, **fields: Any) -> dict[str, Any]:
    end = start + timedelta(hours=1)
    return {
        "userId": actor.user_id, "resourceType": "apiCalls", "amount": amount, "periodStart": start, "periodEnd": end,
    } | fields  # fmt: skip


async def test_calls_are_those_of_this_calendar_month(database: Database, person: Actor) -> None:
    start, end = periods.around(1, database.clock.now())
    await database.raw["usage"].insert_many(
        [
            calls(person, 5, start),
            calls(person, 7, end - timedelta(milliseconds=1)),
            calls(person, 100, start - timedelta(milliseconds=1)),
            calls(person, 100, end),
            calls(person, 100, start, resourceType="storage"),
            calls(Actor(user_id=ObjectId()), 100, start),
        ]
    )
    used = (await seen(database, person))["apiCalls"]
    assert (used.used, used.limit, used.remaining) == (12, 1000, 988)
    assert (used.period_start, used.period_end) == (start, end)


async def test_amounts_of_any_number_type_are_added(database: Database, person: Actor) -> None:
    start, _ = periods.around(1, database.clock.now())
    amounts = [1, 2.0, Int64(3), Decimal128("4"), float("nan"), None, 2**40]
    await database.raw["usage"].insert_many([calls(person, a, start) for a in amounts], bypass_document_validation=True)
    assert (await seen(database, person))["apiCalls"].used == 10 + 2**40


async def test_usage_above_the_limit_leaves_zero(database: Database, person: Actor) -> None:
    start, _ = periods.around(1, database.clock.now())
    await database.raw["usage"].insert_one(calls(person, 5000, start))
    assert (await seen(database, person))["apiCalls"].remaining == 0


async def test_projects_that_exist_and_bytes_that_are_stored_count(database: Database, person: Actor) -> None:
    now = database.clock.now()
    await database.raw["projects"].insert_many(
        [
            {"userId": person.user_id, "name": "a", "storageSize": 5},
            {"userId": person.user_id, "name": "b", "storageSize": 5, "deletedAt": None},
            {"userId": person.user_id, "name": "c", "storageSize": 5, "deletedAt": now},
            {"userId": ObjectId(), "name": "d", "storageSize": 5},
        ]
    )
    found = await seen(database, person)
    assert (found["projects"].used, found["storage"].used) == (2, 15)
    assert found["projects"].period_start is None


async def test_one_round_trip_serves_any_number_of_people(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    people = [person]
    for n in range(4):
        other = Actor(kind="user", user_id=ObjectId())
        await database.raw["users"].insert_one(
            {"_id": other.user_id, "name": "n", "email": f"{n}@example.com", "password": "-"}
        )
        people.append(other)
    await subscribe(people[1], "pro")
    await database.raw["projects"].insert_many([{"userId": p.user_id, "name": "n"} for p in people[2:]])
    await database.raw["gauges"].insert_one({"_id": people[4].user_id, "projects": 2, "storageBytes": 9})
    with round_trips() as trips:
        found = await overview(database, SYSTEM, [p.user_id for p in people])
    assert trips == [("aggregate", "users")]
    assert [found[p.user_id][0].used for p in people] == [0, 0, 1, 1, 2]
    assert [found[p.user_id][0].limit for p in people] == [3, 100, 3, 3, 3]


async def test_usage_of_other_users_is_not_found(database: Database, person: Actor) -> None:
    other = Actor(kind="user", user_id=ObjectId())
    for ids in ([person.user_id], [other.user_id, person.user_id], []):
        with pytest.raises(NotFound):
            await overview(database, other, ids)
    with pytest.raises(Unauthenticated):
        await overview(database, Actor(), [person.user_id])
    with pytest.raises(NotFound):
        await overview(database, SYSTEM, [ObjectId()])


@pytest.mark.slow
async def test_reported_calls_equal_the_enforced_quota(database: Database, person: Actor) -> None:
    meter = Meter(database)
    for _ in range(3):
        await meter.consume(person)
    await meter.sweep()
    await record(database, SYSTEM, [Event(id="a", user_id=str(person.user_id), at=database.clock.now(), amount=100)])
    await settlement.settle(database)
    start, _ = periods.around(1, database.clock.now())
    await database.raw["usage"].insert_one(calls(person, 4711, start))  # somebody else's: not what is enforced
    found = (await seen(database, person))["apiCalls"]
    assert (found.used, found.remaining) == (103, 1000 - 103)
    for _ in range(found.remaining or 0):
        await meter.consume(person)
    with pytest.raises(LimitExceeded):
        await meter.consume(person)
    await meter.sweep()
    found = (await seen(database, person))["apiCalls"]
    assert (found.used, found.remaining) == (1000, 0)
    await meter.close()


async def test_calls_are_counted_by_the_anniversaries_of_the_subscription(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    now = database.clock.now()
    began = now - timedelta(days=3)
    await subscribe(person, "pro", start_date=began)
    midnight = began.replace(hour=0, minute=0, second=0, microsecond=0)
    await database.raw["usage"].insert_many(
        [calls(person, 5, midnight), calls(person, 70, midnight - timedelta(hours=1))]
    )
    found = (await seen(database, person))["apiCalls"]
    assert (found.used, found.period_start) == (5, midnight)


async def test_projected_usage_is_proportional_to_elapsed_time(database: Database, person: Actor) -> None:
    start, end = periods.around(1, database.clock.now())
    database.clock.offset_ms += (start + (end - start) / 4 - database.clock.now()) // timedelta(milliseconds=1)
    await database.raw["usage"].insert_one(calls(person, 100, start))
    found = await quota(database, person, "apiCalls")
    assert found.projected in (399, 400)
    assert (await quota(database, person, "projects")).projected is None


async def test_operators_see_anybodys_quota_and_others_their_own(
    database: Database, person: Actor, somebody: Actor
) -> None:
    assert (await quota(database, SYSTEM, "storage", user_id=person.user_id)).resource == "storage"
    with pytest.raises(NotFound):
        await quota(database, somebody, "storage", user_id=person.user_id)


@pytest.mark.parametrize("collection", ["gauges", "entitlements"])
async def test_a_user_whose_documents_cannot_be_read_takes_nothing_from_the_others(
    database: Database, collection: str
) -> None:
    ids = [ObjectId() for _ in range(20)]
    await database.raw["users"].insert_many(
        [{"_id": n, "name": "n", "email": f"{n}@example.com", "password": "-"} for n in ids]
    )
    wrong = {"_id": ids[7], "projects": "many", "override": "?"}
    await database.raw[collection].insert_one(wrong, bypass_document_validation=True)
    found = await overview(database, SYSTEM, ids)
    assert [len(found[user_id]) for user_id in ids] == [3] * 7 + [0] + [3] * 12
    with pytest.raises(Conflict):
        await overview(database, SYSTEM, [ids[7]])


async def test_used_remaining_and_forfeited_add_up_to_the_limit(database: Database, person: Actor) -> None:
    meter = Meter(database)
    await meter.consume(person)
    await meter.close()
    # As the reaper does with the lease of a process that died.
    await database.raw["quotas"].update_one({"userId": person.user_id}, {"$inc": {"granted": 7, "forfeited": 7}})
    for _ in range(2):
        calls = (await seen(database, person))["apiCalls"]
        assert (calls.used, calls.remaining, calls.forfeited, calls.limit) == (1, 992, 7, 1000)


@pytest.mark.slow
async def test_usage_that_is_read_again_is_the_same(database: Database, person: Actor, subscribe: Subscribe) -> None:
    async def read(*, trips: int) -> ResourceUsage:
        """The cheaper read by keys and, for somebody whom this process does not know, the whole one."""
        with round_trips() as made:
            again = await seen(database, person)
        assert made[0] == ("find", "plans")  # which the caller knows otherwise
        assert made[1:] == [("aggregate", "gauges"), ("aggregate", "users")][:trips]
        _shapes.clear()
        assert await seen(database, person) == again
        return again["apiCalls"]

    start, _ = periods.around(1, database.clock.now())
    await database.raw["gauges"].insert_one({"_id": person.user_id, "projects": 2, "storageBytes": 9})
    await database.raw["usage"].insert_one(calls(person, 5, start))
    await seen(database, person)
    assert (await read(trips=1)).used == 5
    meter = Meter(database)
    await meter.consume(person)
    await meter.close()
    assert (await read(trips=2)).used == 1  # the quota's, which is found by reading in full
    assert (await read(trips=1)).used == 1
    await subscribe(person, "pro", start_date=database.clock.now() - timedelta(days=3))
    assert (await read(trips=2)).limit == 100_000
    later = {
        "userId": person.user_id,
        "planId": "enterprise",
        "status": "PAST_DUE",
        "startDate": database.clock.now(),
        "price": 9,
    }
    await database.raw["subscriptions"].insert_one(later)
    assert (await read(trips=1)).limit == 100_000  # the active one's
    await database.raw["gauges"].delete_many({})
    assert (await read(trips=2)).limit == 100_000
