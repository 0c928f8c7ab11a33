"""Burst limits: how fast a caller may spend, whatever is left of its quota.

A token bucket a caller, kept as one number (the generic cell rate algorithm): the moment at which its bucket would be full
again. It lives in this process alone: with several worker processes a caller gets the rate of each that it reaches.
"""

from collections.abc import Callable, Hashable
from time import monotonic

from ximler.core.errors import LimitExceeded

__all__ = ["BurstExceeded", "Bursts"]

_SWEEP_AT = 10_000


class BurstExceeded(LimitExceeded):
    """Too fast: nothing is used up, and waiting `retry_after_s` is enough."""

    code = "BURST_EXCEEDED"

    @classmethod
    def of(cls, who: str, bursts: "Bursts", wait: float) -> "BurstExceeded":
        limit = f"{bursts.rate:g} calls a second, and {bursts.size} at once"
        return cls(f"Too fast: {who} may make {limit}", fields={"burst": limit}, retry_after_s=min(wait, 3600.0))


class Bursts:
    """`rate` units a second, and up to `size` at once."""

    __slots__ = ("_clock", "_full_at", "_per_unit", "_span", "_sweep_at", "rate", "size")

    def __init__(self, *, rate: float, size: int, clock: Callable[[], float] = monotonic) -> None:
        self.rate, self.size = rate, size
        self._per_unit = 1 / rate
        self._span = size / rate
        self._clock = clock
        self._full_at: dict[Hashable, float] = {}
        self._sweep_at = _SWEEP_AT

    def take(self, caller: Hashable, n: int = 1, now: float | None = None) -> float:
        """0 when `n` units were taken; else none was, and it is the seconds after which they can be.

        Never possible (`n` above `size`) is infinity. Who asks several buckets reads the clock once, and says `now`.
        """
        if now is None:
            now = self._clock()
        full_at = self._full_at.get(caller, now)
        if full_at < now:
            full_at = now
        full_at += n * self._per_unit
        wait = full_at - now - self._span
        if wait > 1e-9:  # what float arithmetic leaves over
            return wait if n <= self.size else float("inf")
        self._full_at[caller] = full_at
        if len(self._full_at) > self._sweep_at:
            self._sweep(now)
        return 0.0

    def put_back(self, caller: Hashable, n: int = 1) -> None:
        """Undo a `take` that came to nothing."""
        if caller in self._full_at:
            self._full_at[caller] -= n * self._per_unit

    def left(self, caller: Hashable, now: float | None = None) -> int:
        """Units that could be taken now."""
        if now is None:
            now = self._clock()
        return int((self._span - max(self._full_at.get(caller, now) - now, 0.0)) * self.rate + 1e-6)

    def __len__(self) -> int:
        return len(self._full_at)

    def _sweep(self, now: float) -> None:
        """A full bucket needs no memory. What is left are callers of the last `size / rate` seconds."""
        self._full_at = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._full_at))
