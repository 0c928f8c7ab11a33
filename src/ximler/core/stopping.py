"""How background work is asked to stop, and how a task that does not is ended.

A loop checks its stop event and returns; it never relies on cancellation, because Python 3.11's `wait_for`
and the database driver each swallow one now and then. `end` is the last resort, and so cancels repeatedly.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["end", "pause"]

_AGAIN_S = 0.2


async def pause(stop: asyncio.Event, seconds: float | None, *wake: asyncio.Event) -> bool:
    """Wait until `stop` or an event of `wake` is set, or the time is over; returns whether `stop` is set.

    Without `seconds` only an event ends it. A cancellation is raised, never swallowed.
    """
    if not stop.is_set() and not any(event.is_set() for event in wake):
        waiting = [asyncio.ensure_future(event.wait()) for event in (stop, *wake)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
    return stop.is_set()


async def end(tasks: "Iterable[asyncio.Future[Any]]", *, patience_s: float | None = None) -> "set[asyncio.Future[Any]]":
    """Cancel the tasks repeatedly until all have ended; returns those that have not after `patience_s`.
    Suppresses their errors.
    """
    running = {task for task in tasks if not task.done()}
    loop = asyncio.get_running_loop()
    deadline = None if patience_s is None else loop.time() + patience_s
    while running and (deadline is None or loop.time() < deadline):
        for task in running:
            task.cancel()
        left_s = _AGAIN_S if deadline is None else min(_AGAIN_S, deadline - loop.time())
        _, running = await asyncio.wait(running, timeout=left_s)
    return running
