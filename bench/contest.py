"""Contestants take turns, so that other load on the machine affects all of them equally."""

import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import msgspec

__all__ = ["Contestant", "compete", "frozen", "percentile", "ratio", "timed"]


class Contestant(msgspec.Struct, frozen=True):
    """`run` does the work once and returns the seconds that its timed part took."""

    name: str
    run: Callable[[], Awaitable[float]]


async def compete(contestants: Sequence[Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds by contestant, a round each: A B C, B C A, … after one to warm up.

    Objects from before the first round are frozen, so that no contestant's garbage collection pays for
    another's imports.
    """
    for contestant in contestants:
        await contestant.run()
    samples: dict[str, list[float]] = {contestant.name: [0.0] * rounds for contestant in contestants}
    with frozen():
        for turn in range(rounds):
            first = turn % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                samples[contestant.name][turn] = await contestant.run()
    return samples


@contextmanager
def frozen() -> Iterator[None]:
    """Leave objects from before out of garbage collections, as `ximler up` does with those of its start."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median, over the rounds, of ours ÷ theirs: a load that comes and goes hits both sides of a round
    alike.
    """
    return median(mine / other for mine, other in zip(ours, theirs, strict=True))


def percentile(samples: Sequence[float], percent: int) -> float:
    """Of at least two samples, and never beyond the largest."""
    return quantiles(samples, n=100, method="inclusive")[percent - 1]


async def timed(work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """Seconds and result. Garbage of those before is collected first,
    outside the time; within it, as always."""
    gc.collect()
    began = time.perf_counter()
    result = await work()
    return time.perf_counter() - began, result
