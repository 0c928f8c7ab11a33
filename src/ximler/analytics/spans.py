"""The periods of a report: days, weeks and months between two days (UTC, without the last)."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal

from ximler.core.errors import Invalid

__all__ = ["By", "first_day", "following", "midnight", "period_end", "spans", "truncated"]

By = Literal["DAY", "WEEK", "MONTH"]
_MOST_LINES = 1_000
_LAST_YEAR = 9000


def midnight(day: date) -> datetime:
    """The instant at which a day begins."""
    return datetime.combine(day, time(), UTC)


def following(month: date) -> date:
    """The first day of the next month."""
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


def first_day(day: date, by: By) -> date:
    """The first day of the whole period that contains a day."""
    match by:
        case "DAY":
            return day
        case "WEEK":
            return day - timedelta(days=day.weekday())
        case "MONTH":
            return day.replace(day=1)


def period_end(day: date, by: By) -> date:
    """The first day of the period after the one that contains a day."""
    match by:
        case "DAY":
            return day + timedelta(days=1)
        case "WEEK":
            return day + timedelta(days=7 - day.weekday())
        case "MONTH":
            return following(day)


def spans(start: date, end: date, by: By, *, most: int | None = _MOST_LINES) -> list[tuple[date, date]]:
    """The periods between two days: whole ones, cut off at both ends.
    Weeks begin on Monday (ISO 8601). Raises Invalid."""
    if end <= start:
        raise Invalid.field("to", f"{end} is not after {start}: the range has no day")
    if end.year > _LAST_YEAR:
        raise Invalid.field("to", f"{end} is after the year {_LAST_YEAR}")
    found = list(_cut(start, end, by)) if most is None or (end - start).days <= most * 31 else []
    if most is not None and not 0 < len(found) <= most:
        raise Invalid.field("to", f"more than {most} lines: choose a shorter range, or longer periods")
    return found


def truncated(field: str, start: date, by: By) -> dict[str, Any]:
    """The aggregation expression of a date's period: its first day in the range that begins at `start`."""
    whole = {"$dateTrunc": {"date": field, "unit": by.lower(), "startOfWeek": "monday"}}
    return {"$max": [whole, midnight(start)]}


def _cut(start: date, end: date, by: By) -> Iterator[tuple[date, date]]:
    first = start
    while first < end:
        after = period_end(first, by)
        yield first, min(after, end)
        first = after
