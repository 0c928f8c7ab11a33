"""Time as the database server sees it: aware UTC, whole milliseconds (what BSON keeps).

Several processes on several machines must agree on which period a moment belongs to, so timestamps follow one clock,
the primary's. A `Clock` keeps the offset between it and ours; the connection corrects it with every heartbeat.
"""

import time
from datetime import UTC, datetime, timedelta

__all__ = ["EPOCH", "Clock", "from_ms", "to_ms", "utc_now"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


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
    """The server's clock: ours plus what it was observed to differ. A test may set `offset_ms` to travel on top of that."""

    __slots__ = ("_observed_ms", "offset_ms")

    def __init__(self) -> None:
        self._observed_ms = 0
        self.offset_ms = 0

    def now(self) -> datetime:
        return from_ms(time.time_ns() // 1_000_000 + self._observed_ms + self.offset_ms)

    def observe(self, server_time: datetime) -> None:
        """Take the difference from a server's answer that has just arrived (right to within one network delay)."""
        self._observed_ms = to_ms(server_time) - time.time_ns() // 1_000_000
