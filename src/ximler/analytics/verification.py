"""Verifies the rollups: customers' days against the ledger, sums of days against customers' days, and sums of
months against sums of days; and the buckets of cash and usage against their documents. Read-only; `rebuild`
corrects all of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

import msgspec

from ximler.analytics import retention, rollups, upkeep
from ximler.analytics.retention import Kept, Month
from ximler.analytics.spans import midnight
from ximler.billing import movements
from ximler.database import Database
from ximler.schema.customer_day import CUSTOMER_DAYS, CustomerDay
from ximler.schema.report_bucket import REPORT_BUCKETS
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS, RevenueDay, RevenueMonth

__all__ = ["Wrong", "rebuild", "verify"]

_USERS = 500
_ALL: dict[str, Any] = {"currency": {"$gt": ""}}
_PLACE = ("id", "currency", "day", "version", "summed", "dirty")
_SUMS = tuple(name for name in RevenueDay.__struct_fields__ if name not in _PLACE)
_STORED = dict(zip(RevenueMonth.__struct_fields__, RevenueMonth.__struct_encode_fields__, strict=True))


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """A rollup that differs: its collection, its id, and how."""

    rollup: str
    id: str
    problem: str


async def verify(database: Database) -> list[Wrong]:
    """Every rollup that differs, after a refresh.
    Rows that are written meanwhile may be reported: verify again."""
    await rollups.refresh(database)
    buckets = await upkeep.wrong(database)
    stale = [Wrong(rollup=REPORT_BUCKETS.name, id=name, problem="differs from its documents") for name in buckets]
    of_customers, retained = await _customers(database)
    of_days = await rollups.sums_of(database, _ALL)
    return [*of_customers, *(wrong for wrong, _ in await _sums(database, of_days, retained)), *stale]


async def rebuild(database: Database, *, progress: Callable[[int], object] = lambda _: None) -> int:
    """Compute all rollups anew, and replace those that differ; returns how many movements there are.
    Reports stay usable meanwhile."""
    await upkeep.rebuild(database)
    compared, of_days = await asyncio.gather(
        rollups.compare(database, progress=progress), rollups.sums_of(database, _ALL)
    )
    count: int = compared[0]
    # A change during the rebuild marks its day, so a day that was read too early is summed again.
    wrong = await _sums(database, of_days, compared[1])
    months = [each.id for each, _ in wrong if each.rollup == REVENUE_MONTHS.name]
    if months:
        await database[REVENUE_MONTHS].patch_many({"_id": {"$in": months}}, {"$set": {"summed": 0}})
    await rollups.mark(database, {place for _, place in wrong})
    await rollups.refresh(database)
    return count


async def _customers(database: Database) -> tuple[list[Wrong], dict[Month, Kept]]:
    """Of each user with a ledger or rollups; and the retention of each month by the ledger."""
    ids = sorted({*await movements.users(database), *await rollups.customers(database)})
    found: list[Wrong] = []
    months: dict[Month, Kept] = {}
    for first in range(0, len(ids), _USERS):
        batch = ids[first : first + _USERS]
        expected: dict[str, CustomerDay] = {}
        for rows in (await movements.steps_of(database, batch)).values():
            days = rollups.days_of(rows)
            retention.add_months(months, days)
            expected |= {day.id: day for day in days}
        stored = {day.id: day for day in await database[CUSTOMER_DAYS].find({"userId": {"$in": batch}})}
        found += [
            Wrong(rollup=CUSTOMER_DAYS.name, id=name, problem=_how(stored.get(name), expected.get(name)))
            for name in sorted(expected.keys() | stored.keys())
            if expected.get(name) != stored.get(name)
        ]
    return found, months


async def _sums(
    database: Database, expected: Mapping[str, Mapping[str, Any]], retained: Mapping[Month, Kept]
) -> list[tuple[Wrong, tuple[str, datetime]]]:
    """Days and months that differ, and the currency and day that is to be summed again."""
    months = {month.id: month for month in await database[REVENUE_MONTHS].find({})}
    days = {day.id: day for day in await database[REVENUE_DAYS].find({})}
    found = []
    for name in sorted(expected.keys() | days.keys()):
        if problem := _differs(days.get(name), expected.get(name, {})):
            code, _, day = name.rpartition(":")
            place = code, midnight(date.fromisoformat(day))
            found.append((Wrong(rollup=REVENUE_DAYS.name, id=name, problem=problem), place))
    of_month: dict[str, list[RevenueDay]] = defaultdict(list)
    for each in days.values():
        of_month[f"{each.currency}:{each.day:%Y-%m}"].append(each)
    for name in sorted(of_month.keys() | months.keys()):
        month, of_days = months.get(name), of_month.get(name, [])
        total: dict[str, Any] = {
            _STORED[field]: sum(getattr(day, field) for day in of_days) for field in _SUMS if field != "cohorts"
        }
        total["cohorts"] = rollups.added(day.cohorts for day in of_days)
        problem = _differs(month, total)
        code, _, first = name.rpartition(":")
        start = date.fromisoformat(f"{first}-01")
        if month is not None:
            stored = Kept(month.lost or 0, month.less_minor or 0, month.change_minor or 0)
            if month.lost is not None and stored != retained.get((code, start.year, start.month), Kept()):
                problem = "; ".join(filter(None, (problem, "retention differs")))
            if month.summed > sum(day.summed for day in of_days):
                problem = "; ".join(filter(None, (problem, "has more sums than its days")))
        if problem:
            place = code, of_days[0].day if of_days else midnight(start)
            found.append((Wrong(rollup=REVENUE_MONTHS.name, id=name, problem=problem), place))
    return found


def _differs(stored: RevenueDay | RevenueMonth | None, expected: Mapping[str, Any]) -> str:
    """The fields that differ; empty if none does. A day without customers may be absent, or zero."""
    if stored is None:
        return "is missing" if expected else ""
    wrong = [
        f"{_STORED[field]} is {getattr(stored, field)!r}, not {expected.get(_STORED[field], 0)!r}"
        for field in _SUMS
        if field != "cohorts" and getattr(stored, field) != expected.get(_STORED[field], 0)
    ]
    if stored.cohorts != expected.get("cohorts", {}):
        wrong.append("cohorts differ")
    return "; ".join(wrong)


def _how(stored: CustomerDay | None, expected: CustomerDay | None) -> str:
    if stored is None or expected is None:
        return "is missing" if stored is None else "does not follow from the ledger"
    names = zip(stored.__struct_fields__, stored.__struct_encode_fields__, strict=True)
    return "; ".join(
        f"{shown} is {getattr(stored, name)!r}, not {getattr(expected, name)!r}"
        for name, shown in names
        if getattr(stored, name) != getattr(expected, name)
    )
