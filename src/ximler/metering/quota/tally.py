"""A tally: this process's lease of one quota, and the units it handed out and has not yet reported. No I/O.

Invariant: `left = n − unreported`, with `n` the lease's open units in the database. `see` restores it from
the document, also after a step whose result was lost.
"""

import asyncio
import time
from itertools import count

from bson import ObjectId

from ximler.core.clock import from_ms, to_ms
from ximler.metering.quota.leases import Report, hour_key, hour_of
from ximler.schema.quota import Quota

__all__ = ["Tally"]

_HOUR_MS = 3_600_000
_MAX_NAMES = 32  # keys, and routes, that are counted separately in an hour
OTHER = "other"
_numbers = count()  # of leases: an id is used once


class Tally:
    """One process's part of one quota."""

    __slots__ = (
        "_apart", "_detail", "_earlier", "_earlier_detail", "_handed_out", "_key", "_names", "_rate",
        "_route", "alerted", "free", "granting", "grants", "hour", "hour_end_ns", "hours_due",
        "hours_written", "last_use", "lease_id", "left", "limit", "lock", "n", "open", "over", "pending",
        "period_end", "period_end_ms", "plan_id", "process", "quota_id", "returning", "seen_at", "sent", "seq", "steps", "used",
        "user_id", "waiting", "wanted",
    )  # fmt: skip

    def __init__(self, quota: Quota, process: str, now_ms: int) -> None:
        self.quota_id = quota.id
        self.user_id: ObjectId = quota.user_id
        self.process = process
        self.lease_id = f"{process}-{next(_numbers)}"
        self.n = self.seq = self.grants = self.steps = 0  # of the lease and its quota, as last seen
        self.left = 0  # units that can be handed out without a command
        self.pending = 0  # units handed out in this hour, and in no report yet
        self.sent: Report | None = None  # a report that the document does not show yet
        self.hours_due: set[str] = set()  # hours whose ledger rows are behind
        self.hours_written: set[str] = set()
        self.lock = asyncio.Lock()  # around every step, so that no result is older than the tally
        self.granting: asyncio.Task[None] | None = None
        self.returning = False
        self.over = False  # the period has ended: the lease is only to be returned
        self.wanted = False  # requested since the latest sweep
        self.alerted = 0  # the highest threshold whose notification was enqueued
        self.waiting = 0  # units that callers are waiting for
        self.last_use = time.monotonic()
        self._earlier: dict[str, int] = {}
        self._detail: dict[tuple[ObjectId | None, str | None], int] = {}
        self._earlier_detail: dict[str, int] = {}
        self._key: ObjectId | None = None
        self._route: str | None = None
        self._apart = 0  # of `pending`, the units of that key and route
        self._names: dict[str, set[str]] = {}
        self._handed_out = 0
        self._rate = 0.0
        self.period_end_ms = to_ms(quota.period_end)
        self.hour = hour_of(now_ms)
        self._set_hour(now_ms)
        self.see(quota, now_ms)

    def take(self, units: int, key: ObjectId | None, route: str | None) -> None:
        """Hand out units. The caller has checked `left`."""
        self.left -= units
        self.pending += units
        if key is not self._key or route is not self._route:  # mostly, it is one program that does one thing
            self._count_apart()
            self._key, self._route = key, route
        self._apart += units

    @property
    def unreported(self) -> int:
        sent = self.sent.units if self.sent is not None else 0
        return self.pending + sum(self._earlier.values()) + sent

    @property
    def scarce(self) -> bool:
        """Whether other processes may need the units of this lease."""
        return self.free is not None and self.free < 8 * self.n

    @property
    def pace(self) -> int:
        """The units that this process hands out in half a second."""
        return int(self._rate / 2)

    def turn_hour(self, now_ms: int) -> None:
        """Start another hour of the same period."""
        self._close_hour()
        self._names.clear()
        self.hour = hour_of(now_ms)
        self._set_hour(now_ms)

    def report(self) -> Report | None:
        """The next report: the one that may have been lost, else the units handed out since."""
        if self.sent is not None or not (self.pending or self._earlier) or not self.grants:
            return self.sent
        self._close_hour()
        forget = [hour for hour in self.hours_written if int(hour[1:]) < self.hour - 1]
        self.hours_written.difference_update(forget)
        self.sent = Report(
            quota_id=self.quota_id,
            lease_id=self.lease_id,
            seq=self.seq,
            units=sum(self._earlier.values()),
            hours=self._earlier,
            detail=self._earlier_detail,
            forget=forget,
        )
        self._handed_out += self.sent.units
        self._earlier, self._earlier_detail = {}, {}
        return self.sent

    def see(self, quota: Quota, now_ms: int) -> int:
        """Update the tally from the quota's document; returns the unreported units of a lease that no longer
        exists.

        A document older than the tally is ignored: in it, the lease seems to hold units that were handed out
        since.
        """
        if quota.steps < self.steps:
            return 0
        self.steps = quota.steps
        lost = 0
        leases = quota.open_leases
        lease = leases.get(self.lease_id)
        if lease is None:
            if self.grants:
                lost = self.end()
        else:
            if self.sent is not None and lease.seq > self.sent.seq:
                self.hours_due |= self.sent.hours.keys()
                self.sent = None
            if lease.grants > self.grants:
                self.returning = False  # a return that is still in transit has no effect now
            self.n, self.seq, self.grants = lease.n, lease.seq, lease.grants
            self.left = 0 if self.returning or self.over else self.n - self.unreported
        now = from_ms(now_ms)
        self.limit = quota.limit_at(now)
        self.free = quota.free_at(now)
        self.used, self.open = quota.used, sum(each.n for each in leases.values())
        self.plan_id = quota.plan_id
        self.period_end = quota.period_end
        self.period_end_ms = to_ms(quota.period_end)
        self.over = self.over or quota.superseded or now_ms >= self.period_end_ms
        if self.grants and (self.over or (self.free is not None and self.free < 0)):
            self.give_up()
        self.seen_at = time.monotonic()
        return lost

    def end(self) -> int:
        """Forget the lease, which no longer exists; returns its unreported units, which are forfeited.

        This process was taken for dead. The next grant begins another lease.
        """
        lost = self.unreported
        self.pending, self.sent = 0, None
        self._earlier, self._earlier_detail = {}, {}
        self._detail.clear()
        self._apart = 0
        self.lease_id = f"{self.process}-{next(_numbers)}"
        self.n = self.seq = self.grants = self.left = 0
        self.returning = False
        return lost

    def give_up(self) -> None:
        """Hand out nothing more of this lease; it is returned when its use is reported.

        Only another grant ends this: it moves the count that guards the return, which may be in transit.
        """
        self.left = 0
        self.returning = True

    def measure(self, seconds: float) -> None:
        """Measure the pace, by the units reported in that many seconds."""
        rate = self._handed_out / max(seconds, 0.01)
        self._rate = rate if rate > self._rate else (self._rate + rate) / 2
        self._handed_out = 0

    def _set_hour(self, now_ms: int) -> None:
        self.hour_end_ns = min((hour_of(now_ms) + 1) * _HOUR_MS, self.period_end_ms) * 1_000_000

    def _count_apart(self) -> None:
        which = (self._key, self._route)
        self._detail[which] = self._detail.get(which, 0) + self._apart
        self._apart = 0

    def _close_hour(self) -> None:
        hour = hour_key(self.hour)
        self._count_apart()
        if self.pending:
            self._earlier[hour] = self._earlier.get(hour, 0) + self.pending
            self.pending = 0
        for (key, route), units in self._detail.items():
            if key is not None and units:
                self._count_name(f"{hour}.keys", str(key), units)
            if route is not None and units:
                self._count_name(f"{hour}.routes", _storable(route), units)
        self._detail.clear()

    def _count_name(self, kind: str, name: str, units: int) -> None:
        """Count units under a name; an hour has 32 names of each kind, and the rest are counted together."""
        names = self._names.setdefault(kind, set())
        if name not in names:
            if len(names) >= _MAX_NAMES:
                name = OTHER
            else:
                names.add(name)
        path = f"{kind}.{name}"
        self._earlier_detail[path] = self._earlier_detail.get(path, 0) + units


def _storable(route: str) -> str:
    """The route as a field name: without dots and dollars."""
    name = route[:100].replace("%", "%25").replace(".", "%2E").replace("$", "%24").replace("\0", "%00")
    return name or "-"
