"""The meter: decides in memory, for one process, whether a user may use something, and accounts for every
unit of it.

It hands out units of leases (see `leases`) and takes another grant when one runs out. Twice a second it
sweeps: it reports used units, reads the quotas and writes the ledger's rows, in three commands per 100 users,
and yields to requests between them. Reading the quotas shows changed limits, returned units and ended
periods.

Invariants, whatever is lost, late, or killed: a unit is handed out only if it was granted; a unit that was
handed out is settled once, or forfeited with its lease.

Not here: burst limits (`bursts`), projects and bytes (`gauges`), leases of dead processes (`reaping`).
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from time import time_ns
from typing import Any

import msgspec
import structlog
from bson import ObjectId
from prometheus_client import Counter

from ximler.core.actor import Actor
from ximler.core.clock import from_ms, rfc3339
from ximler.core.errors import Conflict, Invalid, Unavailable, XimlerError
from ximler.core.stopping import end, pause
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.metering.ledger import rows
from ximler.metering.limits.entitlements import copy_limit, open_quota
from ximler.metering.quota import heartbeats, leases
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.metering.quota.heartbeats import Heartbeat
from ximler.metering.quota.leases import Return
from ximler.metering.quota.tally import Tally
from ximler.metering.reports import alerts
from ximler.schema.plan import PLANS
from ximler.schema.quota import Quota

__all__ = ["Allowance", "Meter"]

_log = structlog.get_logger("ximler.metering")

LOST = Counter(
    "ximler_metering_lost_units_total", "Units handed out whose lease was forfeited before they were reported."
)

LOOK_S = 0.5
_SLICE = 100  # tallies that are swept together, without a pause for requests: 10 ms
_TRUSTED_S = 1.0  # a quota without free units is believed to have none for this long
_IDLE_S = 10.0  # an unused lease is returned after this time,
_SCARCE_IDLE_S = 1.0  # or after this one, when other processes may need its units
_FORGET_S = 60.0  # a user without a lease
_ANSWER_S = 1.0  # a database that answers nothing for this long is waited for only with units to report
_MAX_UNITS = 1_000_000


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """The limit and the remaining units after a use; None is unlimited. Other processes may use units at the
    same time.
    """

    limit: int | None
    remaining: int | None
    resets_ms: int  # since 1970

    @property
    def resets_at(self) -> datetime:
        return from_ms(self.resets_ms)


class Meter:
    """One per process: `run` it beside requests, and `close` it, which returns the unused units.

    A lease is valid while the process renews its heartbeat (once per 10 s for all leases together), and at
    least for 30 s more. Then it may be forfeited, unless it has been used since.

    With `feed`, a plan's new limit holds here at once: it is copied to the quotas of this process, however
    many others follow the plan. Without, it holds when the follower has copied it and the next sweep has read
    it.
    """

    def __init__(
        self,
        database: Database,
        *,
        valid_for: timedelta = heartbeats.VALID_FOR,
        thresholds: Sequence[int] = alerts.THRESHOLDS,
        feed: Feed | None = None,
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._heartbeat = Heartbeat(database, valid_for=valid_for)
        self._thresholds = thresholds
        self._tallies: dict[ObjectId, Tally] = {}
        self._leaving: list[Tally] = []  # of ended periods
        self._opening: dict[ObjectId, asyncio.Task[Tally]] = {}
        self._sweeping = asyncio.Lock()
        self._swept_at = time.monotonic()
        self._unreachable = False
        self._closed = False
        self._answers = 0  # slices of sweeps that the database has answered
        self._plans = 0  # changes that the feed delivered,
        self._plans_copied = 0  # and how many of them are copied to the quotas of the tallies
        self._look = asyncio.Event()
        if feed is not None:
            feed.subscribe([PLANS.name], self._plan_changed)
            feed.on_gap(self._plan_changed)

    async def consume(
        self, actor: Actor, resource: str = "apiCalls", units: int = 1, *, route: str | None = None
    ) -> Allowance:
        """Use units on the actor's account, or raise QuotaExceeded, in which case nothing is used.

        Usually without a round trip, otherwise one. `route` is recorded in the ledger's metadata. Raises
        Invalid, Unauthenticated, NotFound, and Unavailable where units must be granted by a database that
        does not answer.
        """
        allowance = self.take(actor, units, route=route) if resource == "apiCalls" else None
        if allowance is None:
            tally = await self._obtain(actor, resource, units)
            tally.take(units, actor.api_key_id, route)  # no other task has run since `left` was read
            allowance = _allowance(tally)
        return allowance

    def take(self, actor: Actor, units: int = 1, *, route: str | None = None) -> Allowance | None:
        """Use API calls of the lease in memory; None where it has too few, and nothing is used. `consume`
        gets more.
        """
        tally = self._tallies.get(actor.user_id)  # type: ignore[arg-type]  # None is not a key
        if (
            tally is None
            or units.__class__ is not int
            or not 0 < units <= tally.left
            or time_ns() + self._clock.shift_ns >= tally.hour_end_ns
        ):
            return None
        tally.take(units, actor.api_key_id, route)
        free = tally.free  # as `_allowance`; a call less is worth a tenth
        if free is None:
            return Allowance(None, None, tally.period_end_ms)
        return Allowance(tally.limit, tally.left + free if free > 0 else tally.left, tally.period_end_ms)

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep twice a second, and at once when a plan has changed, until `stop` is set."""
        while not await pause(stop, LOOK_S, self._look):
            self._look.clear()
            try:
                await self._copy_limits()
                await self.sweep()
            except Unavailable as error:
                if not self._unreachable:
                    _log.warning("usage waits to be reported", reason=error.message)
                self._unreachable = True
            else:
                self._unreachable = False

    async def close(self, *, timeout_s: float = 5) -> None:
        """Hand out nothing more, report used units and return the rest.

        If the database does not answer, unused leases are given up after a second, and unreported units after
        `timeout_s`. They are forfeited when the lease expires.
        """
        self._closed = True
        closing = asyncio.create_task(self._return_all())
        began = time.monotonic()
        try:
            while not closing.done() and (left_s := began + timeout_s - time.monotonic()) > 0:
                answers = self._answers
                await asyncio.wait([closing], timeout=min(left_s, _ANSWER_S))
                if answers == self._answers and not any(tally.unreported for tally in self._all()):
                    break
        finally:
            await end([closing])
        if not closing.cancelled():
            closing.result()

    async def _return_all(self) -> None:
        while busy := [tally for tally in self._all() if _is_open(tally)]:
            for tally in busy:
                tally.give_up()
            try:
                await self.sweep()
            except Unavailable:
                await asyncio.sleep(LOOK_S)

    # Handing out

    async def _obtain(self, actor: Actor, resource: str, units: int) -> Tally:
        """The user's tally, with that many units left in it at this moment."""
        user_id = actor.require_user()
        _check(resource, units)
        while True:
            if self._closed:
                raise Unavailable("This process is ending: try again in a moment")
            tally = await self._current(user_id)
            if units <= tally.left:
                return tally
            tally.wanted = True
            need = units - tally.left
            seen_before = time.monotonic() - tally.seen_at
            if tally.free is not None and tally.free < need and seen_before < _TRUSTED_S:
                raise self._exceeded(tally)
            tally.waiting += units
            try:
                await self._more(tally, units)
            finally:
                tally.waiting -= units

    async def _current(self, user_id: ObjectId) -> Tally:
        tally = self._tallies.get(user_id)
        if tally is not None:
            now_ms = self._clock.now_ms()
            if not tally.over and now_ms * 1_000_000 < tally.hour_end_ns:
                return tally
            if not tally.over and now_ms < tally.period_end_ms:
                tally.turn_hour(now_ms)
                return tally
            self._leave(tally)
        opening = self._opening.get(user_id)
        if opening is None:
            opening = self._opening[user_id] = asyncio.create_task(self._open(user_id))
            opening.add_done_callback(_silence)
        return await asyncio.shield(opening)

    async def _open(self, user_id: ObjectId) -> Tally:
        try:
            seen = None
            while seen != self._plans:  # a plan may have changed after the quota was read
                seen = self._plans
                quota = await self._read_or_open(user_id)
        finally:
            del self._opening[user_id]
        tally = self._tallies[user_id] = Tally(quota, self._heartbeat.process, self._clock.now_ms())
        return tally

    async def _read_or_open(self, user_id: ObjectId) -> Quota:
        found = await leases.current(self._database, user_id)
        if found is not None and found[1]:
            return found[0]
        try:
            return await open_quota(self._database, user_id, self._database.clock.now())
        except Conflict:  # the plan cannot be read: the earlier limit holds
            if found is None:
                raise
            return found[0]

    def _leave(self, tally: Tally) -> None:
        tally.over = True
        tally.give_up()
        if self._tallies.get(tally.user_id) is tally:
            del self._tallies[tally.user_id]
            self._leaving.append(tally)

    async def _more(self, tally: Tally, units: int) -> None:
        """Take another grant. Concurrent callers share it, and the cancellation of one does not cancel it."""
        if tally.granting is None or tally.granting.done():
            tally.granting = asyncio.create_task(self._grant(tally, units))
            tally.granting.add_done_callback(_silence)
        await asyncio.shield(tally.granting)

    async def _grant(self, tally: Tally, units: int) -> None:
        await asyncio.sleep(0)  # callers of the same moment count as waiting
        async with tally.lock:
            await self._heartbeat.renew()
            need = units - tally.left
            if tally.over or need <= 0:
                return
            quota = await leases.grant(
                self._database,
                tally.quota_id,
                tally.lease_id,
                grants=tally.grants,
                need=need,
                want=tally.waiting - tally.left,
                pace=tally.pace,
            )
            if quota is None:
                quota = await leases.read(self._database, tally.quota_id)
            self._see(tally, quota)

    def _see(self, tally: Tally, quota: Quota | None) -> None:
        if quota is None or not quota.opened:
            lost = tally.end()
            tally.hours_due.clear()
            tally.over = True  # the quota was removed: another is opened
        else:
            lost = tally.see(quota, self._clock.now_ms())
        if lost:
            LOST.inc(lost)
            _log.warning("usage lost with its lease", quota=tally.quota_id, units=lost)

    def _exceeded(self, tally: Tally) -> QuotaExceeded:
        seconds = max(0.0, (tally.period_end_ms - self._clock.now_ms()) / 1000)
        open_still = tally.open > tally.unreported  # other leases may be returned
        resets_at = rfc3339(tally.period_end)
        error = QuotaExceeded(
            f"The limit of {tally.limit:,} API calls a month is reached: it resets at {resets_at}; "
            "a larger plan has more",
            fields={
                "apiCalls": f"limit {tally.limit} reached",
                "used": tally.used + tally.unreported,
                "resetsAt": resets_at,
            },
            retry_after_s=min(1.0, seconds) if open_still else seconds,
        )
        error.month = tally.limit
        return error

    # Accounting

    async def sweep(self) -> None:
        """Report used units, return idle leases and those of ended periods, and read the quotas.

        At most three commands per 100 users with a lease, one after the other, and one per 10 s for the
        heartbeat. Raises Unavailable; the next sweep sends the same again, and nothing is lost or counted
        twice.
        """
        async with self._sweeping:
            busy, now = [], time.monotonic()
            since_s, self._swept_at = now - self._swept_at, now
            for some in _slices(self._all()):
                busy += self._busy(some, since_s)
                await asyncio.sleep(0)
            try:
                if busy:
                    await self._heartbeat.renew()
                for some in _slices(busy):
                    seen = await self._exchange(some)
                    for tally in some:
                        tally.measure(since_s)
                    await self._write_rows(some, seen)
                    await self._alert(some, seen)
            except XimlerError:
                self._freeze()
                raise
            self._leaving = [tally for tally in self._leaving if _is_open(tally)]

    def _plan_changed(self, _change: Change | None = None) -> None:
        self._plans += 1
        self._look.set()

    async def _copy_limits(self) -> None:
        """Copy the limits of plans to the quotas of this process, if one has changed. Raises Unavailable.

        One command per 100 users with a tally, and one for the plans.
        """
        plans = self._plans
        if plans == self._plans_copied:
            return
        followed = {tally.plan_id for tally in self._all() if tally.plan_id is not None}
        for plan in await self._database.plans.find({"id": {"$in": list(followed)}}) if followed else ():
            for some in _slices([tally for tally in self._all() if tally.plan_id == plan.id]):
                await copy_limit(self._database, plan, {"_id": {"$in": [tally.quota_id for tally in some]}})
        self._plans_copied = plans

    async def _exchange(self, busy: Sequence[Tally]) -> dict[str, Quota]:
        async with contextlib.AsyncExitStack() as locks:
            for tally in busy:
                await locks.enter_async_context(tally.lock)
            reports = [report for tally in busy if (report := tally.report())]
            returns = [
                Return(quota_id=t.quota_id, lease_id=t.lease_id, seq=t.seq, grants=t.grants, n=t.n)
                for t in busy
                if t.returning and t.grants and not (t.unreported or t.hours_due)
            ]
            hours = {hour for report in reports for hour in report.hours}
            hours |= {hour for tally in busy for hour in tally.hours_due}
            await leases.settle(self._database, reports, returns)
            seen = await leases.read_many(self._database, {tally.quota_id for tally in busy}, hours=hours)
            self._answers += 1
            for tally in busy:
                self._see(tally, seen.get(tally.quota_id))
            return seen

    def _all(self) -> list[Tally]:
        return [*self._tallies.values(), *self._leaving]

    def _busy(self, tallies: Iterable[Tally], since_s: float) -> list[Tally]:
        """The tallies to sweep: with a lease, unwritten hours or a waiting caller.

        Idle leases are given up, idle users forgotten.
        """
        now, now_ms = time.monotonic(), self._clock.now_ms()
        busy = []
        for tally in tallies:
            if now_ms >= tally.period_end_ms:
                self._leave(tally)
            if tally.unreported or tally.wanted:
                tally.last_use = now
            idle = now - tally.last_use
            if tally.grants and idle > (_SCARCE_IDLE_S if tally.scarce else _IDLE_S):
                tally.give_up()
            if _is_open(tally) or tally.wanted:
                busy.append(tally)
            else:
                tally.measure(since_s)
                if idle > _FORGET_S and self._tallies.get(tally.user_id) is tally and not tally.lock.locked():
                    del self._tallies[tally.user_id]
            tally.wanted = False
        return busy

    async def _write_rows(self, busy: Sequence[Tally], seen: dict[str, Quota]) -> None:
        due = {tally.quota_id for tally in busy if tally.hours_due}
        await rows.write(self._database, [quota for quota_id, quota in seen.items() if quota_id in due])
        for tally in busy:
            if tally.quota_id in seen:
                written = tally.hours_due & seen[tally.quota_id].units_by_hour.keys()
                tally.hours_due -= written
                tally.hours_written |= written

    async def _alert(self, busy: Sequence[Tally], seen: dict[str, Quota]) -> None:
        """Enqueue notifications of users that reached a threshold: one command for each, otherwise none.

        `alerted` also shows thresholds that were reached before a process died without enqueueing one.
        """
        for tally in busy:
            quota = seen.get(tally.quota_id)
            if quota is None:
                continue
            limit = quota.limit_at(self._clock.now())
            reached = max(alerts.due(0, quota.used, limit, self._thresholds), default=0)
            if reached > max(quota.alerted, tally.alerted):
                await alerts.look(
                    self._database, quota.id, before=0, after=quota.used, limit=limit, thresholds=self._thresholds
                )
            tally.alerted = reached

    def _freeze(self) -> None:
        """Hand out nothing more when the heartbeat may expire: the leases may be forfeited before the use is
        reported.
        """
        if self._heartbeat.late:
            for tally in self._all():
                tally.left = 0


def _slices(tallies: Sequence[Tally]) -> Iterator[Sequence[Tally]]:
    return (tallies[first : first + _SLICE] for first in range(0, len(tallies), _SLICE))


def _allowance(tally: Tally) -> Allowance:
    if tally.free is None:
        return Allowance(None, None, tally.period_end_ms)
    return Allowance(tally.limit, tally.left + max(0, tally.free), tally.period_end_ms)


def _is_open(tally: Tally) -> bool:
    return bool(tally.grants or tally.hours_due or tally.unreported)


def _check(resource: str, units: int) -> None:
    if resource != "apiCalls":
        known = (
            "projects and storage are counted when they are created"
            if resource in ("projects", "storage")
            else "apiCalls is"
        )
        raise Invalid.field("resource", f"{resource[:40]!r} cannot be consumed: {known}")
    if type(units) is not int or not 0 < units <= _MAX_UNITS:
        raise Invalid.field("units", f"{units!r} is not a whole number from 1 to {_MAX_UNITS:,}")


def _silence(task: "asyncio.Task[Any]") -> None:
    """Retrieve the exception to silence asyncio's warning: all callers may have been cancelled."""
    if not task.cancelled():
        task.exception()
