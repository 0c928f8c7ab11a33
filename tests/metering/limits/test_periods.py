"""Months that begin on an anniversary."""

from calendar import monthrange
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.core.errors import Invalid
from ximler.metering.limits import periods

FIRST, LAST = datetime(2, 1, 1), datetime(9998, 12, 31)  # noqa: DTZ001 (the strategy adds the zone)
moments = st.datetimes(FIRST, LAST, timezones=st.just(UTC))
days = st.integers(1, 31)


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("anchor", "moment", "start", "end"),
    [
        (1, "2026-05-31T23:59:59.999", "2026-05-01", "2026-06-01"),
        (1, "2026-06-01T00:00:00.000", "2026-06-01", "2026-07-01"),
        (31, "2026-01-30T12:00", "2025-12-31", "2026-01-31"),
        (31, "2026-01-31T00:00", "2026-01-31", "2026-02-28"),
        (31, "2026-02-28T00:00", "2026-02-28", "2026-03-31"),
        (31, "2028-02-28T12:00", "2028-01-31", "2028-02-29"),
        (31, "2026-04-30T12:00", "2026-04-30", "2026-05-31"),
        (29, "2026-02-28T12:00", "2026-02-28", "2026-03-29"),
        (15, "2026-12-20T12:00", "2026-12-15", "2027-01-15"),
        (15, "2027-01-14T12:00", "2026-12-15", "2027-01-15"),
    ],
)
def test_a_period_begins_on_the_anniversary_or_the_months_last_day(
    anchor: int, moment: str, start: str, end: str
) -> None:
    assert periods.around(anchor, day(moment)) == (day(start), day(end))


@given(days, moments)
def test_every_moment_lies_in_exactly_one_period(anchor: int, moment: datetime) -> None:
    start, end = periods.around(anchor, moment)
    assert start <= moment < end
    assert periods.around(anchor, start) == (start, end)
    assert periods.around(anchor, end - timedelta(milliseconds=1)) == (start, end)
    assert periods.around(anchor, end)[0] == end


@pytest.mark.slow
@given(days, moments)
def test_a_period_begins_at_midnight_on_the_anchor_where_the_month_has_that_day(anchor: int, moment: datetime) -> None:
    start, end = periods.around(anchor, moment)
    for bound in (start, end):
        assert bound.time() == datetime.min.time()
        assert bound.day == min(anchor, monthrange(bound.year, bound.month)[1])
    assert 28 <= (end - start).days <= 31


def test_the_anchor_is_the_day_in_utc() -> None:
    east = timezone(timedelta(hours=9))
    assert periods.anchor_day(datetime(2026, 3, 1, 5, tzinfo=east)) == 28
    assert periods.anchor_day(None) == 1


def test_a_moment_without_neighbouring_months_is_refused() -> None:
    with pytest.raises(Invalid, match="year 9999"):
        periods.around(1, datetime(9999, 12, 31, tzinfo=UTC))
