"""Verifies the rollups: customers' days against the ledger, sums of days against customers' days, and sums of
months against sums of days; and the buckets of cash and usage against their documents. Read-only; `rebuild`
corrects all of it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ximler.analytics import retention, rollups, upkeep
from ximler.analytics.retention import Kept
from ximler.analytics.spans import following
from ximler.billing import movements
from ximler.database import Database
from ximler.schema.customer_day import CUSTOMER_DAYS, CustomerDay
from ximler.schema.report_bucket import REPORT_BUCKETS
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS, RevenueDay, RevenueMonth

__all__ = ["Wrong", "rebuild", "verify"]

_USERS = 500
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
    return [*await _customers(database), *await _sums(database), *stale]


async def rebuild(database: Database, *, progress: Callable[[int], object] = lambda _: None) -> int:
    """Compute all rollups anew; returns how many movements there are. Reports stay usable meanwhile."""
    await upkeep.rebuild(database)
    return await rollups.rebuild(database, progress=progress)


async def _customers(database: Database) -> list[Wrong]:
    """Of each user with a ledger, and of each user with rollups."""
    ids = sorted({*await movements.users(database), *await rollups.customers(database)})
    found: list[Wrong] = []
    for first in range(0, len(ids), _USERS):
        batch = ids[first : first + _USERS]
        ledger = await movements.of_users(database, batch)
        expected = {day.id: day for rows in ledger.values() for day in rollups.days_of(rows)}
        stored = {day.id: day for day in await database[CUSTOMER_DAYS].find({"userId": {"$in": batch}})}
        found += [
            Wrong(rollup=CUSTOMER_DAYS.name, id=name, problem=_how(stored.get(name), expected.get(name)))
            for name in sorted(expected.keys() | stored.keys())
            if expected.get(name) != stored.get(name)
        ]
    return found


async def _sums(database: Database) -> list[Wrong]:
    expected = await rollups.sums_of(database, {"currency": {"$gt": ""}})
    days = {day.id: day for day in await database[REVENUE_DAYS].find({})}
    found = [
        Wrong(rollup=REVENUE_DAYS.name, id=name, problem=problem)
        for name in sorted(expected.keys() | days.keys())
        if (problem := _differs(days.get(name), expected.get(name, {})))
    ]
    of_month: dict[str, list[RevenueDay]] = defaultdict(list)
    for day in days.values():
        of_month[f"{day.currency}:{day.day:%Y-%m}"].append(day)
    months = {month.id: month for month in await database[REVENUE_MONTHS].find({})}
    firsts = {name: of_days[0].day.date().replace(day=1) for name, of_days in of_month.items()}
    whole = [(of_month[name][0].currency, first, following(first)) for name, first in firsts.items()]
    retained = await retention.kept(database, whole, "MONTH")
    for name in sorted(of_month.keys() | months.keys()):
        total: dict[str, Any] = {
            _STORED[field]: sum(getattr(day, field) for day in of_month[name]) for field in _SUMS if field != "cohorts"
        }
        total["cohorts"] = rollups.added(day.cohorts for day in of_month[name])
        month = months.get(name)
        problem = _differs(month, total)
        if month is not None and name in of_month:
            stored = Kept(month.lost or 0, month.less_minor or 0, month.change_minor or 0)
            if month.lost is not None and stored != retained[month.currency, firsts[name]]:
                problem = "; ".join(filter(None, (problem, "retention differs")))
        if problem:
            found.append(Wrong(rollup=REVENUE_MONTHS.name, id=name, problem=problem))
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
    names = [name for name in stored.__struct_fields__ if getattr(stored, name) != getattr(expected, name)]
    return "; ".join(f"{name} is {getattr(stored, name)!r}, not {getattr(expected, name)!r}" for name in names)
