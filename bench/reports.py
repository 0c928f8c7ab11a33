"""Topic `reports`: recurring revenue from rollups, beside the same from the ledger; and what the rollups cost."""

import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from statistics import median, quantiles
from typing import Any

from bson import ObjectId

from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.analytics import revenue, rollups
from ximler.core.actor import SYSTEM
from ximler.database import Database
from ximler.database.monitoring import round_trips

__all__ = ["run"]

CUSTOMERS, QUICK, MONTHS, EACH = 100_000, 5_000, 36, 3
START = datetime(2024, 1, 1, tzinfo=UTC)
_DAYS = 1096
_RANGE = {"start": date(2024, 1, 1), "end": date(2027, 1, 1)}
Report = Callable[[], Awaitable[object]]


async def run(setup: Setup) -> list[Table]:
    customers = QUICK if setup.quick else CUSTOMERS
    async with setup.database(initialised=True) as database:
        await _ledger(database, customers)
        began = time.perf_counter()
        rows = await rollups.refresh(database)
        rebuilt = time.perf_counter() - began
        await _movement(database)
        began = time.perf_counter()
        await rollups.refresh(database)
        dirty = time.perf_counter() - began
        reports: dict[str, Report] = {
            "MRR by month, 36 months": partial(revenue.mrr, database, SYSTEM, **_RANGE, by="MONTH"),
            "MRR by day, a year": partial(
                revenue.mrr, database, SYSTEM, start=date(2026, 1, 1), end=date(2027, 1, 1), by="DAY"
            ),
            "churn, a month": partial(
                revenue.churn, database, SYSTEM, start=date(2026, 11, 1), end=date(2026, 12, 1), by="MONTH"
            ),
            "cohorts, 36 months": partial(revenue.cohorts, database, SYSTEM, **_RANGE),
        }
        lines = []
        slowest = 0.0
        for name, report in reports.items():
            taken, trips = await _timed(report, setup.rounds(50))
            slowest = max(slowest, quantiles(taken, n=100)[98])
            lines.append((name, ms(median(taken)), ms(quantiles(taken, n=100)[98]), str(trips)))
        bare, _ = await _timed(partial(_from_ledger, database), 3)
        lines.append(("MRR by month, from the ledger", ms(median(bare)), "", "1"))
    return [
        Table(
            title=f"reports: {customers:,} customers, {rows:,} movements in {MONTHS} months",
            figures=[
                Figure(what="the slowest report, p99", value=1000 * slowest, unit="ms", most=50),
                Figure(what="movements rolled up, all anew", value=rows / rebuilt, unit="a second"),
                Figure(what="a day that changed, computed again", value=1000 * dirty, unit="ms", most=2000),
            ],
            columns=("report", "p50", "p99", "round trips"),
            rows=lines,
            notes=["The last row computes with $setWindowFields what the first one reads."],
        )
    ]


async def _timed(report: Report, rounds: int) -> tuple[list[float], int]:
    await report()
    taken, trips = [], 0
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
