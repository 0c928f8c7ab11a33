"""Rollups of recurring revenue by day and month. Owns `customerdays`, `revenuedays` and `revenuemonths`.

`refresh` takes the movements that are not rolled up, computes the days of their customers anew, marks the
days that changed, and sums those and their months. All of it follows from the ledger alone: any number of
processes may run it, and be killed, at any moment. A customer's days are written in one transaction with the
marks; a day's sums are written only if no customer's day has changed since they were read.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import structlog
from bson import ObjectId

from ximler.analytics import retention
from ximler.analytics.retention import Kept, Month
from ximler.analytics.spans import following as month_after
from ximler.analytics.spans import midnight
from ximler.billing import drifts, movements
from ximler.billing.movements import Step
from ximler.database import Database, outbox, updates
from ximler.database.failures import DocumentExists
from ximler.schema.customer_day import CUSTOMER_DAYS, CustomerDay, MovementKind
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS, RevenueDay, RevenueMonth

__all__ = [
    "added",
    "check",
    "compare",
    "customers",
    "days_of",
    "mark",
    "mark_all",
    "refresh",
    "sums_of",
    "unsummed",
]

_MOVEMENTS = 5_000  # a transaction
_USERS = 2_000  # the same, of a rebuild
_ATTEMPTS = 20  # at a batch, while other processes roll up the same customers
_DAYS = 200  # an aggregation
_CHANGE = {"$abs": {"$subtract": ["$endMinor", "$startMinor"]}}
_KINDS = {  # of a movement: the fields with its amount and its customers
    "NEW": ("newMinor", "new"),
    "REACTIVATION": ("reactivationMinor", "reactivated"),
    "EXPANSION": ("expansionMinor", "expanded"),
    "CONTRACTION": ("contractionMinor", "contracted"),
    "CHURN": ("churnMinor", "churned"),
}
_SUMS: dict[str, Any] = {
    **{minor: {"$sum": {"$cond": [{"$eq": ["$kind", kind]}, _CHANGE, 0]}} for kind, (minor, _) in _KINDS.items()},
    **{count: {"$sum": {"$cond": [{"$eq": ["$kind", kind]}, 1, 0]}} for kind, (_, count) in _KINDS.items()},
    "cancelled": {"$sum": {"$cond": ["$cancelled", 1, 0]}},
    "committedMinor": {"$sum": "$committedMinor"},
    "atRiskMinor": {"$sum": "$atRiskMinor"},
}
_log = structlog.get_logger("ximler.analytics")


@outbox.daily("analytics.check", hour=2)
async def check(*, database: Database) -> int:
    """Add what the ledger lacks, as subscriptions that other applications wrote, and refresh the rollups.

    Returns the number of subscriptions that the ledger disagreed with.
    """
    found = await drifts.check(database, repair=True)
    for drift in found:
        _log.warning(
            "recurring revenue corrected",
            user=str(drift.user_id),
            subscription=str(drift.subscription_id),
            recorded_minor=drift.recorded_minor,
            actual_minor=drift.actual_minor,
            currency=drift.currency,
        )
    await refresh(database)
    return len(found)


async def refresh(database: Database, *, progress: Callable[[int], object] = lambda _: None) -> int:
    """Bring the rollups up to date; returns how many movements were rolled up.
    Two commands if nothing is new."""
    count = 0
    while users := await movements.pending(database, _MOVEMENTS):
        count += (await _persistently(database, users)).pending
        progress(count)
    # After the movements: those that another process has taken until then have marked their days.
    # Read side by side, a commit between the two answers would look like nothing to do.
    while dirty := await _dirty(database):
        await _sum(database, dirty)
    return count


async def _dirty(database: Database) -> list[RevenueDay]:
    # In order, so that those of a month are summed together.
    order = [("currency", 1), ("day", 1)]
    return await database[REVENUE_DAYS].find({"dirty": True}, sort=order, limit=_DAYS, hint="dirty_1")


async def compare(
    database: Database, *, progress: Callable[[int], object] = lambda _: None
) -> tuple[int, dict[Month, Kept]]:
    """Compare the days of every customer with the ledger, and write those that differ.

    Returns how many movements there are, and the retention of each month that follows from them.
    """
    users, known = await asyncio.gather(movements.users(database), customers(database))
    strangers = sorted(set(known) - set(users))
    if strangers:
        await database[CUSTOMER_DAYS].delete_many({"userId": {"$in": strangers}})
    users.sort()
    batches = iter([users[first : first + _USERS] for first in range(0, len(users), _USERS)])
    count, months = 0, dict[Month, Kept]()

    async def work() -> None:
        nonlocal count
        for batch in batches:
            rolled = await _persistently(database, batch)
            count += rolled.rows
            for days in rolled.days:
                retention.add_months(months, days)
            progress(count)

    await asyncio.gather(work(), work())  # the server reads a batch while the one before is compared
    return count, months


async def customers(database: Database) -> list[ObjectId]:
    """Every user with rollups."""
    rows = await database[CUSTOMER_DAYS].aggregate([{"$sort": {"userId": 1}}, {"$group": {"_id": "$userId"}}])
    return [row["_id"] for row in rows]


async def mark_all(database: Database) -> int:
    """Have all days summed again; returns how many there are."""
    await database[REVENUE_MONTHS].patch_many({}, {"$set": {"summed": 0}})
    return await database[REVENUE_DAYS].patch_many({}, {"$inc": {"version": 1}, "$set": {"dirty": True}})


async def mark(database: Database, days: Iterable[tuple[str, datetime]]) -> None:
    """Mark these days and their months to be summed again. One command, or none without days."""
    change: Any = {"$inc": {"version": 1}, "$set": {"dirty": True}}
    fresh = [RevenueDay(id=f"{currency}:{day:%Y-%m-%d}", currency=currency, day=day) for currency, day in days]
    if fresh:
        await database[REVENUE_DAYS].upsert_each([({"_id": each.id}, change, each) for each in fresh])


async def unsummed(database: Database) -> int:
    """How many days an earlier release has summed, which sums no months."""
    return await database[REVENUE_DAYS].count({"summed": None, "dirty": None})


class _Rolled(NamedTuple):
    """Movements of a batch of customers: all of them, those missing from the rollups,
    and the days of each customer that follow."""

    rows: int
    pending: int
    days: list[list[CustomerDay]]


async def _persistently(database: Database, users: list[ObjectId]) -> _Rolled:
    for _ in range(_ATTEMPTS):
        with suppress(DocumentExists):  # another process marked the same new day at the same moment
            return await _roll_up(database, users)
    return await _roll_up(database, users)


async def _roll_up(database: Database, users: list[ObjectId]) -> _Rolled:
    async def write(transaction: Database) -> _Rolled:
        ledger = await movements.steps_of(transaction, users)
        expected = [days_of(rows) for rows in ledger.values()]
        missing = {each.id: each for days in expected for each in days}
        wrong = []
        for each in await transaction[CUSTOMER_DAYS].find({"userId": {"$in": users}}):
            if missing.get(each.id) == each:
                del missing[each.id]
            else:
                wrong.append(each)
        if wrong:
            await transaction[CUSTOMER_DAYS].delete_many({"_id": {"$in": [each.id for each in wrong]}})
        await transaction[CUSTOMER_DAYS].insert_many(missing.values())
        await mark(transaction, {(each.currency, each.day) for each in [*missing.values(), *wrong]})
        rows = [row for each in ledger.values() for row in each]
        pending = [row for row in rows if row.pending]
        await movements.rolled(transaction, pending)
        return _Rolled(len(rows), len(pending), expected)

    return await database.transaction(write)


async def sums_of(database: Database, where: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sums of the customers' days that match, by the id of their day."""
    rows = await database[CUSTOMER_DAYS].aggregate(
        [
            {"$match": where},
            {"$group": {"_id": {"currency": "$currency", "day": "$day", "cohort": "$cohort"}, **_SUMS}},
        ]
    )
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[f"{row['_id']['currency']}:{row['_id']['day']:%Y-%m-%d}"].append(row)
    return {name: _total(of_day) for name, of_day in grouped.items()}


async def _sum(database: Database, dirty: list[RevenueDay]) -> None:
    """Sum the customers' days of these days. A day that changes meanwhile stays dirty."""
    by_currency: dict[str, list[datetime]] = defaultdict(list)
    for each in dirty:
        by_currency[each.currency].append(each.day)
    of_days = [{"currency": code, "day": {"$in": found}} for code, found in by_currency.items()]
    totals = await sums_of(database, {"$or": of_days})
    days = database[REVENUE_DAYS]
    seen = [(each, {"_id": each.id, "version": each.version}) for each in dirty]
    await days.patch_each(
        [(where, {"$set": totals.get(each.id) or _total([]), "$inc": {"summed": 1}}) for each, where in seen]
    )
    await _sum_months(database, {(each.currency, each.day.replace(day=1)) for each in dirty})
    # Last: a process that is killed before leaves the days dirty, and their months are computed again.
    await days.patch_each([(where, {"$unset": {"dirty": ""}}) for _, where in seen])


async def _sum_months(database: Database, months: set[tuple[str, datetime]]) -> None:
    """Sum the days of these months. Of processes that race,
    the one that has read the most sums of days stands."""
    within = [
        {"currency": currency, "day": {"$gte": first, "$lt": (first + timedelta(days=32)).replace(day=1)}}
        for currency, first in months
    ]
    rows = await database[REVENUE_DAYS].aggregate(
        [
            {"$match": {"$or": within}},
            {
                "$group": {
                    "_id": {"currency": "$currency", "month": {"$dateTrunc": {"date": "$day", "unit": "month"}}},
                    **{name: {"$sum": f"${name}"} for name in (*_SUMS, "summed")},
                    "cohorts": {"$push": "$cohorts"},
                }
            },
        ]
    )
    # After the days: a computation that has read more sums of days has then read
    # their customers' latest days, too.
    whole = [(currency, first.date(), month_after(first.date())) for currency, first in months]
    retained = await retention.kept(database, whole, "MONTH")
    changes: list[tuple[dict[str, Any], updates.Update, RevenueMonth]] = []
    for row in rows:
        key = row.pop("_id")
        month = key["month"].replace(tzinfo=UTC)
        kept = retained[key["currency"], month.date()]
        row |= {"lost": kept.lost, "lessMinor": kept.less, "changeMinor": kept.change}
        name = f"{key['currency']}:{month:%Y-%m}"
        row["cohorts"] = added(row["cohorts"])
        fresh = RevenueMonth(id=name, currency=key["currency"], month=month)
        changes.append(({"_id": name, "summed": {"$lt": row["summed"]}}, {"$set": row}, fresh))
    # The first attempt may meet one that another process inserts; then it exists, and only the guard refuses.
    for _ in range(2):
        with suppress(DocumentExists):
            await database[REVENUE_MONTHS].upsert_each(changes)
            return


def added(cohorts: Iterable[dict[str, list[int]]]) -> dict[str, list[int]]:
    """The changes of each cohort over several days."""
    found: dict[str, list[int]] = {}
    for each in cohorts:
        for name, (annual, customers) in each.items():
            so_far = found.setdefault(name, [0, 0])
            so_far[0] += annual
            so_far[1] += customers
    return dict(sorted(found.items()))


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {name: sum(row[name] for row in rows) for name in _SUMS}
    values["cohorts"] = {
        row["_id"]["cohort"]: [
            row["newMinor"]
            + row["reactivationMinor"]
            + row["expansionMinor"]
            - row["contractionMinor"]
            - row["churnMinor"],
            row["new"] + row["reactivated"] - row["churned"],
        ]
        for row in sorted(rows, key=lambda row: str(row["_id"]["cohort"]))
    }
    return values


def days_of(ledger: Iterable[Step]) -> list[CustomerDay]:
    """The days on which a customer's recurring revenue changed, from their movements in order. Pure.

    Movements of a day are netted over all subscriptions: one cancelled and another bought is one change.
    """
    by_currency: dict[str, list[Step]] = {}
    for row in ledger:
        by_currency.setdefault(row.currency, []).append(row)
    return [day for currency, rows in by_currency.items() for day in _days(currency, rows)]


def _days(currency: str, rows: list[Step]) -> list[CustomerDay]:
    # A rebuild spends most of its time here and in reading: sums are cached, and each day is formatted once.
    # ObjectIds are hashed and compared in Python, bytes in C.
    states: dict[bytes, Step] = {}
    found: list[CustomerDay] = []
    place = f"{rows[0].user_id}:{currency}:"
    cohort = ""
    annual = committed = at_risk = 0
    before = (0, 0, 0)
    days = [row.at.date() for row in rows]
    for row, day, following in zip(rows, days, [*days[1:], None], strict=True):
        subscription = row.subscription_id.binary
        was = states.get(subscription)
        states[subscription] = row
        annual += row.annual_minor
        committed += row.committed_minor
        at_risk += row.at_risk_minor
        if was is not None:
            annual -= was.annual_minor
            committed -= was.committed_minor
            at_risk -= was.at_risk_minor
        if day == following or (annual, committed, at_risk) == before:
            continue
        name = day.isoformat()
        first = not cohort
        cohort = cohort or name[:7]
        found.append(
            CustomerDay(
                id=place + name,
                user_id=row.user_id,
                currency=currency,
                day=midnight(day),
                cohort=cohort,
                kind=_kind(before[0], annual, first=first),
                start_minor=before[0],
                end_minor=annual,
                committed_minor=committed - before[1],
                at_risk_minor=at_risk - before[2],
                cancelled=annual > 0 and committed == 0 and (before[1] > 0 or before[0] == 0),
            )
        )
        before = (annual, committed, at_risk)
    return found


def _kind(before: int, after: int, *, first: bool) -> MovementKind | None:
    if before == after:
        return None
    if not before:
        return "NEW" if first else "REACTIVATION"
    if not after:
        return "CHURN"
    return "EXPANSION" if after > before else "CONTRACTION"
