"""Time as the database server sees it: aware UTC, whole milliseconds (what BSON keeps).

Several processes on several machines must agree on which period a moment belongs to, so timestamps follow one clock,
the primary's. A `Clock` keeps the offset between it and ours; the connection corrects it with every heartbeat.
"""

import time
from collections import deque
from datetime import UTC, datetime, timedelta

__all__ = ["EPOCH", "Clock", "from_ms", "to_ms", "utc_now"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_SET_MS = 10_000


def from_ms(milliseconds: int) -> datetime:
    """The aware UTC datetime of a count of milliseconds since 1970, exactly (no float in between)."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, rounded down, of an aware datetime."""
    return (moment - EPOCH) // _MS


def utc_now() -> datetime:
    """This process's own clock. Prefer `Database.clock.now()` for anything that is stored."""
    return from_ms(time.time_ns() // 1_000_000)


class Clock:
    """The server's clock: ours plus what it was observed to differ. A test may set `offset_ms` to travel on top of that.

    `shift_ns` is all that it differs from `time.time_ns()` by, for where a call of a function is too much.
    """

    __slots__ = ("_latest", "_observed_ms", "_offset_ms", "shift_ns")

    def __init__(self) -> None:
        self._latest: deque[int] = deque(maxlen=6)  # a minute of heartbeats
        self._observed_ms = 0
        self._offset_ms = 0
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
        """Milliseconds since 1970: the same moment as `now()`, at a fifth of the price."""
        return (time.time_ns() + self.shift_ns) // 1_000_000

    def observe(self, server_time: datetime) -> None:
        """Learn from the time in an answer of the server's.

        Whatever delays an answer (the network, a busy event loop) makes the server seem slow, never fast; so of the latest
        few the largest difference is the truest, and one late answer does not set the clock back. A difference of more than
        ten seconds is no delay: somebody has set one of the clocks.
        """
        observed = to_ms(server_time) - time.time_ns() // 1_000_000
        if abs(observed - self._observed_ms) > _SET_MS:
            self._latest.clear()
        self._latest.append(observed)
        self._observed_ms = max(self._latest)
        self._shift()

    def _shift(self) -> None:
        self.shift_ns = (self._observed_ms + self._offset_ms) * 1_000_000
