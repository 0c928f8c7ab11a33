"""What somebody has used, against what they may."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from tests.metering.conftest import Subscribe

from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import NotFound, Unauthenticated
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.overview import ResourceUsage, month, overview


async def seen(database: Database, actor: Actor) -> dict[str, ResourceUsage]:
    assert actor.user_id is not None
    return {usage.resource: usage for usage in (await overview(database, actor, [actor.user_id]))[actor.user_id]}


def calls(actor: Actor, amount: Any, start: datetime, **fields: Any) -> dict[str, Any]:
    end = start + timedelta(hours=1)
    return {
        "userId": actor.user_id, "resourceType": "apiCalls", "amount": amount, "periodStart": start, "periodEnd": end,
    } | fields  # fmt: skip


async def test_calls_are_those_of_this_calendar_month(database: Database, person: Actor) -> None:
    start, end = month(database.clock.now())
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


async def test_amounts_are_added_whatever_their_number_type(database: Database, person: Actor) -> None:
    start, _ = month(database.clock.now())
    amounts = [1, 2.0, Int64(3), Decimal128("4"), float("nan"), None, 2**40]
    await database.raw["usage"].insert_many([calls(person, a, start) for a in amounts], bypass_document_validation=True)
    assert (await seen(database, person))["apiCalls"].used == 10 + 2**40


async def test_more_than_the_limit_leaves_nothing_rather_than_less(database: Database, person: Actor) -> None:
    start, _ = month(database.clock.now())
    await database.raw["usage"].insert_one(calls(person, 5000, start))
    assert (await seen(database, person))["apiCalls"].remaining == 0


async def test_only_projects_that_exist_count(database: Database, person: Actor) -> None:
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
    assert (found["projects"].used, found["storage"].used) == (2, 10)
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


async def test_nobody_sees_what_others_have_used(database: Database, person: Actor) -> None:
    other = Actor(kind="user", user_id=ObjectId())
    for ids in ([person.user_id], [other.user_id, person.user_id], []):
        with pytest.raises(NotFound):
            await overview(database, other, ids)
    with pytest.raises(Unauthenticated):
        await overview(database, Actor(), [person.user_id])
    with pytest.raises(NotFound):
        await overview(database, SYSTEM, [ObjectId()])


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        (datetime(2026, 1, 31, 23, 59, 59, 999000, UTC), datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        (datetime(2024, 2, 29, 12, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_a_month_is_the_calendars(moment: datetime, start: datetime, end: datetime) -> None:
    assert month(moment) == (start, end)
