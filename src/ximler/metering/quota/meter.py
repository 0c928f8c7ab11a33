"""The meter: decides in memory, for one process, whether a user may use something, and accounts for every unit of it.

It hands out units of leases (see `quotas`), takes more when one runs out, and twice a second tells the database what it has
handed out, for all users with three commands: reports and returns, a look at the quotas, the ledger's rows. From that look it
learns of limits that were changed, units that came back, and periods that ended.

Invariants, whatever is lost, late, or killed: a unit is handed out only if it was granted; a unit that was handed out is
settled once, or forfeited with its lease.

Not here: how many may come at once (bursts), and projects and bytes (`gauges`).
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from time import time_ns
from typing import Any

import msgspec
import structlog
from bson import ObjectId
from prometheus_client import Counter

from ximler.core.actor import Actor
from ximler.core.clock import from_ms
from ximler.core.errors import Invalid, Unavailable, XimlerError
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.metering.ledger import rows
from ximler.metering.limits.entitlements import open_quota
from ximler.metering.quota import leases
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.metering.quota.leases import Return
from ximler.metering.quota.tally import Tally
from ximler.metering.reports import alerts
from ximler.schema.quota import Quota

__all__ = ["Allowance", "Meter"]

_log = structlog.get_logger("ximler.metering")

LOST = Counter(
    "ximler_metering_lost_units_total", "Units handed out whose lease was forfeited before they were reported."
)
FORFEITED = Counter("ximler_metering_forfeited_units_total", "Units of leases whose process was gone.")

LOOK_S = 0.5
_TRUSTED_S = 1.0  # how long "nothing is left" holds without a look
_IDLE_S = 10.0  # a lease that nobody uses goes back after this,
_SCARCE_IDLE_S = 1.0  # or this, when others may be waiting for it
_FORGET_S = 60.0  # a user without a lease
_MAX_UNITS = 1_000_000


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """What the user had left after a use; None is unlimited. Others may be using it at the same time."""

    limit: int | None
    remaining: int | None
    resets_ms: int  # since 1970

    @property
    def resets_at(self) -> datetime:
        return from_ms(self.resets_ms)


class Meter:
    """One a process: `run` it beside what it meters, and `close` it, which gives back what was not used."""

    def __init__(
        self,
        database: Database,
        *,
        silent_after: timedelta = leases.SILENT,
        thresholds: Sequence[int] = alerts.THRESHOLDS,
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._silent_after = silent_after
        self._thresholds = thresholds
        self._tallies: dict[ObjectId, Tally] = {}
        self._leaving: list[Tally] = []  # of periods that are over
        self._opening: dict[ObjectId, asyncio.Task[Tally]] = {}
        self._sweeping = asyncio.Lock()
        self._swept_at = time.monotonic()
        self._suspects: dict[tuple[str, str], tuple[int, int, float]] = {}
        self._unreachable = False
        self._closed = False

    async def consume(
        self, actor: Actor, resource: str = "apiCalls", units: int = 1, *, route: str | None = None
    ) -> Allowance:
        """Use units on the actor's account, or raise QuotaExceeded, in which case nothing is used.

        Usually without a round trip, otherwise one. `route` is recorded in the ledger's metadata. Raises Invalid,
        Unauthenticated, NotFound, and Unavailable where units must be granted by a database that does not answer.
        """
        allowance = self.take(actor, units, route=route) if resource == "apiCalls" else None
        if allowance is None:
            tally = await self._obtain(actor, resource, units)
            tally.take(units, actor.api_key_id, route)  # nothing else has run since `left` was looked at
            allowance = _allowance(tally)
        return allowance

    def take(self, actor: Actor, units: int = 1, *, route: str | None = None) -> Allowance | None:
        """Use units of API calls that are here to be used, or None, in which case nothing is used: `consume` gets them."""
        tally = self._tallies.get(actor.user_id)  # type: ignore[arg-type]  # None is nobody's
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
        """Report, look and reap until stopped."""
        reap_every = (self._silent_after / 3).total_seconds()
        reaped_at = time.monotonic()
        while not await pause(stop, LOOK_S):
            try:
                await self.sweep()
                if time.monotonic() - reaped_at > reap_every:
                    reaped_at = time.monotonic()
                    await self.reap()
            except Unavailable as error:
                if not self._unreachable:
                    _log.warning("usage waits to be reported", reason=error.message)
                self._unreachable = True
            else:
                self._unreachable = False

    async def close(self, *, timeout_s: float = 5) -> None:
        """Hand out nothing more; report everything and give back the rest. What cannot be is forfeited later."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
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
            opening.add_done_callback(_heard)
        return await asyncio.shield(opening)

    async def _open(self, user_id: ObjectId) -> Tally:
        try:
            quota = await leases.current(self._database, user_id)
            if quota is None:
                quota = await open_quota(self._database, user_id, self._database.clock.now())
        finally:
            del self._opening[user_id]
        tally = self._tallies[user_id] = Tally(quota, self._clock.now_ms())
        return tally

    def _leave(self, tally: Tally) -> None:
        tally.over = True
        tally.give_up()
        if self._tallies.get(tally.user_id) is tally:
            del self._tallies[tally.user_id]
            self._leaving.append(tally)

    async def _more(self, tally: Tally, units: int) -> None:
        """Take another grant; callers that come meanwhile share it. One that is cancelled leaves it to the others."""
        if tally.granting is None or tally.granting.done():
            tally.granting = asyncio.create_task(self._grant(tally, units))
            tally.granting.add_done_callback(_heard)
        await asyncio.shield(tally.granting)

    async def _grant(self, tally: Tally, units: int) -> None:
        await asyncio.sleep(0)  # those who come at the same time count as waiting, too
        async with tally.lock:
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
                silent_after=self._silent_after,
            )
            if quota is None:
                quota = await leases.read(self._database, tally.quota_id)
            self._see(tally, quota)

    def _see(self, tally: Tally, quota: Quota | None) -> None:
        if quota is None or not quota.opened:
            lost = tally.end()
            tally.hours_due.clear()
            tally.over = True  # somebody has removed it: it is opened anew
        else:
            lost = tally.see(quota, self._clock.now_ms())
        if lost:
            LOST.inc(lost)
            _log.warning("usage lost with its lease", quota=tally.quota_id, units=lost)

    def _exceeded(self, tally: Tally) -> QuotaExceeded:
        seconds = max(0.0, (tally.period_end_ms - self._clock.now_ms()) / 1000)
        open_still = tally.open > tally.unreported  # in leases, and they may come back
        return QuotaExceeded(
            f"The limit of {tally.limit:,} API calls a month is reached: it resets at {tally.period_end.isoformat()}; "
            "a larger plan has more",
            fields={
                "apiCalls": f"limit {tally.limit} reached",
                "used": str(tally.used + tally.unreported),
                "resetsAt": tally.period_end.isoformat(),
            },
            retry_after_s=min(1.0, seconds) if open_still else seconds,
        )

    # Accounting

    async def sweep(self) -> None:
        """Report what was handed out, give back what is idle or over, and look at the quotas. At most three commands.

        Raises Unavailable; nothing is lost by it: the same is sent again the next time.
        """
        async with self._sweeping:
            busy = self._busy()
            seen = await self._exchange(busy)
            self._measure()
            await self._write_rows(busy, seen)
            await self._alert(busy, seen)
            self._leaving = [tally for tally in self._leaving if _is_open(tally)]

    async def _exchange(self, busy: list[Tally]) -> dict[str, Quota]:
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
            try:
                await leases.settle(self._database, reports, returns)
                seen = await leases.read_many(self._database, {tally.quota_id for tally in busy}, hours=hours)
            except XimlerError:
                self._freeze()
                raise
            for tally in busy:
                self._see(tally, seen.get(tally.quota_id))
            return seen

    def _all(self) -> list[Tally]:
        return [*self._tallies.values(), *self._leaving]

    def _busy(self) -> list[Tally]:
        """Those that have something to say, or that somebody asks for. Others are given up, or forgotten, in time."""
        now, now_ms = time.monotonic(), self._clock.now_ms()
        busy = []
        for tally in self._all():
            if now_ms >= tally.period_end_ms:
                self._leave(tally)
            if tally.unreported or tally.wanted:
                tally.last_use = now
            idle = now - tally.last_use
            if tally.grants and idle > (_SCARCE_IDLE_S if tally.scarce else _IDLE_S):
                tally.give_up()
            if _is_open(tally) or tally.wanted:
                busy.append(tally)
            elif idle > _FORGET_S and self._tallies.get(tally.user_id) is tally and not tally.lock.locked():
                del self._tallies[tally.user_id]
            tally.wanted = False
        return busy

    async def _write_rows(self, busy: list[Tally], seen: dict[str, Quota]) -> None:
        due = {tally.quota_id for tally in busy if tally.hours_due}
        await rows.write(self._database, [quota for quota_id, quota in seen.items() if quota_id in due])
        for tally in busy:
            if tally.quota_id in seen:
                written = tally.hours_due & seen[tally.quota_id].hours.keys()
                tally.hours_due -= written
                tally.hours_written |= written

    async def _alert(self, busy: list[Tally], seen: dict[str, Quota]) -> None:
        """Ask for what the users are to be told. No command, but when a threshold is reached.

        What was reached while nobody looked, because a process had died, is seen from `alerted`.
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

    def _measure(self) -> None:
        now = time.monotonic()
        for tally in self._tallies.values():
            tally.measure(now - self._swept_at)
        self._swept_at = now

    def _freeze(self) -> None:
        """Out of touch for long, somebody may take this process for dead: what it handed out now would not be counted."""
        limit = (self._silent_after * 2 / 3).total_seconds()
        now = time.monotonic()
        for tally in self._all():
            if now - tally.seen_at > limit:
                tally.left = 0

    async def reap(self) -> int:
        """Forfeit the leases of processes that are gone; returns how many units.

        A lease is suspected when it has been silent for long by the server's clock, and given up when it has not moved since it
        was first suspected here, by this process's own: so neither a skewed clock nor an outage of the database, in which
        nobody could report, costs anybody a lease.
        """
        confirm_s = (self._silent_after / 3).total_seconds()
        suspects: dict[tuple[str, str], tuple[int, int, float]] = {}
        count = 0
        for quota in await leases.silent(self._database):
            dead, doubtful = [], False
            silent_ms = self._clock.now_ms() - self._silent_after // timedelta(milliseconds=1)
            for lease_id in quota.leases:
                lease = quota.lease(lease_id)
                if lease is None or lease.at > silent_ms:
                    continue
                seq, grants, since = self._suspects.get((quota.id, lease_id), (-1, -1, 0.0))
                if (seq, grants) != (lease.seq, lease.grants):
                    since = time.monotonic()
                if time.monotonic() - since >= confirm_s:
                    dead.append(lease_id)
                else:
                    suspects[quota.id, lease_id] = (lease.seq, lease.grants, since)
                    doubtful = True
            if dead:
                await rows.write(self._database, [quota])  # what its process reported, and may not have come to write
            if (dead or not doubtful) and await leases.forfeit(
                self._database, quota, dead, silent_after=self._silent_after
            ):
                units = sum(int(quota.leases[lease_id]["n"]) for lease_id in dead)
                count += units
                FORFEITED.inc(units)
                if dead:
                    _log.warning("usage forfeited", quota=quota.id, units=units, reason="its process is gone")
        self._suspects = suspects
        return count


def _allowance(tally: Tally) -> Allowance:
    if tally.free is None:
        return Allowance(None, None, tally.period_end_ms)
    return Allowance(tally.limit, tally.left + max(0, tally.free), tally.period_end_ms)


def _is_open(tally: Tally) -> bool:
    return bool(tally.grants or tally.hours_due or tally.unreported)


def _check(resource: str, units: int) -> None:
    if resource != "apiCalls":
        known = (
            "projects and storage are counted as they are made"
            if resource in ("projects", "storage")
            else "apiCalls is"
        )
        raise Invalid.field("resource", f"{resource[:40]!r} is nothing that is consumed: {known}")
    if type(units) is not int or not 0 < units <= _MAX_UNITS:
        raise Invalid.field("units", f"{units!r} is not a whole number from 1 to {_MAX_UNITS:,}")


def _heard(task: "asyncio.Task[Any]") -> None:
    """A failure that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
