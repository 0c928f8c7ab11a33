"""Retention of the customers who had recurring revenue at the start of a period,
from an index of `customerdays` alone.

Whole months are kept in `revenuemonths`;
a day's figures follow from its sums, because a customer has one row a day.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, NamedTuple

from ximler.analytics.spans import By, midnight, truncated
from ximler.database import Database
from ximler.schema.customer_day import CUSTOMER_DAYS, CustomerDay

__all__ = ["Kept", "Month", "Span", "add_months", "kept", "of_day"]

Month = tuple[str, int, int]  # a currency, the year and the month
Span = tuple[str, date, date]  # a currency, the first day, and the day after the last


class Kept(NamedTuple):
    """Changes of the customers who had revenue at the start, in minor units a year:
    number lost, sum of decreases, net sum."""

    lost: int = 0
    less: int = 0
    change: int = 0


_NONE = Kept()


def of_day(moved: Mapping[str, int]) -> Kept:
    """A day's, by its movements."""
    less = moved["contraction_minor"] + moved["churn_minor"]
    return Kept(moved["churned"], less, moved["expansion_minor"] - less)


def add_months(months: dict[Month, Kept], days: Iterable[CustomerDay]) -> None:
    """Add a customer's days, by currency and in order, to the figures of whole months."""
    month: Month | None = None
    start = end = 0
    for each in days:
        of = (each.currency, each.day.year, each.day.month)
        if of != month:
            if month is not None and start > 0:
                months[month] = _after(months.get(month, _NONE), start, end)
            month, start = of, each.start_minor
        end = each.end_minor
    if month is not None and start > 0:
        months[month] = _after(months.get(month, _NONE), start, end)


def _after(so_far: Kept, start: int, end: int) -> Kept:
    """Add a customer whose revenue was `start` and is `end`."""
    return Kept(so_far.lost + (end == 0), so_far.less + max(start - end, 0), so_far.change + end - start)


async def kept(database: Database, spans: Iterable[Span], by: By) -> dict[tuple[str, date], Kept]:
    """Of each period, by its currency and first day;
    spans that are cut from it begin and end within. One command."""
    asked = list(spans)
    if not asked:
        return {}
    rows = await database[CUSTOMER_DAYS].aggregate(
        [
            {"$match": {"$or": [_days(each) for each in asked]}},
            {"$sort": {"currency": 1, "day": 1}},
            {"$project": {"_id": 0, "currency": 1, "day": 1, "userId": 1, "startMinor": 1, "endMinor": 1}},
            {
                "$group": {
                    "_id": {
                        "user": "$userId",
                        "currency": "$currency",
                        "period": truncated("$day", min(start for _, start, _ in asked), by),
                    },
                    "start": {"$first": "$startMinor"},
                    "end": {"$last": "$endMinor"},
                }
            },
            {"$match": {"start": {"$gt": 0}}},
            {
                "$group": {
                    "_id": {"currency": "$_id.currency", "period": "$_id.period"},
                    "lost": {"$sum": {"$cond": [{"$eq": ["$end", 0]}, 1, 0]}},
                    "less": {"$sum": {"$max": [{"$subtract": ["$start", "$end"]}, 0]}},
                    "change": {"$sum": {"$subtract": ["$end", "$start"]}},
                }
            },
        ]
    )
    found = {
        (row["_id"]["currency"], row["_id"]["period"].date()): Kept(row["lost"], row["less"], row["change"])
        for row in rows
    }
    return {(code, start): found.get((code, start), Kept()) for code, start, _ in asked}


def _days(span: Span) -> dict[str, Any]:
    code, start, end = span
    return {"currency": code, "day": {"$gte": midnight(start), "$lt": midnight(end)}}
