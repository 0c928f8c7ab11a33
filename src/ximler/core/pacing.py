"""The pace of long work that shares its event loop with requests, which wait while the loop is busy.

    for each in documents:
        await pacing.yield_turn()
        prepare(each)

Long work is divided into turns of a millisecond, between which others run. Work for which nobody waits
(`unhurried`: all scheduled jobs) rests after each turn for as long as the turn took. Its tasks share the
turns, so together they take half of the loop's time at most. A turn is measured by the processor time of the
thread, so the work rests more while the loop is busy with requests.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["unhurried", "yield_turn"]

T = TypeVar("T")
_TURN_S = 0.001
_LONGEST_REST_S = 0.02


class _Pace:
    """The turns of one piece of work, which several tasks may share. Times are of the thread's processor."""

    def __init__(self, *, rests: bool) -> None:
        self._rests = rests
        self._began: float | None = None  # None between turns
        self._rest_ends = 0.0  # by the clock

    async def yield_turn(self) -> None:
        left = self._rest_ends - time.monotonic()
        if left <= 0:
            if self._began is None:
                self._began = time.thread_time()
            taken = time.thread_time() - self._began
            if taken < _TURN_S:
                return
            left = min(taken, _LONGEST_REST_S) if self._rests else 0
            self._began, self._rest_ends = None, time.monotonic() + left
        await asyncio.sleep(left)


_HURRIED = _Pace(rests=False)
_PACE: ContextVar[_Pace] = ContextVar("pace", default=_HURRIED)


async def yield_turn() -> None:
    """Let others run if the turn is over. Costs less than a microsecond otherwise."""
    await _PACE.get().yield_turn()


async def unhurried(work: Awaitable[T]) -> T:
    """Perform work that rests after each turn, as do the tasks that it starts."""
    token = _PACE.set(_Pace(rests=True))
    try:
        return await work
    finally:
        _PACE.reset(token)
