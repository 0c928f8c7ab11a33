"""Burst limits that all processes share, in Valkey or Redis (`VALKEY_URL`).

One script decides each request on the server's clock, by the generic cell rate algorithm: N processes admit one burst
together. While Valkey does not answer, each process applies the limits divided by the number of processes, so that the sum
stays at the limit: an outage never opens it. A request waits at most 50 ms; after a failure Valkey is not asked for a
second, and then by one request only.

Not here: the limits themselves, and the buckets of a process (`bursts`).
"""

import asyncio
import math
from collections.abc import Sequence
from secrets import token_hex
from time import monotonic
from typing import Any

import structlog
from valkey import asyncio as valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import ValkeyError

from ximler.core.stopping import pause
from ximler.metering.quota.bursts import Bursts

__all__ = ["SharedBursts"]

TIMEOUT_S = 0.05
_PAUSE_S = 1.0  # after a failure
_PRESENT_S = 5.0  # between two signs of life of a process
_ABSENT_MS = 20_000
_FAILURES = (ValkeyError, OSError, TimeoutError)
_log = structlog.get_logger("ximler.metering")

# KEYS: the buckets. ARGV: a number that is returned, the units, and for each bucket the microseconds that a unit takes, and
# its size. Returns the number, then 0 and the units left in each, or the bucket that refuses and the microseconds to wait.
# Nothing is taken unless all have room.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local units, ends, left = tonumber(ARGV[2]), {}, {}
for i, key in ipairs(KEYS) do
  local unit, size = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  ends[i] = math.max(tonumber(redis.call('GET', key) or '0'), now) + units * unit
  local room = size * unit - (ends[i] - now)
  if room < 0 then return {ARGV[1], i, string.format('%.0f', -room)} end
  left[i] = math.floor(room / unit)
end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', ends[i]), 'PX', math.ceil((ends[i] - now) / 1000) + 1)
end
return {ARGV[1], 0, unpack(left)}
"""
# KEYS: the processes. ARGV: this one, and the milliseconds after which one is absent. Returns how many are present.
_PRESENT = """
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""


class SharedBursts:
    """One per process. `limits` are checked together; the first names of callers belong to the first limit.

    `workers` is the number of processes until Valkey has counted them; the part `run` reports this one.
    """

    def __init__(self, url: str, *, prefix: str, limits: Sequence[Bursts], workers: int) -> None:
        self._limits = limits
        self._arguments = [n for limit in limits for n in (1e6 / limit.rate, limit.size)]
        self._prefix = prefix
        self._workers = self._processes = workers
        self._locals = [limit.divided(workers) for limit in limits]
        self._name = token_hex(8)
        self._number = 0
        self._asked_at = -math.inf  # the last time after a failure
        self._failing = False
        self._client = valkey.Valkey.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._take = self._client.register_script(_TAKE)
        self._present = self._client.register_script(_PRESENT)

    async def take(self, callers: Sequence[bytes], units: int) -> int:
        """Take units from each caller's bucket; returns how many the first has left. Raises BurstExceeded, and then nothing
        is taken.
        """
        answer = await self._ask(callers, units)
        now = monotonic()
        if answer is None:
            return self._alone(callers, units, now)
        refusing, *rest = answer
        if refusing:
            self._locals[refusing - 1].follow(callers[refusing - 1], 0.0, now)
            raise self._limits[refusing - 1].refusal(int(rest[0]) / 1e6, units)
        for limit, mine, caller, left in zip(self._limits, self._locals, callers, rest, strict=True):
            mine.follow(caller, int(left) / limit.size, now)
        return int(rest[0])

    async def run(self, stop: asyncio.Event) -> None:
        """Report this process as present, and learn how many there are."""
        while True:
            try:
                async with asyncio.timeout(1):
                    found = int(await self._present(keys=[f"{self._prefix}:processes"], args=[self._name, _ABSENT_MS]))
            except _FAILURES as error:
                self._failed(error)
            else:
                count = max(found, self._workers)
                if count != self._processes:
                    self._processes = count
                    self._locals = [limit.divided(count) for limit in self._limits]
            if await pause(stop, _PRESENT_S):
                return

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, callers: Sequence[bytes], units: int) -> list[int] | None:
        """The script's answer without its number; None if Valkey is not to be asked, or does not answer."""
        if self._failing:
            now = monotonic()
            if now - self._asked_at < _PAUSE_S:
                return None
            self._asked_at = now  # of the requests that wait, only this one asks
        self._number += 1
        number = self._number
        owner = callers[-1].hex()  # braces: on a cluster, the buckets of an owner are on one node
        keys = [f"{self._prefix}:burst:{{{owner}}}:{index}:{caller.hex()}" for index, caller in enumerate(callers)]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer: list[Any] = await self._take(keys=keys, args=[number, units, *self._arguments])
            if int(answer[0]) != number:  # of a request that was given up
                await self._client.connection_pool.disconnect()
                self._failed(ValueError("an answer to another request"))
                return None
        except _FAILURES as error:
            self._failed(error)
            return None
        if self._failing:
            self._failing = False
            _log.info("burst limits are shared again")
        return [int(part) for part in answer[1:]]

    def _failed(self, error: Exception) -> None:
        self._asked_at = monotonic()
        if not self._failing:
            self._failing = True
            reason = str(error) or type(error).__name__
            _log.warning(
                "burst limits are not shared: Valkey does not answer", processes=self._processes, reason=reason
            )

    def _alone(self, callers: Sequence[bytes], units: int, now: float) -> int:
        """Decide by this process's share."""
        left = []
        for index, (mine, caller) in enumerate(zip(self._locals, callers, strict=True)):
            try:
                left.append(mine.take(caller, units, now))
            except BaseException:
                for taken, other in zip(self._locals[:index], callers, strict=False):
                    taken.put_back(other, units)
                raise
        return left[0]
