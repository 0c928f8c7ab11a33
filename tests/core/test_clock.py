"""Time: whole milliseconds, aware, UTC, by the server's clock."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.core.clock import EPOCH, Clock, from_ms, shifted, to_ms, utc_now

FIRST, LAST = to_ms(datetime.min.replace(tzinfo=UTC)), to_ms(datetime.max.replace(tzinfo=UTC))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.integers(FIRST, LAST))
def test_every_millisecond_of_the_calendar_comes_back_exactly(milliseconds: int) -> None:
    moment = from_ms(milliseconds)
    assert to_ms(moment) == milliseconds
    assert moment.microsecond % 1000 == 0
    assert moment.tzinfo is UTC


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.datetimes(timezones=st.timezones()))
def test_a_time_is_rounded_down_in_every_time_zone(moment: datetime) -> None:
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


class Moments:
    """This process's own clock and its monotonic one, moved by hand;
    and a server whose heartbeats come every 10 seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own = self.running = self.server = 1_800_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda: self.own * 1_000_000)
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _: self.running * 1_000_000)
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.running * 1_000_000)
        self.clock = Clock()

    def pass_s(self, seconds: float) -> None:
        for name in ("own", "running", "server"):
            setattr(self, name, getattr(self, name) + round(seconds * 1000))

    def heartbeat(self, *, sent_s_ago: float = 0) -> None:
        self.clock.observe(from_ms(self.server - round(sent_s_ago * 1000)))

    @property
    def wrong_by_s(self) -> float:
        return (self.clock.now_ms() - self.server) / 1000


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    made = Moments(monkeypatch)
    for _ in range(3):
        made.pass_s(10)
        made.heartbeat()
    return made


@pytest.mark.parametrize("late_s", [0.5, 11, 25, 300])
def test_a_late_heartbeat_does_not_set_the_clock(moments: Moments, late_s: float) -> None:
    moments.pass_s(late_s)
    moments.heartbeat(sent_s_ago=late_s)
    assert moments.wrong_by_s == 0


def test_nor_does_a_row_of_heartbeats_that_waited_while_the_process_was_stopped(moments: Moments) -> None:
    moments.pass_s(200)
    for sent_s_ago in range(195, 0, -10):
        moments.heartbeat(sent_s_ago=sent_s_ago)
        assert moments.wrong_by_s == 0


@pytest.mark.parametrize("by_s", [-3600, -25, 2, 25, 3600])
def test_a_server_whose_clock_was_set_is_followed_at_its_next_heartbeat(moments: Moments, by_s: int) -> None:
    moments.server += by_s * 1000
    moments.pass_s(10)
    moments.heartbeat()
    assert moments.wrong_by_s == 0


def test_a_server_that_was_set_back_by_less_than_a_heartbeat_is_followed_within_a_minute(moments: Moments) -> None:
    moments.server -= 5000
    for _ in range(6):
        moments.pass_s(10)
        moments.heartbeat()
    assert moments.wrong_by_s == 0


@pytest.mark.parametrize("by_s", [-3600, -25, -2, 2, 25, 3600])
def test_a_process_whose_own_clock_was_set_still_goes_by_the_server(moments: Moments, by_s: int) -> None:
    moments.own += by_s * 1000
    moments.pass_s(10)
    moments.heartbeat()
    assert moments.wrong_by_s == 0


@pytest.mark.parametrize("hours", [-30, 0, 5])
def test_a_clock_follows_the_latest_time_of_the_server(hours: int) -> None:
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


@given(st.datetimes(timezones=st.just(UTC)), st.timedeltas())
def test_instants_stop_at_the_ends_of_the_calendar(moment: datetime, duration: timedelta) -> None:
    reached = shifted(moment, duration)
    assert from_ms(FIRST) <= reached <= from_ms(LAST)
    if from_ms(FIRST + 1) < reached < from_ms(LAST):
        assert reached == moment + duration
