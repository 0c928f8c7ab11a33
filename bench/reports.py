"""Topic `reports`: recurring revenue from rollups, beside the same from the ledger;
and what the rollups cost."""

import random
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from statistics import median
from typing import Any, TypeVar

from bson import ObjectId

from bench.contest import frozen, percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.analytics import buckets, cash, revenue, rollups, verification
from ximler.analytics import customers as customers_of
from ximler.core.actor import SYSTEM
from ximler.database import Database
from ximler.database.monitoring import round_trips

__all__ = ["run"]

CUSTOMERS, QUICK, MONTHS, EACH = 100_000, 5_000, 36, 3
PAYMENTS, USAGE = 1_000_000, 10_000_000  # with --full; a tenth of them otherwise, and a hundredth with --quick
START = datetime(2024, 1, 1, tzinfo=UTC)
_DAYS = 1096
_RANGE = {"start": date(2024, 1, 1), "end": date(2027, 1, 1)}
Report = Callable[[], Awaitable[object]]
T = TypeVar("T")


async def run(setup: Setup) -> list[Table]:
    customers = QUICK if setup.quick else CUSTOMERS
    part = 100 if setup.quick else 1 if setup.full else 10
    payments, used = PAYMENTS // part, USAGE // part
    async with setup.database(initialised=True) as database:
        steps = _Steps()
        await steps.take(f"insert {customers * EACH:,} movements", _ledger(database, customers))
        rows = await steps.take("roll up movements", rollups.refresh(database))
        await _movement(database)
        await steps.take("sum a day that changed", rollups.refresh(database))
        reports: dict[str, Report] = {
            "MRR by month, 36 months": partial(revenue.mrr, database, SYSTEM, **_RANGE, by="MONTH"),
            "MRR by day, a year": partial(
                revenue.mrr, database, SYSTEM, start=date(2026, 1, 1), end=date(2027, 1, 1), by="DAY"
            ),
            "churn, a month": partial(
                revenue.churn, database, SYSTEM, start=date(2026, 11, 1), end=date(2026, 12, 1), by="MONTH"
            ),
            "churn by day, a year": partial(
                revenue.churn, database, SYSTEM, start=date(2026, 1, 1), end=date(2027, 1, 1), by="DAY"
            ),
            "churn by month, 36 months": partial(revenue.churn, database, SYSTEM, **_RANGE),
            "cohorts, 36 months": partial(revenue.cohorts, database, SYSTEM, **_RANGE),
        }
        reports |= await steps.take(
            f"insert {payments:,} payments, {used:,} usage", _documents(database, payments, used)
        )
        for name, report in reports.items():
            await steps.take(f"first: {name}", report())
        await steps.take("scan of movements", _scan(database, "movements"))
        await steps.take("scan of payments", _scan(database, "payments"))
        await steps.take("scan of usage", _scan(database, "usage"))
        await steps.take("rebuild of movements", rollups.compare(database))
        for bucket in (cash.BUCKETS, customers_of.USED, customers_of.LARGEST):
            await steps.take(f"rebuild of {bucket.name}", buckets.again(database, bucket, {}, at_once=2))
        await steps.take("full rebuild", verification.rebuild(database))
        november = {"by": "DAY", "start": datetime(2026, 11, 3, tzinfo=UTC)}
        await steps.take("sum a day of usage", buckets.again(database, customers_of.USED, november))
        await steps.take("sum a day of cash", buckets.again(database, cash.BUCKETS, november))
        lines = []
        slowest = 0.0
        for name, report in reports.items():
            taken, trips = await _timed(report, setup.rounds(200))
            slowest = max(slowest, percentile(taken, 99))
            lines.append((name, ms(median(taken)), ms(percentile(taken, 99)), str(trips)))
        bare, _ = await _timed(partial(_from_ledger, database), 3)
        lines.append(("MRR by month, from the ledger", ms(median(bare)), "", "1"))
    documents, took = rows + payments + used, steps.seconds
    scans = took["scan of movements"] + took["scan of payments"] + took["scan of usage"]
    return [
        Table(
            title=f"reports: {customers:,} customers, {rows:,} movements in {MONTHS} months",
            figures=[
                Figure(what="the slowest report, p99", value=1000 * slowest, unit="ms", most=50),
                Figure(
                    what="documents of a full rebuild",
                    value=documents / took["full rebuild"],
                    unit="a second",
                    least=50_000,
                ),
                Figure(
                    what="a full rebuild ÷ a scan that counts the same documents", value=took["full rebuild"] / scans
                ),
                Figure(
                    what="a day that changed, computed again",
                    value=1000 * took["sum a day that changed"],
                    unit="ms",
                    most=2000,
                ),
                Figure(
                    what="a day of cash and of usage, computed again",
                    value=1000 * (took["sum a day of usage"] + took["sum a day of cash"]),
                    unit="ms",
                    most=2000,
                ),
            ],
            columns=("report", "p50", "p99", "round trips"),
            rows=lines,
            notes=[
                "The last row computes with $setWindowFields what the first one reads.",
                f"{payments:,} payments, and {used:,} rows of usage.",
                "A full rebuild computes every rollup anew: its documents are movements, payments and rows of",
                "usage, each counted once although its day, month and largest users are computed apart.",
            ],
        ),
        Table(
            title="reports: what each step took",
            columns=("step", "seconds", "processor time of the process"),
            rows=[(name, f"{wall:.2f}", f"{steps.busy[name]:.2f}") for name, wall in took.items()],
        ),
    ]


class _Steps:
    """Times each step, and says on standard error when it ends: with --full, all of them take minutes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.busy: dict[str, float] = {}

    async def take(self, name: str, work: Awaitable[T]) -> T:
        began, busy = time.perf_counter(), time.process_time()
        result = await work
        self.seconds[name], self.busy[name] = time.perf_counter() - began, time.process_time() - busy
        print(f"  {self.seconds[name]:8.2f} s  {name}", file=sys.stderr, flush=True)
        return result


async def _scan(database: Database, name: str) -> None:
    await (await database.raw[name].aggregate([{"$group": {"_id": None, "n": {"$sum": 1}}}])).to_list()


async def _timed(report: Report, rounds: int) -> tuple[list[float], int]:
    await report()
    taken, trips = [], 0
    with frozen():
        for _ in range(max(rounds, 3)):
            with round_trips() as sent:
                began = time.perf_counter()
                await report()
                taken.append(time.perf_counter() - began)
            trips = len(sent)
    return taken, trips


def _row(user_id: ObjectId, number: int, at: datetime, annual: int) -> dict[str, Any]:
    amounts = {"annualMinor": annual, "committedMinor": annual, "atRiskMinor": 0}
    return {
        "_id": f"{user_id}:{number}",
        "userId": user_id,
        "subscriptionId": user_id,
        "number": number,
        "at": at,
        "planId": "pro",
        "currency": "USD",
        **amounts,
        "pending": True,
        "createdAt": at,
    }


async def _ledger(database: Database, customers: int) -> None:
    chance = random.Random(7)
    for first in range(0, customers, 5_000):
        rows = []
        for _ in range(min(5_000, customers - first)):
            user_id, days = ObjectId(), sorted(chance.sample(range(_DAYS), EACH))
            rows += [
                _row(user_id, number, START + timedelta(days=day, hours=9), chance.choice((0, 2900, 9900)) * 12)
                for number, day in enumerate(days)
            ]
        await database.raw["movements"].insert_many(rows, ordered=False)


async def _documents(database: Database, payments: int, usage: int) -> dict[str, Report]:
    """Payments and usage over the months, inserted as they are stored; and the reports about them."""
    chance, users = random.Random(8), [ObjectId() for _ in range(max(1_000, usage // 100))]
    minutes = sorted(chance.choices(range(_DAYS * 1440), k=payments))
    for first in range(0, payments, 10_000):
        moments = [START + timedelta(minutes=each) for each in minutes[first : first + 10_000]]
        await database.raw["payments"].insert_many(
            [
                {"userId": chance.choice(users), "amount": 29.99, "currency": "USD", "createdAt": at, "updatedAt": at}
                | ({"status": "PAID", "paidAt": at} if number % 20 else {"status": "FAILED"})
                for number, at in enumerate(moments)
            ],
            ordered=False,
        )
    await database.raw["entitlements"].insert_many(
        [
            {"_id": user, "planId": plan, "planName": plan, "projects": 1, "storageBytes": 1, "apiCalls": 1}
            for user, plan in zip(users, chance.choices(("pro", "team", "free"), k=len(users)), strict=True)
        ]
    )
    hour = timedelta(hours=1)
    hours = sorted(chance.choices(range(_DAYS * 24), k=usage))  # rows are written as time passes
    for first in range(0, usage, 20_000):
        starts = [START + hour * each for each in hours[first : first + 20_000]]
        await database.raw["usage"].insert_many(
            [
                {"userId": chance.choice(users), "resourceType": "apiCalls", "amount": 7}
                | {"periodStart": at, "periodEnd": at + hour, "createdAt": at}
                for at in starts
            ],
            ordered=False,
        )
    november: dict[str, Any] = {"start": date(2026, 11, 1), "end": date(2026, 12, 1)}
    year: dict[str, Any] = {"start": date(2026, 1, 1), "end": date(2027, 1, 1), "by": "DAY"}
    database.clock.offset_ms += int((datetime(2027, 1, 9, tzinfo=UTC) - database.clock.now()).total_seconds() * 1000)
    return {
        "cash by month, 36 months": partial(cash.cash, database, SYSTEM, **_RANGE),
        "cash by day, a year": partial(cash.cash, database, SYSTEM, **year),
        "usage by month, 36 months": partial(customers_of.usage, database, SYSTEM, **_RANGE),
        "usage by day, a year": partial(customers_of.usage, database, SYSTEM, **year),
        "largest users, a month": partial(
            customers_of.largest, database, SYSTEM, resource="apiCalls", **november, first=20
        ),
    }


async def _movement(database: Database) -> None:
    """One more customer on a day that has many: it is summed again."""
    await database.raw["movements"].insert_one(_row(ObjectId(), 0, datetime(2026, 6, 1, 9, tzinfo=UTC), 34_800))


async def _from_ledger(database: Database) -> None:
    """Each customer's changes by day, classified, and summed by month."""
    before = {"$shift": {"output": "$annualMinor", "by": -1, "default": 0}}
    pipeline: list[dict[str, Any]] = [
        {
            "$setWindowFields": {
                "partitionBy": "$userId",
                "sortBy": {"at": 1},
                "output": {"before": before},
            }
        },
        {"$set": {"change": {"$subtract": ["$annualMinor", "$before"]}}},
        {
            "$group": {
                "_id": {"$dateTrunc": {"date": "$at", "unit": "month"}},
                "more": {"$sum": {"$max": ["$change", 0]}},
                "less": {"$sum": {"$min": ["$change", 0]}},
            }
        },
    ]
    await (await database.raw["movements"].aggregate(pipeline, allowDiskUse=True)).to_list()
