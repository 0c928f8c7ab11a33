"""Usage over time."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from bson import ObjectId

from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden, Invalid, NotFound, Unauthenticated
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.series import Interval, series, top_consumers

HOUR = timedelta(hours=1)


def hourly(user_id: ObjectId | None, since: datetime, hours: int, amount: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "userId": user_id,
            "resourceType": "apiCalls",
            "amount": amount,
            "periodStart": since + n * HOUR,
            "periodEnd": since + (n + 1) * HOUR,
        }
        for n in range(hours)
    ]


async def test_a_month_to_date_by_day_of_a_year_of_hours_is_one_round_trip_and_examines_that_months_hours(
    database: Database, person: Actor
) -> None:
    now = datetime(2026, 8, 31, 23, tzinfo=UTC)  # the most that a month to date can be
    await database.raw["usage"].insert_many(hourly(person.user_id, now - 8760 * HOUR, 8761))
    await database.raw["usage"].insert_many(hourly(ObjectId(), now - 1000 * HOUR, 1001))
    start = now.replace(day=1, hour=0)
    with round_trips() as trips:
        points = await series(database, person, "apiCalls", since=start, until=now + HOUR, by="DAY")
    assert len(trips) == 1
    assert [point.amount for point in points] == [24] * 31
    assert (points[0].start, points[-1].end) == (start, datetime(2026, 9, 1, tzinfo=UTC))
    pipeline = [
        {
            "$match": {
                "userId": person.user_id,
                "resourceType": "apiCalls",
                "periodStart": {"$gte": start, "$lt": now + HOUR},
            }
        }
    ]
    explained = await database.raw.command(
        "explain", {"aggregate": "usage", "pipeline": pipeline, "cursor": {}}, verbosity="executionStats"
    )
    statistics = explained["executionStats"]
    assert statistics["nReturned"] == 744
    assert statistics["totalKeysExamined"] <= 800


@pytest.mark.parametrize(
    ("by", "since", "until", "edges"),
    [
        ("HOUR", datetime(2026, 1, 1, 10, 30, tzinfo=UTC), datetime(2026, 1, 1, 12, tzinfo=UTC), ["01T10", "01T11"]),
        ("DAY", datetime(2026, 2, 27, 10, tzinfo=UTC), datetime(2026, 3, 1, 0, 0, 0, 1000, UTC), ["27T00", "28T00", "01T00"]),
        ("MONTH", datetime(2025, 12, 31, tzinfo=UTC), datetime(2026, 2, 2, tzinfo=UTC), ["01T00"] * 3),
    ],
)  # fmt: skip
async def test_points_are_whole_hours_days_and_months_and_those_without_use_are_zero(
    by: Interval, since: datetime, until: datetime, edges: list[str], database: Database, person: Actor
) -> None:
    await database.raw["usage"].insert_many(hourly(person.user_id, edges_hour(since), 1, amount=7))
    points = await series(database, person, "apiCalls", since=since, until=until, by=by)
    assert [f"{point.start:%dT%H}" for point in points] == edges
    assert [point.amount for point in points] == [7] + [0] * (len(edges) - 1)
    assert all(one.end == other.start for one, other in pairwise(points))


def edges_hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("by", "span"), [("HOUR", 1001 * HOUR), ("DAY", 1001 * 24 * HOUR), ("MONTH", 4000 * 24 * HOUR)]
)
async def test_too_many_points_are_refused(by: Interval, span: timedelta, database: Database, person: Actor) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(Invalid, match="ask for less"):
        await series(database, person, "apiCalls", since=now - span, until=now, by=by)
    with pytest.raises(Invalid, match="after `from`"):
        await series(database, person, "apiCalls", since=now, until=now, by=by)
    with pytest.raises(Invalid):
        await series(database, person, "apiCalls", since=datetime(1, 1, 1, tzinfo=UTC), until=now, by=by)


async def test_nobody_sees_what_others_have_used_but_operators(
    database: Database, person: Actor, somebody: Actor
) -> None:
    now = edges_hour(database.clock.now())
    await database.raw["usage"].insert_many(hourly(person.user_id, now, 1, amount=7))
    ask: dict[str, Any] = {"since": now, "until": now + HOUR, "by": "HOUR"}
    [point] = await series(database, somebody, "apiCalls", **ask)
    assert point.amount == 0
    with pytest.raises(NotFound):
        await series(database, somebody, "apiCalls", user_id=person.user_id, **ask)
    with pytest.raises(Unauthenticated):
        await series(database, Actor(), "apiCalls", **ask)
    operator = Actor(kind="operator", via="cli", user_id=ObjectId())
    [point] = await series(database, operator, "apiCalls", user_id=person.user_id, **ask)
    assert point.amount == 7


async def test_operators_see_who_used_most(database: Database, person: Actor, somebody: Actor) -> None:
    now = edges_hour(database.clock.now())
    await database.raw["usage"].insert_many(
        [*hourly(person.user_id, now - 5 * HOUR, 5), *hourly(somebody.user_id, now - 2 * HOUR, 4, amount=50)]
    )
    found = await top_consumers(database, SYSTEM, "apiCalls", since=now - 9 * HOUR, until=now)
    assert [(c.user_id, c.amount) for c in found] == [(somebody.user_id, 100), (person.user_id, 5)]
    found = await top_consumers(database, SYSTEM, "apiCalls", since=now - 9 * HOUR, until=now, first=1)
    assert len(found) == 1
    with pytest.raises(Forbidden):
        await top_consumers(database, person, "apiCalls", since=now - HOUR, until=now)
    for wrong in ({"first": 0}, {"since": now - timedelta(days=32)}, {"since": now}):
        with pytest.raises(Invalid):
            await top_consumers(database, SYSTEM, "apiCalls", **{"since": now - HOUR, "until": now, **wrong})


async def test_who_used_most_is_read_from_an_index_over_time(database: Database, person: Actor) -> None:
    now = edges_hour(database.clock.now())
    await database.raw["usage"].insert_many(hourly(person.user_id, now - 500 * HOUR, 501))
    between = {"periodStart": {"$gte": now - 24 * HOUR, "$lt": now}, "resourceType": "apiCalls"}
    explained = await database.raw.command(
        "explain", {"aggregate": "usage", "pipeline": [{"$match": between}], "cursor": {}}, verbosity="executionStats"
    )
    assert explained["executionStats"]["totalDocsExamined"] == 24
