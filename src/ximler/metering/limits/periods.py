"""Usage periods: the months in which quotas are counted. Pure.

A period begins at 00:00 UTC on the anchor day of a month, or on the month's last day if it is shorter:
anchored on the 31st, they begin on 31 January, 28 (or 29) February, 31 March. The anchor is the day on which
the active subscription began; the 1st without one. So an hour of the ledger never lies in two periods.
"""

from calendar import monthrange
from datetime import UTC, datetime, timedelta

from ximler.core.errors import Invalid

__all__ = ["CALENDAR_MONTH", "INSTANT", "anchor_day", "around"]

CALENDAR_MONTH = 1
INSTANT = timedelta(milliseconds=1)


def anchor_day(start: datetime | None) -> int:
    """The day of the month on which a subscription's periods begin; the 1st for None."""
    return CALENDAR_MONTH if start is None else start.astimezone(UTC).day


def around(day: int, moment: datetime) -> tuple[datetime, datetime]:
    """The period that contains `moment`: its start and its exclusive end. Raises Invalid outside the years 2
    to 9998.
    """
    moment = moment.astimezone(UTC)
    if not 2 <= moment.year <= 9998:
        raise Invalid.field("moment", f"no period is kept for the year {moment.year}")
    year, month = moment.year, moment.month
    here = _begin(year, month, day)
    if moment < here:
        return _begin(*_before(year, month), day), here
    return here, _begin(*_after(year, month), day)


def _begin(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, min(day, monthrange(year, month)[1]), tzinfo=UTC)


def _before(year: int, month: int) -> tuple[int, int]:
    return (year - 1, 12) if month == 1 else (year, month - 1)


def _after(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)
