"""Topic `metering`: the cost of deciding whether a user may make another call, beside a guarded `$inc` per
call.
"""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId

from bench.contest import Contestant, compete, ratio
from bench.report import Figure, Table, spread
from bench.setup import Setup
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.ledger import recorded, rows
from ximler.metering.limits import entitlements, periods
from ximler.metering.quota.meter import Meter
from ximler.metering.reports.series import series
from ximler.schema.quota import Quota, quota_id
from ximler.schema.user import User

__all__ = ["run"]

OURS, BURST, NAIVE = "meter.consume", "meter.consume, 16 users in turn", "guarded $inc a call"
BUSY = "meter.consume, by processor time alone"
CALLS = 200_000
NAIVE_CALLS, NAIVE_TASKS = 2_000, 16
STEADY_S = 3.0
STEADY_CALLS_A_S = 4_000
_LIMIT = 10**12
_OPERATOR = Actor(kind="operator", via="cli")


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database, setup.driver(database) as driver:
        actors = [await _person(database) for _ in range(16)]
        await driver["naive"].insert_one({"_id": 1, "limit": _LIMIT, "used": 0})
        meter = Meter(database)
        running = asyncio.create_task(meter.run(asyncio.Event()))

        busy: list[float] = []

        async def one() -> float:
            began = time.process_time()
            taken = await _spend(meter, actors[:1])
            busy.append((time.process_time() - began) / CALLS)
            return taken

        async def many() -> float:
            return await _spend(meter, actors)

        async def naive() -> float:
            return await _inc(driver["naive"])

        try:
            for actor in actors:
                await meter.consume(actor)
            samples = await compete(
                [Contestant(OURS, one), Contestant(BURST, many), Contestant(NAIVE, naive)], setup.rounds(12)
            )
            served, commands = await _steady(meter, actors[0])
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await meter.close()
        exact = await _is_exact(database)
        reading = await _month_to_date(database)
    samples[BUSY] = busy[1:]  # after the round that warms up
    return [_table(samples, served, commands, exact=exact), reading]


async def _person(database: Database) -> Actor:
    user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
    await entitlements.override(database, _OPERATOR, user.id, reason="a benchmark", api_calls=_LIMIT)
    return Actor(kind="user", via="api_key", user_id=user.id, api_key_id=ObjectId())


async def _spend(meter: Meter, actors: list[Actor]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS // 2000):  # a server gets to its other tasks now and then
        for _ in range(2000 // len(actors)):
            for actor in actors:
                await meter.consume(actor, route="GET /v1/things")
        await asyncio.sleep(0)
    return (time.perf_counter() - began) / CALLS


async def _inc(collection: Any) -> float:
    async def task() -> None:
        for _ in range(NAIVE_CALLS // NAIVE_TASKS):
            where = {"_id": 1, "$expr": {"$lt": ["$used", "$limit"]}}
            assert (await collection.update_one(where, {"$inc": {"used": 1}})).modified_count

    began = time.perf_counter()
    await asyncio.gather(*(task() for _ in range(NAIVE_TASKS)))
    return (time.perf_counter() - began) / NAIVE_CALLS


async def _steady(meter: Meter, actor: Actor) -> tuple[int, int]:
    """Calls at an even pace, and the commands that this process sent meanwhile: its reports and looks
    included.
    """
    await asyncio.sleep(1)
    with round_trips() as trips:
        stop = asyncio.Event()
        sweeping = asyncio.create_task(meter.run(stop))  # in this context, so that its commands are counted
        served, end = 0, time.perf_counter() + STEADY_S
        while time.perf_counter() < end:
            for _ in range(STEADY_CALLS_A_S // 100):
                await meter.consume(actor)
            served += STEADY_CALLS_A_S // 100
            await asyncio.sleep(0.01)
        stop.set()
        await sweeping
        return served, len(trips)


async def _is_exact(database: Database) -> bool:
    quotas = await database.raw["quotas"].find({}).to_list()
    ledger = await database.raw["usage"].find({}).to_list()
    settled = sum(quota["settled"] for quota in quotas)
    return all(q["granted"] == q["settled"] for q in quotas) and settled == sum(row["amount"] for row in ledger)


async def _month_to_date(database: Database) -> Table:
    """A series by day, at the end of a month of 31 days, for a user with leased and recorded usage in each
    hour of a year.
    """
    actor = await _person(database)
    user_id = actor.require_user()
    end = datetime(2026, 9, 1, tzinfo=UTC)
    last = int(end.timestamp()) // 3600
    hours = range(last - 8760, last)
    starts = {(user_id, hour): periods.around(1, rows.start_of(hour))[0] for hour in hours}
    for start in sorted({*starts.values()}):
        of_period = {f"h{hour}": 2 for (_, hour), its in starts.items() if its == start}
        quota = Quota(
            id=quota_id(user_id, "apiCalls", start),
            user_id=user_id,
            resource="apiCalls",
            period_start=start,
            period_end=periods.around(1, start)[1],
            limit=-1,
            hours=of_period,
        )
        await rows.write(database, [quota])
    sums = {place: {"events": 1} for place in starts}
    await recorded.add(database, "apiCalls", sums, number=1, periods=starts)
    since = end - timedelta(days=31)
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        with round_trips() as trips:
            points = await series(database, actor, "apiCalls", since=since, until=end, by="DAY")
        taken.append(time.perf_counter() - began)
    assert [point.amount for point in points] == [72] * 31
    where = {"userId": user_id, "resourceType": "apiCalls", "periodStart": {"$gte": since, "$lt": end}}
    explained = await database.raw.command(
        "explain",
        {"aggregate": "usage", "pipeline": [{"$match": where}], "cursor": {}},
        verbosity="executionStats",
    )
    return Table(
        title="metering: a month to date by day, of a year of hours with leased and recorded calls",
        figures=[
            Figure(what="month to date by day: round trips", value=len(trips), unit="", most=2),
            Figure(
                what="month to date by day: keys examined",
                value=explained["executionStats"]["totalKeysExamined"],
                unit="",
                most=800,
            ),
        ],
        columns=("", "ms", "spread"),
        rows=[("usageSeries(by: DAY)", f"{sorted(taken)[10] * 1000:.1f}", spread(taken))],
        samples={"month to date": taken},
    )


def _table(samples: dict[str, list[float]], served: int, commands: int, *, exact: bool) -> Table:
    def rate(name: str) -> float:
        taken = sorted(samples[name])
        return 1 / taken[len(taken) // 2]

    return Table(
        title="metering: may this user make another call?",
        figures=[
            Figure(what="calls a second that one process decides", value=rate(OURS), unit="/s"),
            Figure(what=f"{OURS} beside a {NAIVE}, in speed", value=ratio(samples[NAIVE], samples[OURS]), least=100),
            Figure(
                what="calls a database command, at steady load", value=served / max(commands, 1), unit="", least=100
            ),
            Figure(what="every call is in quota and ledger, once", value=int(exact), unit="", exactly=1),
        ],
        columns=("", "a second", "spread"),
        rows=[(name, f"{rate(name):,.0f}", spread(taken)) for name, taken in samples.items()],
        notes=[
            f"{OURS}: {CALLS:,} calls one after the other with API key and route, reporting to a real mongod meanwhile. "
            f"{NAIVE}: {NAIVE_CALLS:,} calls by {NAIVE_TASKS} tasks through the bare driver, on one document. "
            f"Steady: {served:,} calls in {STEADY_S:g} s cost {commands} commands.",
        ],
        samples=samples,
    )
