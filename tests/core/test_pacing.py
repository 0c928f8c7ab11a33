"""Pacing: long work leaves the event loop to others."""

import asyncio
import time

from ximler.core import pacing


async def busy(steps: int) -> None:
    for _ in range(steps):
        await pacing.yield_turn()
        until = time.thread_time() + 0.0002
        while time.thread_time() < until:
            pass


async def others_runs(work: asyncio.Task[None]) -> int:
    count = 0
    while not work.done():
        await asyncio.sleep(0)
        count += 1
    return count


async def test_others_run_between_the_turns_of_work_that_somebody_waits_for() -> None:
    assert await others_runs(asyncio.create_task(busy(200))) >= 30


async def test_tasks_of_unhurried_work_rest_together_for_half_of_the_time() -> None:
    async def work() -> None:
        await asyncio.gather(*(busy(50) for _ in range(4)))

    began, used = time.monotonic(), time.thread_time()
    await pacing.unhurried(work())
    used = time.thread_time() - used
    assert time.monotonic() - began >= 1.7 * used


async def test_work_that_is_seldom_busy_does_not_rest() -> None:
    slept = 0.0

    async def work() -> None:
        nonlocal slept
        for _ in range(20):
            began = time.monotonic()
            await asyncio.sleep(0.002)
            slept += time.monotonic() - began
            await pacing.yield_turn()

    began = time.monotonic()
    await pacing.unhurried(work())
    assert time.monotonic() - began < slept + 0.03
