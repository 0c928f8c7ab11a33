"""Pauses that end when they should, and tasks that are ended however they resist."""

import asyncio
import time

import pytest

from ximler.core.stopping import end, pause


async def test_a_pause_lasts_its_time_and_says_whether_to_stop():
    stop = asyncio.Event()
    began = time.monotonic()
    assert not await pause(stop, 0.05)
    assert time.monotonic() - began >= 0.045
    stop.set()
    assert await pause(stop, 60)


async def test_a_pause_ends_at_once_when_it_is_to_stop_or_to_wake():
    stop, wake = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_later(0.02, wake.set)
    assert not await pause(stop, None, wake)
    wake.clear()
    loop.call_later(0.02, stop.set)
    began = time.monotonic()
    assert await pause(stop, 60, wake)
    assert time.monotonic() - began < 5


async def test_a_pause_swallows_no_cancellation_however_close_to_its_end():
    """`wait_for` of Python 3.11 does, when both come at once."""
    for delay in range(40):
        wake = asyncio.Event()
        task = asyncio.create_task(pause(asyncio.Event(), None, wake))
        await asyncio.sleep(0)
        for _ in range(delay % 4):
            await asyncio.sleep(0)
        wake.set()
        for _ in range(delay % 3):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_a_pause_leaves_no_task_behind():
    before = asyncio.all_tasks()
    await pause(asyncio.Event(), 0, asyncio.Event())
    await asyncio.sleep(0)
    assert not asyncio.all_tasks() - before


async def test_a_task_that_swallows_cancellations_is_ended_all_the_same():
    async def stubborn(times):
        for _ in range(times):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def failing():
        raise ZeroDivisionError

    tasks = [asyncio.create_task(stubborn(2)), asyncio.create_task(failing())]
    await asyncio.sleep(0)  # they have begun
    assert not await end(tasks)


async def test_a_task_that_never_ends_is_returned():
    release = asyncio.Event()

    async def deaf():
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    assert await end([task], patience_s=0.5) == {task}
    release.set()
    await task
