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
from ximler.analytics.spans import following
from ximler.billing import drifts, movements
from ximler.billing.movements import Movement
from ximler.database import Database, outbox, updates
from ximler.database.failures import DocumentExists
from ximler.schema.customer_day import CUSTOMER_DAYS, CustomerDay, MovementKind
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS, RevenueDay, RevenueMonth

__all__ = ["added", "check", "customers", "days_of", "mark_all", "rebuild", "refresh", "sums_of", "unsummed"]

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
    Two commands at once if nothing is new."""
    count = 0
    users, dirty = await asyncio.gather(movements.pending(database, _MOVEMENTS), _dirty(database))
    if not users and not dirty:
        return 0
    while users:
        count += (await _persistently(database, users)).pending
        progress(count)
        users = await movements.pending(database, _MOVEMENTS)
    while dirty := await _dirty(database):
        await _sum(database, dirty)
    return count


async def _dirty(database: Database) -> list[RevenueDay]:
    # In order, so that those of a month are summed together.
    order = [("currency", 1), ("day", 1)]
    return await database[REVENUE_DAYS].find({"dirty": True}, sort=order, limit=_DAYS, hint="dirty_1")


async def rebuild(database: Database, *, progress: Callable[[int], object] = lambda _: None) -> int:
    """Compute all rollups anew from the ledger; returns how many movements there are.
    Reports stay usable meanwhile.

    Customers' days are compared, and only those that differ are written.
    """
    users = sorted(await movements.users(database))
    strangers = set(await customers(database)) - set(users)
    await database[CUSTOMER_DAYS].delete_many({"userId": {"$in": sorted(strangers)}})
    count = 0
    for first in range(0, len(users), 2 * _USERS):  # of two batches the server reads one, and the other is compared
        pair = [users[at : at + _USERS] for at in (first, first + _USERS)]
        count += sum(
            each.rows for each in await asyncio.gather(*(_persistently(database, each) for each in pair if each))
        )
        progress(count)
    await mark_all(database)
    await refresh(database)
    return count


async def customers(database: Database) -> list[ObjectId]:
    """Every user with rollups."""
    rows = await database[CUSTOMER_DAYS].aggregate([{"$sort": {"userId": 1}}, {"$group": {"_id": "$userId"}}])
    return [row["_id"] for row in rows]


async def mark_all(database: Database) -> int:
    """Have all days summed again; returns how many there are."""
    await database[REVENUE_MONTHS].patch_many({}, {"$set": {"summed": 0}})
    return await database[REVENUE_DAYS].patch_many({}, {"$inc": {"version": 1}, "$set": {"dirty": True}})


async def unsummed(database: Database) -> int:
    """How many days an earlier release has summed, which sums no months."""
    return await database[REVENUE_DAYS].count({"summed": None, "dirty": None})


class _Rolled(NamedTuple):
    """Movements of a batch of customers: all of them, and those that were not in the rollups."""

    rows: int
    pending: int


async def _persistently(database: Database, users: list[ObjectId]) -> _Rolled:
    for _ in range(_ATTEMPTS):
        with suppress(DocumentExists):  # another process marked the same new day at the same moment
            return await _roll_up(database, users)
    return await _roll_up(database, users)


async def _roll_up(database: Database, users: list[ObjectId]) -> _Rolled:
    async def write(transaction: Database) -> _Rolled:
        ledger = await movements.of_users(transaction, users)
        days = {each.id: each for user_id in users for each in days_of(ledger[user_id])}
        stored = {each.id: each for each in await transaction[CUSTOMER_DAYS].find({"userId": {"$in": users}})}
        wrong = [each for each in stored.values() if days.get(each.id) != each]
        if wrong:
            await transaction[CUSTOMER_DAYS].delete_many({"_id": {"$in": [each.id for each in wrong]}})
        missing = [each for each in days.values() if stored.get(each.id) != each]
        await transaction[CUSTOMER_DAYS].insert_many(missing)
        changed = {(each.currency, each.day) for each in [*missing, *wrong]}
        mark: Any = {"$inc": {"version": 1}, "$set": {"dirty": True}}
        fresh = [RevenueDay(id=f"{currency}:{day:%Y-%m-%d}", currency=currency, day=day) for currency, day in changed]
        if fresh:
            await transaction[REVENUE_DAYS].upsert_each([({"_id": each.id}, mark, each) for each in fresh])
        rows = [row for user_id in users for row in ledger[user_id]]
        await movements.rolled(transaction, rows)
        return _Rolled(len(rows), sum(1 for row in rows if row.pending))

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
    whole = [(currency, first.date(), following(first.date())) for currency, first in months]
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


def days_of(ledger: Iterable[Movement]) -> list[CustomerDay]:
    """The days on which a customer's recurring revenue changed, from their movements in order. Pure.

    Movements of a day are netted over all subscriptions: one cancelled and another bought is one change.
    """
    by_currency: dict[str, list[Movement]] = defaultdict(list)
    for row in ledger:
        by_currency[row.currency].append(row)
    return [day for currency, rows in by_currency.items() for day in _days(currency, rows)]


def _days(currency: str, rows: list[Movement]) -> list[CustomerDay]:
    states: dict[ObjectId, Movement] = {}
    found: list[CustomerDay] = []
    cohort = ""
    before = (0, 0, 0)
    for index, row in enumerate(rows):
        states[row.subscription_id] = row
        day = _day(row.at)
        if index + 1 < len(rows) and _day(rows[index + 1].at) == day:
            continue
        annual = sum(each.annual_minor for each in states.values())
        committed = sum(each.committed_minor for each in states.values())
        after = (annual, committed, sum(each.at_risk_minor for each in states.values()))
        if after == before:
            continue
        first = not cohort
        cohort = cohort or f"{day:%Y-%m}"
        found.append(
            CustomerDay(
                id=f"{row.user_id}:{currency}:{day:%Y-%m-%d}",
                user_id=row.user_id,
                currency=currency,
                day=day,
                cohort=cohort,
                kind=_kind(before[0], annual, first=first),
                start_minor=before[0],
                end_minor=annual,
                committed_minor=committed - before[1],
                at_risk_minor=after[2] - before[2],
                cancelled=annual > 0 and committed == 0 and (before[1] > 0 or before[0] == 0),
            )
        )
        before = after
    return found


def _kind(before: int, after: int, *, first: bool) -> MovementKind | None:
    if before == after:
        return None
    if not before:
        return "NEW" if first else "REACTIVATION"
    if not after:
        return "CHURN"
    return "EXPANSION" if after > before else "CONTRACTION"


def _day(at: datetime) -> datetime:
    at = at.astimezone(UTC)
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
