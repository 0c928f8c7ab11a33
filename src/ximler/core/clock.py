"""Time by the database server's clock: aware UTC, whole milliseconds (the precision of BSON).

Several processes on several machines must agree on which period a moment belongs to, so timestamps follow one
clock, the primary's. A `Clock` keeps the offset between it and ours; the connection corrects it with every
heartbeat.
"""

import time
from collections import deque
from datetime import UTC, datetime, timedelta

__all__ = ["EPOCH", "LAST", "Clock", "from_ms", "rfc3339", "shifted", "to_ms", "utc_now"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime.max.replace(microsecond=999_000, tzinfo=UTC)  # the last instant that MongoDB and Python both have
_FIRST = datetime.min.replace(tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_HEARTBEATS = 6  # about a minute of them
_SET_MS = 1_000
_TOGETHER_MS = 1_000
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux: continues while the machine is suspended


def from_ms(milliseconds: int) -> datetime:
    """The aware UTC datetime of milliseconds since 1970, exact (without floats)."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, rounded down, of an aware datetime."""
    return (moment - EPOCH) // _MS


def rfc3339(moment: datetime) -> str:
    """As every answer and message writes it: `2026-01-31T12:00:00Z`."""
    return moment.isoformat().replace("+00:00", "Z")


def shifted(moment: datetime, duration: timedelta) -> datetime:
    """`moment + duration`, at most `LAST` and at least the year 1, where Python's addition raises
    OverflowError. For instants from users and from documents that other applications wrote.
    """
    try:
        return min(moment + duration, LAST)
    except OverflowError:
        return LAST if duration > timedelta() else _FIRST


def utc_now() -> datetime:
    """This process's own clock. Prefer `Database.clock.now()` for anything that is stored."""
    return from_ms(time.time_ns() // 1_000_000)


class Clock:
    """The server's clock: this process's own, plus the observed difference. A test may set `offset_ms` to
    travel on top.

    `shift_ns` is the whole difference from `time.time_ns()`, for callers that cannot afford a function call.
    """

    __slots__ = ("_latest", "_observed_ms", "_offset_ms", "_own_ms", "_running_ms", "_server_ms", "shift_ns")

    def __init__(self) -> None:
        self._latest: deque[int] = deque(maxlen=_HEARTBEATS)
        self._observed_ms = 0
        self._offset_ms = 0
        self._server_ms = 0
        self._own_ms = time.time_ns() // 1_000_000
        self._running_ms = _running_ms()
        self.shift_ns = 0

    @property
    def offset_ms(self) -> int:
        return self._offset_ms

    @offset_ms.setter
    def offset_ms(self, milliseconds: int) -> None:
        self._offset_ms = milliseconds
        self._shift()

    def now(self) -> datetime:
        return from_ms(self.now_ms())

    def now_ms(self) -> int:
        """Milliseconds since 1970: the same moment as `now()`, about 5 × faster."""
        return (time.time_ns() + self.shift_ns) // 1_000_000

    def observe(self, server_time: datetime) -> None:
        """Learn from the time in one of the server's replies, in the order in which it sent them.

        A delay (network, busy event loop, stopped process) makes the server look slow, never fast. The
        largest of the latest differences is therefore the most accurate one, and late replies change nothing.
        Replies that arrive together were buffered together and count as one, so that they do not displace the
        others.

        A changed clock is detected despite delays: either the server's time went back between two replies, or
        this process's wall clock and monotonic clock moved by different amounts. Earlier differences are then
        discarded.
        """
        server, own, running = to_ms(server_time), time.time_ns() // 1_000_000, _running_ms()
        difference, waited = server - own, running - self._running_ms
        own_was_set = abs(own - self._own_ms - waited) > _SET_MS
        if own_was_set or server < self._server_ms - _SET_MS:
            self._latest.clear()
        elif self._latest and waited < _TOGETHER_MS:
            difference = max(difference, self._latest.pop())
        self._latest.append(difference)
        self._server_ms, self._own_ms, self._running_ms = server, own, running
        self._observed_ms = max(self._latest)
        self._shift()

    def _shift(self) -> None:
        self.shift_ns = (self._observed_ms + self._offset_ms) * 1_000_000


def _running_ms() -> int:
    return (time.monotonic_ns() if _BOOTTIME is None else time.clock_gettime_ns(_BOOTTIME)) // 1_000_000
