"""Burst limits: the rate of a caller's requests, independent of its quota.

A token bucket per caller, stored as one number (the generic cell rate algorithm): the time at which the
bucket is full again. It is local to the process: with several worker processes a caller gets the rate of each
that it reaches, unless they share their limits (`shared_bursts`).
"""

from collections.abc import Hashable, Sequence
from typing import Self

from ximler.core.errors import LimitExceeded

__all__ = ["BurstExceeded", "Bursts", "take_each"]

_SWEEP_AT = 10_000
_LONGEST_S = 3600.0


class BurstExceeded(LimitExceeded):
    """The rate was exceeded. Nothing was taken; retry after `retry_after_s`."""

    code = "BURST_EXCEEDED"


class Bursts:
    """`rate` units per second, and up to `size` at once. A rejection names `whose` limit it is, and the
    `limit`.
    """

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
        """Take `n` units at this time of `time.monotonic()`; returns how many are left. Raises BurstExceeded
        without taking any.

        More than `size` are always rejected, with the maximum delay of an hour.
        """
        full_at = self._full_at.get(caller, now)
        if full_at < now:
            full_at = now
        full_at += n * self._per_unit
        left = self._span - (full_at - now)
        if left < -1e-9:  # tolerance of float arithmetic
            raise self.refusal(-left, n)
        self._full_at[caller] = full_at
        if len(self._full_at) > self._sweep_at:
            self._sweep(now)
        return int(left * self.rate + 1e-6)

    def refusal(self, wait_s: float, n: int) -> BurstExceeded:
        """The error for `n` units that fit after `wait_s`."""
        message = f"Too fast: {self.whose} may make {self.limit}"
        wait_s = wait_s if n <= self.size else _LONGEST_S
        return BurstExceeded(message, fields={"burst": self.limit}, retry_after_s=min(wait_s, _LONGEST_S))

    def divided(self, processes: int, *, before: Self | None = None) -> "Bursts":
        """One process's share of this limit. Its buckets are full, or as in the share of it `before`."""
        size = max(1, self.size // processes)
        made = Bursts(self.whose, rate=self.rate / processes, size=size, limit=self.limit)
        if before is not None:
            made._full_at = before._full_at  # noqa: SLF001 (of the same class)
        return made

    def full_in(self, caller: Hashable, now: float) -> float:
        """The seconds until the bucket is full; not positive if it is."""
        return self._full_at.get(caller, now) - now

    def follow(self, caller: Hashable, full_in_s: float, now: float) -> None:
        """Set the bucket as decided elsewhere. Decisions may arrive in any order:
        the latest bucket stands."""
        self._full_at[caller] = max(self._full_at.get(caller, now), now + full_in_s)
        if len(self._full_at) > self._sweep_at:
            self._sweep(now)

    def put_back(self, caller: Hashable, n: int = 1) -> None:
        """Undo a `take`, for a request that was not carried out."""
        if caller in self._full_at:
            self._full_at[caller] -= n * self._per_unit

    def __len__(self) -> int:
        return len(self._full_at)

    def _sweep(self, now: float) -> None:
        """Remove full buckets, which need no memory.
        Only callers of the last `size / rate` seconds remain."""
        self._full_at = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._full_at))


def take_each(limits: Sequence[Bursts], callers: Sequence[Hashable], n: int, now: float) -> int:
    """Take `n` units of each limit from its caller's bucket; returns how many the first has left.
    Raises BurstExceeded without taking any.
    """
    first = -1
    for index, limit in enumerate(limits):
        try:
            left = limit.take(callers[index], n, now)
        except BurstExceeded:
            for taken, caller in zip(limits[:index], callers, strict=False):
                taken.put_back(caller, n)
            raise
        if index == 0:
            first = left
    return first
