"""Burst limits that all processes share, in Valkey or Redis (`VALKEY_URL`).

One script decides each request on the server's clock, by the generic cell rate algorithm: N processes admit
one burst together. While Valkey does not answer, each process applies the limits divided by the number of
processes, so that the sum stays at the limit: an outage never opens it. If Valkey has lost a bucket, by
eviction or a restart, the emptiest that any process has seen takes its place: each sends what it knows along.

Not here: the limits themselves, and the buckets of a process (`bursts`);
time-outs and failures (`database.valkey`).
"""

import asyncio
from collections.abc import Sequence
from secrets import token_hex
from time import monotonic

from ximler.core.stopping import pause
from ximler.database.valkey import Script, Valkey
from ximler.metering.quota.bursts import Bursts, take_each

__all__ = ["SharedBursts"]

_PRESENT_S = 5.0  # between two signs of life of a process
_ABSENT_MS = 20_000
_UNDERWAY_S = 0.1  # a request is given up before

# KEYS: the buckets. ARGV: a number that is returned, the units, and for each bucket the microseconds that a
# unit takes, its size, and the least number of microseconds until it is full. Returns the number, then 0 and
# the microseconds until each is full, or the bucket that refuses, the microseconds until it is full, and
# those to wait. Nothing is taken unless all have room. Buckets are kept ten minutes longer than needed, so
# that `volatile-ttl` evicts cached results first.
_TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local units, ends, full = tonumber(ARGV[2]), {}, {}
for i, key in ipairs(KEYS) do
  local unit, size, least = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local before = math.max(tonumber(redis.call('GET', key) or '0') - now, least)
  local after = before + units * unit
  if after > size * unit then
    return {ARGV[1], i, string.format('%.0f', before), string.format('%.0f', after - size * unit)}
  end
  ends[i], full[i] = now + after, string.format('%.0f', after)
end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', ends[i]), 'PX', math.ceil((ends[i] - now) / 1000) + 600000)
end
return {ARGV[1], 0, unpack(full)}
""")
# KEYS: the processes. ARGV: a number, this process, and the milliseconds after which one is absent.
# Returns how many are present.
_PRESENT = Script("""
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {ARGV[1], redis.call('ZCARD', KEYS[1])}
""")


class SharedBursts:
    """One per process. `limits` are checked together; the first names of callers belong to the first limit.

    `workers` is the number of processes until Valkey has counted them; the part `run` reports this one.
    """

    def __init__(self, valkey: Valkey, *, limits: Sequence[Bursts], workers: int) -> None:
        self._valkey = valkey
        self._limits = limits
        self._workers = self._processes = workers
        self._locals = [limit.divided(workers) for limit in limits]
        self._name = token_hex(8)

    async def take(self, callers: Sequence[bytes], units: int) -> int:
        """Take units from each caller's bucket; returns how many the first has left.
        Raises BurstExceeded, and then nothing is taken.
        """
        now = monotonic()
        owner = callers[-1].hex()  # braces: on a cluster, the buckets of an owner are on one node
        keys = [f"{self._valkey.prefix}:burst:{{{owner}}}:{n}:{caller.hex()}" for n, caller in enumerate(callers)]
        args: list[float] = [units]
        for limit, mine, caller in zip(self._limits, self._locals, callers, strict=True):
            least_s = max(0.0, mine.full_in(caller, now) - _UNDERWAY_S)
            args += (1e6 / limit.rate, limit.size, int(least_s * 1e6))
        answer = await self._valkey.ask(_TAKE, keys, args)
        now = monotonic()
        if answer is None:
            return take_each(self._locals, callers, units, now)
        refusing, *rest = answer
        if refusing:
            self._locals[refusing - 1].follow(callers[refusing - 1], int(rest[0]) / 1e6, now)
            raise self._limits[refusing - 1].refusal(int(rest[1]) / 1e6, units)
        for mine, caller, full_us in zip(self._locals, callers, rest, strict=True):
            mine.follow(caller, int(full_us) / 1e6, now)
        first = self._limits[0]
        return int(first.size - int(rest[0]) / 1e6 * first.rate + 1e-3)

    async def run(self, stop: asyncio.Event) -> None:
        """Report this process as present, and learn how many there are."""
        processes = f"{self._valkey.prefix}:processes"
        while True:
            answer = await self._valkey.ask(_PRESENT, [processes], [self._name, _ABSENT_MS])
            if answer is not None:
                count = max(int(answer[0]), self._workers)
                if count != self._processes:
                    self._processes = count
                    self._locals = [
                        limit.divided(count, before=mine)
                        for limit, mine in zip(self._limits, self._locals, strict=True)
                    ]
            if await pause(stop, _PRESENT_S):
                return
