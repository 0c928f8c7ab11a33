"""Usage over time."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from bson import ObjectId

from ximler.core.actor import SYSTEM, Actor
from ximler.core.clock import LAST
from ximler.core.errors import Forbidden, Invalid, NotFound, Unauthenticated
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.ledger import recorded, rows
from ximler.metering.limits import periods
from ximler.metering.reports.series import Interval, series, top_consumers
from ximler.schema.quota import Quota, quota_id

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


@pytest.fixture
async def year(database: Database, person: Actor) -> datetime:
    """A year in each hour of which the person used 2 units by leases and 1 by events;
    returns its last hour's end."""
    assert person.user_id is not None
    end = datetime(2026, 9, 1, tzinfo=UTC)  # the most that a month to date can be
    first = int(end.timestamp()) // 3600 - 8760
    month, sums = datetime(2025, 9, 1, tzinfo=UTC), {}
    while month < end:
        start, following = periods.around(1, month)
        hours = range(int(start.timestamp()) // 3600, int(following.timestamp()) // 3600)
        leased = Quota(
            id=quota_id(person.user_id, "apiCalls", start),
            user_id=person.user_id,
            resource="apiCalls",
            period_start=start,
            period_end=following,
            limit=-1,
            hours={f"h{hour}": 2 for hour in hours},
        )
        await rows.write(database, [leased])
        month = following
        sums |= {(person.user_id, hour): {"events": 1} for hour in hours}
    starts = {place: periods.around(1, rows.start_of(place[1]))[0] for place in sums}
    await recorded.add(database, "apiCalls", sums, number=1, periods=starts)
    assert min(hour for _, hour in sums) == first
    return end


@pytest.mark.slow
async def test_a_month_to_date_by_day_of_a_year_of_hours_is_one_round_trip_and_examines_that_months_hours(
    database: Database, person: Actor, year: datetime
) -> None:
    """Whatever it was that counted in them."""
    start = year - timedelta(days=31)
    await database.raw["usage"].insert_many(hourly(ObjectId(), year - 1000 * HOUR, 1000))
    with round_trips() as trips:
        points = await series(database, person, "apiCalls", since=start, until=year, by="DAY")
    assert len(trips) == 1
    assert [point.amount for point in points] == [72] * 31
    assert (points[0].start, points[-1].end) == (start, year)
    pipeline = [
        {
            "$match": {
                "userId": person.user_id,
                "resourceType": "apiCalls",
                "periodStart": {"$gte": start, "$lt": year},
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
    with pytest.raises(Invalid, match="from"):
        await series(database, person, "apiCalls", since=datetime(1, 1, 1, tzinfo=UTC), until=now, by=by)
    with pytest.raises(Invalid, match="ask for less"):
        await series(database, person, "apiCalls", since=now, until=LAST, by=by)
    assert (await series(database, person, "apiCalls", since=LAST - HOUR, until=LAST, by=by))[-1].end == LAST


async def test_only_operators_see_usage_of_other_users(database: Database, person: Actor, somebody: Actor) -> None:
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


async def test_operators_see_the_top_consumers(database: Database, person: Actor, somebody: Actor) -> None:
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


async def test_top_consumers_use_the_index_over_time(database: Database, person: Actor) -> None:
    now = edges_hour(database.clock.now())
    await database.raw["usage"].insert_many(hourly(person.user_id, now - 500 * HOUR, 501))
    between = {"periodStart": {"$gte": now - 24 * HOUR, "$lt": now}, "resourceType": "apiCalls"}
    explained = await database.raw.command(
        "explain", {"aggregate": "usage", "pipeline": [{"$match": between}], "cursor": {}}, verbosity="executionStats"
    )
    assert explained["executionStats"]["totalDocsExamined"] == 24
