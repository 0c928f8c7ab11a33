"""Time: whole milliseconds, aware, UTC, by the server's clock."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.core.clock import EPOCH, Clock, from_ms, to_ms, utc_now

FIRST, LAST = to_ms(datetime.min.replace(tzinfo=UTC)), to_ms(datetime.max.replace(tzinfo=UTC))


@settings(deadline=None, max_examples=200)
@given(st.integers(FIRST, LAST))
def test_every_millisecond_of_the_calendar_comes_back_exactly(milliseconds: int) -> None:
    moment = from_ms(milliseconds)
    assert to_ms(moment) == milliseconds
    assert moment.microsecond % 1000 == 0
    assert moment.tzinfo is UTC


@settings(deadline=None, max_examples=50)
@given(st.datetimes(timezones=st.timezones()))
def test_a_time_is_rounded_down_whatever_its_zone(moment: datetime) -> None:
    apart = moment - from_ms(to_ms(moment))
    assert timedelta(0) <= apart < timedelta(milliseconds=1)


def test_the_epoch_is_zero_and_before_it_is_negative() -> None:
    assert to_ms(EPOCH) == 0
    assert to_ms(EPOCH - timedelta(microseconds=1)) == -1
    assert to_ms(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0


@pytest.mark.parametrize("outside", [FIRST - 1, LAST + 1, 2**63 - 1, -(2**63)])
def test_a_time_outside_the_calendar_is_an_overflow(outside: int) -> None:
    with pytest.raises(OverflowError):
        from_ms(outside)


def test_a_naive_time_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        to_ms(datetime(2026, 1, 1))  # noqa: DTZ001 (that is the point)


def test_now_is_now_in_whole_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    for now in (utc_now(), Clock().now()):
        assert before <= to_ms(now) <= time.time_ns() // 1_000_000
        assert now.microsecond % 1000 == 0


@pytest.mark.parametrize("hours", [-30, 0, 5])
def test_a_clock_goes_by_what_the_server_said_last(hours: int) -> None:
    clock = Clock()
    clock.observe(utc_now() + timedelta(days=99))
    clock.observe(utc_now() + timedelta(hours=hours))
    assert abs(clock.now() - (utc_now() + timedelta(hours=hours))) < timedelta(seconds=1)


def test_a_test_that_travels_is_not_called_back_by_the_next_heartbeat() -> None:
    clock = Clock()
    clock.offset_ms = 86_400_000
    clock.observe(utc_now())
    assert abs(clock.now() - utc_now() - timedelta(days=1)) < timedelta(seconds=1)
    clock.offset_ms = 0
    assert abs(clock.now() - utc_now()) < timedelta(seconds=1)
