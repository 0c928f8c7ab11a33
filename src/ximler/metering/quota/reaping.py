"""Reaping: forfeits the leases of dead processes. One process at a time does it.

A process is dead when its heartbeat has expired by the server's clock (30 s without renewal) and still is 10
s later by the reaper's own clock. An outage restarts those 10 s, because no heartbeat could be renewed. So
neither a wrong clock nor an outage forfeits the lease of a live process.

Each forfeiture is guarded by the counts of its lease, and the heartbeat is read after the lease. A process
that wakes up after its expiry keeps the leases that it used before they were forfeited; its reports of the
others have no effect.

Dead processes are found among the holders of all quotas, by one index key per process, and their quotas by
index. So the cost grows with processes and dead leases, not with live quotas.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import msgspec
import structlog
from prometheus_client import Counter

from ximler.core.errors import Unavailable
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.metering.ledger import rows
from ximler.metering.quota import heartbeats, leases
from ximler.runtime import Part, background
from ximler.schema.quota import QUOTAS, Lease, Quota

__all__ = ["Reaper"]

FORFEITED = Counter("ximler_metering_forfeited_units_total", "Units forfeited with the leases of dead processes.")

_log = structlog.get_logger("ximler.metering")
_BATCH = 50  # quotas, with up to 744 hours each
_HOURS = 500  # written to the ledger with one command

_Lost = tuple[Quota, list[str]]  # a quota and its leases of dead processes


@background
def _reaper(*, database: Database) -> Part:
    return Part("metering.reaper", Reaper(database).run, lease=True)


class Reaper:
    """`valid_for` is how long a heartbeat is valid, as in the processes that are reaped."""

    def __init__(self, database: Database, *, valid_for: timedelta = heartbeats.VALID_FOR) -> None:
        self._database = database
        self._valid_for = valid_for
        self._pause_s = valid_for.total_seconds() / 3
        self._suspected_at: dict[str, float] = {}  # by process

    async def run(self, stop: asyncio.Event) -> None:
        """Reap at once, then every 10 s, until `stop` is set."""
        unreachable = False
        while not stop.is_set():
            try:
                await self.reap()
                unreachable = False
            except Unavailable as error:
                if not unreachable:
                    _log.warning("leases wait to be reaped", reason=error.message)
                unreachable = True
            await pause(stop, self._pause_s)

    async def reap(self) -> int:
        """Forfeit the leases of processes that have been dead for long enough; returns the number of units.

        At most three commands where no process is dead, then up to four per 50 quotas, and one per 500 hours
        for the ledger. Raises Unavailable.
        """
        try:
            await leases.adopt(self._database)
            holders = await leases.holders(self._database)
            dead = self._confirmed(holders - await heartbeats.alive(self._database, holders)) if holders else []
            count = 0
            batch: list[Quota] = []
            if dead:
                quotas = self._database[QUOTAS].committed
                async for quota in quotas.stream({"holders": {"$in": dead}}, batch=_BATCH):
                    batch.append(quota)
                    if len(batch) == _BATCH:
                        count += await self._forfeit(batch, dead)
                        batch = []
            return count + (await self._forfeit(batch, dead) if batch else 0)
        except Unavailable:
            self._suspected_at.clear()
            raise

    def _confirmed(self, suspects: set[str]) -> list[str]:
        now = time.monotonic()
        self._suspected_at = {process: self._suspected_at.get(process, now) for process in suspects}
        return [process for process, since in self._suspected_at.items() if now - since >= self._pause_s]

    async def _forfeit(self, quotas: Sequence[Quota], dead: Iterable[str]) -> int:
        dead = set(dead)
        dead -= await heartbeats.alive(self._database, dead)  # some may have woken up before their leases were read
        lost: list[_Lost] = [
            (quota, [i for i, lease in quota.open_leases.items() if self._is_lost(i, lease, dead)]) for quota in quotas
        ]
        # The ledger may lack reported hours, which nothing shows once the lease has ended.
        for portion in _portions(quota for quota, ids in lost if any(quota.open_leases[i].seq for i in ids)):
            await rows.write(self._database, portion)
        units = {quota.id: sum(quota.open_leases[i].n for i in ids) for quota, ids in lost if ids}
        if await leases.forfeit(self._database, lost) < len(lost):  # some leases have moved: their processes woke up
            now = await leases.read_many(self._database, units)
            kept = {quota.id for quota, ids in lost if quota.id in now and now[quota.id].open_leases.keys() & set(ids)}
            units = {quota_id: n for quota_id, n in units.items() if quota_id not in kept}
        if units:
            FORFEITED.inc(sum(units.values()))
            _log.warning("usage forfeited", units=units, reason="the process that held the leases is dead")
        return sum(units.values())

    def _is_lost(self, lease_id: str, lease: Lease, dead: set[str]) -> bool:
        holder = leases.holder_of(lease_id)
        if holder != lease_id:
            return holder in dead
        # Of a release without heartbeats, which moves a lease every few seconds, or returns it.
        silent_ms = self._database.clock.now_ms() - self._valid_for // timedelta(milliseconds=1)
        return holder in dead and lease.at <= silent_ms


def _portions(quotas: Iterable[Quota]) -> Iterator[list[Quota]]:
    """The quotas with all their hours, in portions of so many hours."""
    portion: list[Quota] = []
    room = _HOURS
    for quota in quotas:
        hours = list(quota.units_by_hour)
        while hours:
            some, hours = hours[:room], hours[room:]
            portion.append(msgspec.structs.replace(quota, hours={key: quota.hours[key] for key in some}))
            room -= len(some)
            if not room:
                yield portion
                portion, room = [], _HOURS
    if portion:
        yield portion
