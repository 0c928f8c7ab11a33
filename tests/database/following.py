"""A change feed that runs for a test, and patience."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ximler.database.changes import Feed

__all__ = ["end", "running", "until"]


@asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(feed.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel until they are over: the driver swallows a cancellation now and then."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.5)


async def until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    """Returns once the condition holds; fails when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.005)
