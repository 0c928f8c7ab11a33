"""Burst limits: how fast a caller may spend, whatever is left of its quota.

A token bucket a caller, kept as one number (the generic cell rate algorithm): the moment at which its bucket would be full
again. It lives in this process alone: with several worker processes a caller gets the rate of each that it reaches.
"""

from collections.abc import Hashable

from ximler.core.errors import LimitExceeded

__all__ = ["BurstExceeded", "Bursts"]

_SWEEP_AT = 10_000
_LONGEST_S = 3600.0


class BurstExceeded(LimitExceeded):
    """Too fast: nothing is used up, and waiting `retry_after_s` is enough."""

    code = "BURST_EXCEEDED"


class Bursts:
    """`rate` units a second, and up to `size` at once. A refusal names `whose` limit it is, and the `limit`."""

    __slots__ = ("_full_at", "_per_unit", "_span", "_sweep_at", "limit", "rate", "size", "whose")

    def __init__(self, whose: str, *, rate: float, size: int, limit: str | None = None) -> None:
        self.whose = whose
        self.limit = limit or f"{rate:g} calls a second, and {size} at once"
        self.rate, self.size = rate, size
        self._per_unit = 1 / rate
        self._span = size / rate
        self._full_at: dict[Hashable, float] = {}
        self._sweep_at = _SWEEP_AT

    def take(self, caller: Hashable, n: int, now: float) -> int:
        """Take `n` units at this moment of `time.monotonic()`; returns how many are left. Raises BurstExceeded: none is taken.

        More than `size` are never to be had: they are refused with the longest wait there is, an hour.
        """
        full_at = self._full_at.get(caller, now)
        if full_at < now:
            full_at = now
        full_at += n * self._per_unit
        left = self._span - (full_at - now)
        if left < -1e-9:  # what float arithmetic leaves over
            raise self._refusal(-left if n <= self.size else _LONGEST_S)
        self._full_at[caller] = full_at
        if len(self._full_at) > self._sweep_at:
            self._sweep(now)
        return int(left * self.rate + 1e-6)

    def _refusal(self, wait_s: float) -> BurstExceeded:
        message = f"Too fast: {self.whose} may make {self.limit}"
        return BurstExceeded(message, fields={"burst": self.limit}, retry_after_s=min(wait_s, _LONGEST_S))

    def put_back(self, caller: Hashable, n: int = 1) -> None:
        """Undo a `take` that came to nothing."""
        if caller in self._full_at:
            self._full_at[caller] -= n * self._per_unit

    def __len__(self) -> int:
        return len(self._full_at)

    def _sweep(self, now: float) -> None:
        """A full bucket needs no memory. What is left are callers of the last `size / rate` seconds."""
        self._full_at = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._full_at))
