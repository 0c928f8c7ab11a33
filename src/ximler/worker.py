"""The worker: runs the jobs that are due. Beside it the scheduler, which enqueues jobs by the clock.

Any number of workers, in any number of processes, share the outbox. The process's change feed wakes them
within milliseconds; polling every few seconds finds the rest. Jobs of a kind that this process does not know
are left to other processes.
"""

import asyncio
import contextlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any, get_type_hints

import msgspec
import structlog
from prometheus_client import Counter, Histogram

import ximler
from ximler.accounts.keyring import Keyring
from ximler.audit import keys
from ximler.audit.keys import SealKeys
from ximler.core import extensions
from ximler.core.errors import Invalid, NotFound, Unavailable, XimlerError
from ximler.core.settings import Settings
from ximler.core.stopping import end, pause
from ximler.database import Database, outbox
from ximler.database.changes import Change, Feed
from ximler.database.codec import UnreadableDocument
from ximler.database.outbox import Handler
from ximler.notifications import inbox
from ximler.notifications.email import Mailer, mailer
from ximler.runtime import BACKGROUND, Part, background
from ximler.schema.job import OUTBOX, Job

__all__ = ["Tools", "Worker", "background_parts", "equip", "schedule"]

_log = structlog.get_logger("ximler.worker")
_LOOK_EVERY_S = 5.0
_CONCLUDE_AGAIN_S = (0.2, 1.0, 3.0)
_NO_DOMAINS = frozenset(
    {"__main__", "app", "cli", "console", "core", "embedded", "graphql", "http", "runtime", "schema", "worker"}
)

DONE = Counter("ximler_jobs_total", "Jobs, by outcome.", ("kind", "outcome"))
SECONDS = Histogram("ximler_job_seconds", "Time a job took.", ("kind",), buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60))


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """The objects that jobs and background parts work with. A keyword parameter gets the one of its annotated
    type.
    """

    database: Database
    settings: Settings
    keyring: Keyring
    mailer: Mailer
    seal_keys: SealKeys | None = None  # without it the audit log is not sealed
    feed: Feed | None = None

    def by_type(self) -> dict[Any, Any]:
        found = {hint: getattr(self, name) for name, hint in _hints().items()}
        return found | {inbox.Sign: self.keyring.sign, Feed: self.feed}


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Tools)


def equip(settings: Settings, *, background: bool = True) -> partial[Tools]:
    """Tools without their database: all that settings decide. Raises SettingsError for settings that cannot
    work.
    """
    seal_keys = keys.find(settings) if background else None
    return partial(Tools, settings=settings, keyring=Keyring(settings), mailer=mailer(settings), seal_keys=seal_keys)


@cache
def discover() -> None:
    """Import every module of every domain, so that each job and each background part is registered."""
    for package in pkgutil.iter_modules(ximler.__path__):
        if package.ispkg and package.name not in _NO_DOMAINS:
            root = import_module(f"ximler.{package.name}")
            for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
                import_module(module.name)
    extensions.modules("jobs")


def background_parts(tools: Tools) -> list[Part]:
    """The parts of a process that does background work, the worker among them."""
    discover()
    supply = tools.by_type() | {Tools: tools}
    made: list[Part] = []
    for factory in BACKGROUND:
        hints = get_type_hints(factory)
        found = factory(**{name: supply[hint] for name, hint in hints.items() if name != "return"})
        made += found if isinstance(found, tuple) else () if found is None else (found,)
    return made


@background
def _worker(*, tools: Tools) -> Part:
    return Part("worker", Worker(tools).run)


@background
def _scheduler(*, database: Database) -> Part:
    return Part("scheduler", partial(schedule, database), lease=True)


async def schedule(database: Database, stop: asyncio.Event) -> None:
    """Enqueue scheduled jobs when they are due, and missed ones at once."""
    due = {scheduled.kind.name: database.clock.now() for scheduled in outbox.SCHEDULES}
    while not stop.is_set():
        now = database.clock.now()
        with contextlib.suppress(Unavailable):  # the worker logs the outage
            for scheduled in outbox.SCHEDULES:
                if due[scheduled.kind.name] <= now:
                    due[scheduled.kind.name] = await scheduled.enqueue(database)
        await pause(stop, _LOOK_EVERY_S)


class Worker:
    """Runs up to `at_once` jobs concurrently. On stop it claims no more jobs and finishes the running ones.

    A cancelled job keeps its lease; another worker takes it over when the lease expires. Without a feed it
    polls.
    """

    def __init__(
        self, tools: Tools, *, handlers: Mapping[str, Handler[Any]] = outbox.HANDLERS, at_once: int = 4
    ) -> None:
        discover()
        self._tools = tools
        self._database = tools.database
        self._by_type = tools.by_type()
        self._handlers = handlers
        self._at_once = at_once
        self._wake = asyncio.Event()
        if tools.feed is not None:
            tools.feed.subscribe([OUTBOX.name], self._heard)
            tools.feed.on_gap(self._wake.set)

    async def run(self, stop: asyncio.Event) -> None:
        running: set[asyncio.Task[None]] = set()
        unreachable = False
        try:
            while not stop.is_set():
                self._wake.clear()  # before looking: a job that is enqueued, or ends, meanwhile sets it again
                running = _checked(running)
                wait_s: float | None = None
                try:
                    if len(running) < self._at_once:
                        job = await self._claim()
                        if job is not None:
                            running.add(asyncio.create_task(self._do(job), name=f"job {job.kind}"))
                            continue
                        wait_s = await self._until_due()
                    unreachable = False
                except Unavailable as error:
                    if not unreachable:
                        _log.warning("jobs wait", reason=error.message)
                    unreachable = True
                    await pause(stop, _LOOK_EVERY_S)
                    continue
                await pause(stop, wait_s, self._wake)
            if running:
                await asyncio.wait(running)
            _checked(running)
        finally:
            await end(running)

    async def run_due(self) -> int:
        """Run everything that is due now, one after the other;
        returns how many jobs. For commands and tests."""
        count = 0
        while (job := await self._claim()) is not None:
            await self._do(job)
            count += 1
        return count

    def _heard(self, change: Change) -> None:
        if change.operation == "insert":
            self._wake.set()

    async def _claim(self) -> Job | None:
        while True:
            try:
                return await outbox.claim(self._database, list(self._handlers))
            except UnreadableDocument as problem:  # it is claimed, and left until its lease expires
                _log.error("job cannot be read", reason=problem.message)

    async def _until_due(self) -> float:
        due = await outbox.due_at(self._database, list(self._handlers))
        if due is None:
            return _LOOK_EVERY_S
        return min(max((due - self._database.clock.now()).total_seconds(), 0.01), _LOOK_EVERY_S)

    async def _do(self, job: Job) -> None:
        try:
            await self._work(job)
        finally:
            self._wake.set()

    async def _work(self, job: Job) -> None:
        database = self._database
        log = _log.bind(job=str(job.id), kind=job.kind, attempt=job.attempts)
        if job.attempts > outbox.MAX_ATTEMPTS:
            await _conclude(partial(outbox.fail, database, job, "every worker that took it died", for_good=True))
            log.error("job dead", reason="every worker that took it died")
            return
        started = asyncio.get_running_loop().time()
        handler = self._handlers[job.kind]
        supply = self._by_type | {Job: job}
        holding = asyncio.create_task(self._hold(job))
        try:
            await handler.run(job, {name: supply[hint] for name, hint in handler.wanted.items()})
        except XimlerError as error:
            # An error of the job itself will be there the next time, too.
            for_good = isinstance(error, Invalid | NotFound)
            await _conclude(partial(outbox.fail, database, job, f"{error.code}: {error.message}", for_good=for_good))
            DONE.labels(job.kind, "dead" if for_good else "failed").inc()
            log.warning("job failed", reason=error.message, again=not for_good)
        except Exception as bug:
            await _conclude(partial(outbox.fail, database, job, f"{type(bug).__name__}: {bug}"))
            DONE.labels(job.kind, "failed").inc()
            log.exception("job failed", exc_info=bug)
        else:
            await _conclude(partial(outbox.complete, database, job, kept=handler.kept))
            DONE.labels(job.kind, "done").inc()
            log.debug("job done")
        finally:
            await end([holding])
            SECONDS.labels(job.kind).observe(asyncio.get_running_loop().time() - started)

    async def _hold(self, job: Job) -> None:
        """Renew the lease of a job that takes long, until cancelled or lost."""
        never = asyncio.Event()
        held = True
        while held:
            await pause(never, (outbox.LEASE / 3).total_seconds())
            try:
                held = await outbox.renew(self._database, job)
            except Exception as problem:  # the job goes on; another worker may do it, too
                _log.warning("job's lease not renewed", job=str(job.id), reason=str(problem))


def _checked(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """The running tasks. Raises the error of a task that could not store its job's outcome."""
    for task in running:
        if task.done() and not task.cancelled() and (problem := task.exception()):
            raise problem
    return {task for task in running if not task.done()}


async def _conclude(write: Callable[[], Any]) -> None:
    """Store a job's outcome, with retries if the database is unavailable.
    A job without outcome runs again."""
    never = asyncio.Event()
    for delay in (*_CONCLUDE_AGAIN_S, None):
        try:
            await write()
            return
        except Unavailable as error:
            if delay is None:
                _log.warning("job's outcome not stored", reason=error.message)
                return
            await pause(never, delay)
