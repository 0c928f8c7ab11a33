"""The runtime: the named parts of a process that run beside requests, from start to the end of draining.

    @runtime.background
    def _settler(*, database: Database, feed: Feed) -> Part:
        return Part("metering.settler", Settler(database, feed).run, lease=True)

A part is a loop that returns once its stop event is set (`core.stopping.pause`), and handles `Unavailable`
itself. A part that raises another exception, or returns early, is logged, counted, shown on `/readyz` and
restarted with backoff. With `lease` it runs in one process at a time (`database.leases`): it is started for
each lease, and must not rely on earlier state.

Parts stop in stages. Those of `Stage.WORK` stop when shutdown begins, while requests still drain; those that
requests depend on stop afterwards. A part that does not return in time is cancelled repeatedly until it ends;
`close` is always called. `Shutdown` handles signals, and its watchdog thread ends a process that does not end
by itself.
"""

import asyncio
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from enum import IntEnum
from typing import Any

import msgspec
import structlog
from prometheus_client import Counter, Gauge

from ximler.core.errors import XimlerError
from ximler.core.stopping import end, pause
from ximler.database import Database, leases

__all__ = ["BACKGROUND", "Part", "Runtime", "Shutdown", "Stage", "background"]

_log = structlog.get_logger("ximler.runtime")

FAILURES = Counter(
    "ximler_part_failures_total", "Times that a part of the process failed and was restarted.", ("part",)
)
FAILING = Gauge("ximler_parts_failing", "Processes in which a part fails.", ("part",), multiprocess_mode="livesum")

GRACE_S = 5.0  # after draining, until the watchdog ends the process
_FIRST_RESTART_S = 0.5
_LONGEST_RESTART_S = 60.0
_WELL_AFTER_S = 10.0  # a part that has run for so long is no longer failing
_LATE_S = 0.3  # grace for work that outlasts the drain time
_CLOSE_S = 1.5
_HUNG = 70

Stop = asyncio.Event


class Stage(IntEnum):
    """When a part stops: with the beginning of shutdown, after the last request, or last."""

    WORK = 0
    SERVE = 1
    FEED = 2


class Part(msgspec.Struct, frozen=True, kw_only=False):
    """A named loop. `close` is called once, after the loop, however that ended;
    `lease` makes it a singleton; `granted` is called with each new lease, before the loop."""

    name: str
    run: Callable[[Stop], Awaitable[object]]
    close: Callable[[], Awaitable[object]] | None = None
    stage: Stage = Stage.WORK
    lease: bool = False
    granted: Callable[[leases.Lease], object] | None = None


Factory = Callable[..., Part | tuple[Part, ...] | None]
BACKGROUND: list[Factory] = []


def background(factory: Factory) -> Factory:
    """Register one or more parts of processes that do background work. Keyword parameters are supplied as for
    jobs.

    The factory returns None if the settings disable the part.
    """
    BACKGROUND.append(factory)
    return factory


class Shutdown:
    """The shutdown of a process, requested by SIGINT or SIGTERM (`listen`) or by `ask`. Create it in the
    event loop.
    """

    def __init__(self, drain_seconds: float, *, grace_s: float = GRACE_S) -> None:
        self.asked = asyncio.Event()
        self.failed: XimlerError | None = None  # why the process ends
        self.signal: int | None = None  # the first signal received
        self.drain_seconds = drain_seconds
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._deadline: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds until draining is over."""
        if self._deadline is None:
            return self.drain_seconds
        return max(0.0, self._deadline - time.monotonic())

    def begin(self) -> None:
        """Start draining, without the watchdog."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.drain_seconds
        self.asked.set()

    def ask(self, number: int | None = None, _frame: object = None) -> None:
        """End this process. Safe as a signal handler, and in any thread."""
        if self.signal is None:
            self.signal = number
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self._loop.call_soon_threadsafe(self.begin)

    def listen(self, *numbers: signal.Signals) -> None:
        for number in numbers or (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def _watch(self) -> None:
        time.sleep(self.drain_seconds + self._grace_s)
        # In a thread of its own: a reader of standard error that does not read must not keep the process.
        reporting = threading.Thread(target=self._report, daemon=True)
        reporting.start()
        reporting.join(0.5)
        os._exit(_HUNG)

    def _report(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        own = {threading.get_ident()}
        threads = {
            f"{names.get(ident, '?')} ({ident})": _frames(traceback.extract_stack(frame))
            for ident, frame in sys._current_frames().items()  # noqa: SLF001 (the way to see other threads' stacks)
            if ident not in own and names.get(ident) != "watchdog"
        }
        tasks = {}
        for task in list(asyncio.all_tasks(self._loop)):
            frames = [frame for top in task.get_stack() for frame in traceback.extract_stack(top)[-1:]]
            tasks[task.get_name()] = [repr(task.get_coro())[:120], *_frames(frames)]
        _log.error("process hangs and is ended", exit_code=_HUNG, tasks=tasks, threads=threads)


def _frames(stack: Iterable[traceback.FrameSummary]) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in stack][-12:]


class _Running:
    """A part under supervision."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.stop = asyncio.Event()
        self.failing = False
        self.attempt: asyncio.Future[Any] | None = None  # the part's own task
        self.supervising: asyncio.Future[None] | None = None


class Runtime:
    """Runs parts until `close`. Parts of `Stage.WORK` stop as soon as `shutdown` is requested."""

    def __init__(self, parts: Iterable[Part], *, database: Database | None = None, shutdown: Shutdown) -> None:
        self._database = database
        self._shutdown = shutdown
        self._running = [_Running(part) for part in parts]
        self._closing: asyncio.Future[None] | None = None
        if len({running.part.name for running in self._running}) != len(self._running):
            raise ValueError("Two parts have the same name")

    @property
    def failing(self) -> list[str]:
        """The names of the parts that have failed lately."""
        return [running.part.name for running in self._running if running.failing]

    def start(self) -> None:
        for running in self._running:
            running.supervising = asyncio.ensure_future(self._supervise(running))
        self._closing = asyncio.ensure_future(self._stop_work())

    async def close(self) -> None:
        """Stop and close every part, within the rest of the drain time plus two seconds."""
        self._shutdown.begin()
        if self._closing is not None:
            await asyncio.wait([self._closing])
        for stage in (Stage.SERVE, Stage.FEED):
            await self._stop(stage)

    async def _stop_work(self) -> None:
        await self._shutdown.asked.wait()
        await self._stop(Stage.WORK)

    async def _stop(self, stage: Stage) -> None:
        stopping = [running for running in self._running if running.part.stage == stage]
        for running in stopping:
            running.stop.set()
        if waiting := [running.supervising for running in stopping if running.supervising is not None]:
            await asyncio.wait(waiting, timeout=max(self._shutdown.left_s, _LATE_S))
        late = [running for running in stopping if running.attempt is not None and not running.attempt.done()]
        if late:
            _log.warning("parts cancelled", parts=[running.part.name for running in late])
            if hung := await end([running.attempt for running in late if running.attempt], patience_s=2 * _LATE_S):
                names = [running.part.name for running in late if running.attempt in hung]
                _log.error("parts do not end", parts=names)
        await asyncio.gather(*(self._close(running.part) for running in stopping))

    async def _close(self, part: Part) -> None:
        if part.close is None:
            return
        closing = asyncio.ensure_future(part.close())
        await asyncio.wait([closing], timeout=max(self._shutdown.left_s, _CLOSE_S))
        if await end([closing], patience_s=_LATE_S) or closing.cancelled():
            _log.error("part not closed", part=part.name, reason="it took too long")
        elif problem := closing.exception():
            _log.error("part not closed", part=part.name, exc_info=problem)

    async def _supervise(self, running: _Running) -> None:
        part, stop = running.part, running.stop
        delay = _FIRST_RESTART_S
        while not stop.is_set():
            attempt = running.attempt = asyncio.ensure_future(self._attempt(part, stop))
            attempt.set_name(part.name)
            began = time.monotonic()
            done, _ = await asyncio.wait([attempt], timeout=_WELL_AFTER_S)
            if not done:
                self._mark(running, failing=False)
                await asyncio.wait([attempt])
            problem = None if attempt.cancelled() else attempt.exception()
            if stop.is_set():
                if problem is not None:
                    _log.error("part failed", part=part.name, exc_info=problem)
                break
            FAILURES.labels(part.name).inc()
            self._mark(running, failing=True)
            if time.monotonic() - began > _WELL_AFTER_S + 2 * delay:
                delay = _FIRST_RESTART_S
            again_s = delay * random.uniform(0.75, 1.25)  # noqa: S311 (jitter)
            why: dict[str, Any] = {"exc_info": problem} if problem is not None else {"reason": "it ended unasked"}
            if isinstance(problem, XimlerError):
                why = {"reason": problem.message}
            _log.error("part failed", part=part.name, again_in_s=round(again_s, 1), **why)
            delay = min(2 * delay, _LONGEST_RESTART_S)
            await pause(stop, again_s)
        self._mark(running, failing=False)

    async def _attempt(self, part: Part, stop: Stop) -> None:
        if not part.lease or self._database is None:
            await part.run(stop)
            return
        while not stop.is_set():
            async with leases.hold(self._database, part.name, stop=stop) as lease:
                if lease is None:
                    return
                if part.granted is not None:
                    part.granted(lease)
                await part.run(lease.ended)
                if not lease.ended.is_set():
                    return  # unasked

    def _mark(self, running: _Running, *, failing: bool) -> None:
        if running.failing != failing:
            running.failing = failing
            FAILING.labels(running.part.name).set(int(failing))
            if not failing and not running.stop.is_set():
                _log.info("part recovered", part=running.part.name)
