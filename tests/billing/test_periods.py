from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.billing.periods import Period, around, period
from ximler.core.errors import Invalid
from ximler.schema.plan import Interval


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def starts(anchor: str, interval: Interval, count: int) -> list[str]:
    return [f"{period(day(anchor), interval, index).start:%Y-%m-%d}" for index in range(count)]


def test_monthly_from_the_31st_falls_on_the_last_day_of_shorter_months_and_returns_to_the_31st() -> None:
    assert starts("2025-01-31", "MONTH", 5) == ["2025-01-31", "2025-02-28", "2025-03-31", "2025-04-30", "2025-05-31"]


def test_yearly_from_a_leap_day_returns_to_it_every_four_years() -> None:
    assert starts("2024-02-29", "YEAR", 5) == ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]


def test_the_period_that_begins_on_a_leap_day_ends_on_the_anchors_day() -> None:
    found = around(day("2024-01-30"), "MONTH", day("2024-02-29"))
    assert (found.index, found.start, found.end) == (1, day("2024-02-29"), day("2024-03-30"))


def test_a_period_begins_with_its_first_second_and_ends_before_the_next_ones() -> None:
    anchor = day("2026-03-10T12:30:15")
    before = around(anchor, "MONTH", day("2026-04-10T12:30:14.999"))
    after = around(anchor, "MONTH", day("2026-04-10T12:30:15"))
    assert (before.index, after.index) == (0, 1)
    assert before.end == after.start


def test_anchors_count_to_the_second_and_in_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    anchor = datetime(2026, 1, 1, 0, 30, 0, 999_000, tzinfo=berlin)
    assert period(anchor, "MONTH", 0).start == day("2025-12-31T23:30:00")


def test_what_remains_is_whole_seconds_between_nothing_and_the_whole() -> None:
    march = period(day("2026-03-01"), "MONTH", 0)
    assert march.seconds == 31 * 86_400
    assert march.remaining_s(day("2026-03-11")) == 21 * 86_400
    assert march.remaining_s(day("2026-02-01")) == march.seconds
    assert march.remaining_s(day("2026-05-01")) == 0


def test_no_period_lies_before_the_anchor_or_past_the_calendar() -> None:
    with pytest.raises(Invalid):
        period(day("2026-03-01"), "MONTH", -1)
    with pytest.raises(Invalid):
        around(day("2026-03-01"), "YEAR", day("2026-02-28"))
    with pytest.raises(Invalid, match="9999"):
        period(day("2026-03-01"), "YEAR", 8000)


moments = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
intervals = st.sampled_from(["MONTH", "YEAR"])


@pytest.mark.slow
@given(anchor=moments, interval=intervals, index=st.integers(0, 900))
def test_periods_follow_each_other_without_a_gap(anchor: datetime, interval: Interval, index: int) -> None:
    one, next_one = period(anchor, interval, index), period(anchor, interval, index + 1)
    assert one.end == next_one.start
    assert one.start < one.end


@given(anchor=moments, interval=intervals, after=st.timedeltas(timedelta(0), timedelta(days=40_000)))
def test_every_moment_after_the_anchor_lies_in_the_period_around_it(
    anchor: datetime, interval: Interval, after: timedelta
) -> None:
    found: Period = around(anchor, interval, anchor + after)
    assert found.start <= anchor + after < found.end
    assert found == period(anchor, interval, found.index)
