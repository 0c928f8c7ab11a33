"""Billing periods: `[start, end)`, to the second, in UTC, by index from the anchor. Pure.

Period n is computed from the anchor, never from the end of period n - 1, so that a short month does not
shorten the ones after it: monthly from 31 January, periods begin on 28 February, 31 March and 30 April. The
days of quotas are metering's.
"""

from calendar import monthrange
from datetime import UTC, datetime

import msgspec

from ximler.core.clock import rfc3339
from ximler.core.errors import Invalid
from ximler.schema.plan import Interval

__all__ = ["Period", "around", "period"]

_MONTHS: dict[Interval, int] = {"MONTH": 1, "YEAR": 12}


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Period `index` of an anchor: from `start` up to, and without, `end`."""

    index: int
    start: datetime
    end: datetime

    @property
    def seconds(self) -> int:
        return _seconds(self.start, self.end)

    def remaining_s(self, moment: datetime) -> int:
        """Whole seconds from `moment` to the end: at most the whole period, never below zero."""
        return min(max(_seconds(_to_the_second(moment), self.end), 0), self.seconds)


def period(anchor: datetime, interval: Interval, index: int) -> Period:
    """The period with this index; 0 begins at the anchor.
    Raises Invalid for a negative index, or past the year 9999."""
    if index < 0:
        raise Invalid.field("index", f"{index} lies before the anchor")
    return Period(index=index, start=_instant(anchor, interval, index), end=_instant(anchor, interval, index + 1))


def around(anchor: datetime, interval: Interval, moment: datetime) -> Period:
    """The period that `moment` lies in. Raises Invalid where it lies before the anchor."""
    anchor, moment = _to_the_second(anchor), moment.astimezone(UTC)
    if moment < anchor:
        raise Invalid.field("moment", f"{rfc3339(moment)} lies before the anchor, {rfc3339(anchor)}")
    months = (moment.year - anchor.year) * 12 + moment.month - anchor.month
    index = months // _MONTHS[interval]
    return period(anchor, interval, index if moment >= _instant(anchor, interval, index) else index - 1)


def _instant(anchor: datetime, interval: Interval, index: int) -> datetime:
    anchor = _to_the_second(anchor)
    years, month = divmod(anchor.month - 1 + index * _MONTHS[interval], 12)
    year, month = anchor.year + years, month + 1
    if year > 9999:
        raise Invalid.field("index", f"period {index} lies past the year 9999")
    return anchor.replace(year=year, month=month, day=min(anchor.day, monthrange(year, month)[1]))


def _to_the_second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _seconds(start: datetime, end: datetime) -> int:
    between = end - start
    return between.days * 86_400 + between.seconds
