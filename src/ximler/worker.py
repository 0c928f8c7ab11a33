"""The worker: the one table from a job's kind to the domain function that does it, and the loop that runs what is due; beside
it the sealer of the audit log, and what is to be done daily.

Any number of workers, in any number of processes, share the outbox. The process's change feed wakes them within
milliseconds; looking every few seconds catches what it missed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import msgspec
import structlog
from prometheus_client import Counter, Histogram

from ximler.accounts import closing, credentials, email_change, notices, registration
from ximler.accounts.keyring import Keyring
from ximler.audit import pruning
from ximler.audit.heads import KeptHead
from ximler.audit.keys import SealKeys
from ximler.audit.sealing import Sealer
from ximler.core.actor import SYSTEM
from ximler.core.errors import Invalid, NotFound, Unavailable, XimlerError
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.changes import Change, Feed
from ximler.metering.reports import alerts
from ximler.notifications import inbox
from ximler.notifications.email import Mailer
from ximler.privacy import erasure
from ximler.schema.job import OUTBOX, Job

__all__ = ["HANDLERS", "Tools", "Worker"]

_log = structlog.get_logger("ximler.worker")
_LOOK_EVERY_S = 5.0
_DAILY_LOOK_S = 3600.0
PRUNE = "audit.prune"

DONE = Counter("ximler_jobs_total", "Jobs, by what became of them.", ("kind", "outcome"))
SECONDS = Histogram("ximler_job_seconds", "Time a job took.", ("kind",), buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60))


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What handlers work with."""

    database: Database
    settings: Settings
    keyring: Keyring
    mailer: Mailer
    seal_keys: SealKeys | None = None  # without it the audit log is not sealed


Handler = Callable[[Tools, Job], Awaitable[None]]


async def _send_confirmation(tools: Tools, job: Job) -> None:
    await registration.send_link(
        tools.database, tools.keyring, tools.settings, tools.mailer, registration_id=job.payload["registrationId"]
    )


async def _send_reset(tools: Tools, job: Job) -> None:
    email = job.payload.get("typed", job.payload["email"])
    await credentials.send_reset(
        tools.database, tools.keyring, tools.settings, tools.mailer, job_id=job.id, email=email
    )


async def _send_password_changed(tools: Tools, job: Job) -> None:
    await credentials.send_changed(
        tools.database, tools.settings, tools.mailer, job_id=job.id, user_id=job.payload["userId"]
    )


async def _send_notification(tools: Tools, job: Job) -> None:
    await inbox.send(
        tools.database,
        tools.settings,
        tools.mailer,
        tools.keyring.sign,
        notification_id=job.payload["notificationId"],
        user_id=job.payload["userId"],
    )


async def _send_closed(tools: Tools, job: Job) -> None:
    await closing.send_closed(
        tools.database, tools.settings, tools.mailer, job_id=job.id, user_id=job.payload["userId"]
    )


async def _anonymise(tools: Tools, job: Job) -> None:
    await erasure.erase(tools.database, user_id=job.payload["userId"], closed_at=job.payload["closedAt"])


async def _send_email_change(tools: Tools, job: Job) -> None:
    await email_change.send_link(
        tools.database,
        tools.keyring,
        tools.settings,
        tools.mailer,
        user_id=job.payload["userId"],
        request_id=job.payload["requestId"],
    )


async def _send_notice(tools: Tools, job: Job) -> None:
    await notices.send(tools.database, tools.settings, tools.mailer, job_id=job.id, payload=job.payload)


async def _tell_usage(tools: Tools, job: Job) -> None:
    await alerts.tell(
        tools.database, job_id=job.id, quota_id=job.payload["quotaId"], threshold=job.payload["threshold"]
    )


async def _prune(tools: Tools, job: Job) -> None:  # noqa: ARG001 (a handler's signature)
    database, days = tools.database, tools.settings.audit_retention_days
    if days is None:
        return  # not any more
    if tools.seal_keys is None:
        raise Unavailable(
            "Pruning the audit log takes the key that seals it: set XIMLER_AUDIT_KEY where the worker runs"
        )
    before = database.clock.now() - timedelta(days=days)
    count = await pruning.prune(database, tools.seal_keys, SYSTEM, before=before)
    _log.info("audit log pruned", entries=count, before=before.isoformat())


HANDLERS: Mapping[str, Handler] = {
    registration.SEND_LINK: _send_confirmation,
    credentials.SEND_RESET: _send_reset,
    credentials.SEND_CHANGED: _send_password_changed,
    closing.SEND_CLOSED: _send_closed,
    closing.ANONYMISE: _anonymise,
    inbox.SEND: _send_notification,
    email_change.SEND_LINK: _send_email_change,
    notices.SEND: _send_notice,
    alerts.ALERT: _tell_usage,
    PRUNE: _prune,
}


def _sealer(tools: Tools, keys: SealKeys) -> Sealer:
    settings = tools.settings
    kept = KeptHead(settings.data_path, tools.database.name)
    return Sealer(tools.database, keys, kept=kept, may_found=settings.mongodb_uri is None)


class Worker:
    """Runs jobs until it is cancelled; a job that is under way then keeps its lease, and another worker takes it up later.

    Without a `feed` it looks for jobs every few seconds and is not woken.
    """

    def __init__(
        self, tools: Tools, *, feed: Feed | None = None, handlers: Mapping[str, Handler] = HANDLERS, at_once: int = 4
    ) -> None:
        self._tools = tools
        self._handlers = handlers
        self._at_once = at_once
        self._wake = asyncio.Event()
        self._waiting = False
        if feed is not None:
            feed.subscribe([OUTBOX.name], self._heard)
            feed.on_gap(self._wake.set)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._tools.seal_keys is not None:
                tasks.create_task(_sealer(self._tools, self._tools.seal_keys).run())
            if self._tools.settings.audit_retention_days is not None:
                tasks.create_task(self._daily())
            for _ in range(self._at_once):
                tasks.create_task(self._work())

    async def _daily(self) -> None:
        """Ask for what is done once a day, by whichever worker is first."""
        database = self._tools.database
        while True:
            with contextlib.suppress(Unavailable):
                await outbox.enqueue(database, PRUNE, {}, dedupe_key=f"{PRUNE}:{database.clock.now():%Y-%m-%d}")
            await asyncio.sleep(_DAILY_LOOK_S)

    async def run_due(self) -> int:
        """Run everything that is due now, one after the other; returns how many jobs. For commands and tests."""
        count = 0
        while (job := await self._claim()) is not None:
            await self._do(job)
            count += 1
        return count

    def _heard(self, change: Change) -> None:
        if change.operation == "insert":
            self._wake.set()

    async def _work(self) -> None:
        while True:
            try:
                job = await self._claim()
                self._waiting = False
                if job is not None:
                    await self._do(job)
                    continue
                self._wake.clear()
                pause = await self._until_due()
            except Unavailable as error:
                if not self._waiting:
                    self._waiting = True
                    _log.warning("jobs wait", reason=error.message)
                await asyncio.sleep(_LOOK_EVERY_S)  # not for a wake-up: nothing can be claimed anyway
                continue
            except (
                Exception
            ) as bug:  # a job that cannot be read, say: its lease runs out, and meanwhile the others are done
                _log.exception("worker failed", exc_info=bug)
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _claim(self) -> Job | None:
        return await outbox.claim(self._tools.database, list(self._handlers))

    async def _until_due(self) -> float:
        due = await outbox.due_at(self._tools.database)
        if due is None:
            return _LOOK_EVERY_S
        return min(max((due - self._tools.database.clock.now()).total_seconds(), 0.01), _LOOK_EVERY_S)

    async def _do(self, job: Job) -> None:
        database = self._tools.database
        log = _log.bind(job=str(job.id), kind=job.kind, attempt=job.attempts)
        if job.attempts > outbox.MAX_ATTEMPTS:
            await outbox.fail(database, job, "every worker that took it died", for_good=True)
            log.error("job dead", reason="every worker that took it died")
            return
        started = asyncio.get_running_loop().time()
        holding = asyncio.create_task(self._hold(job))
        try:
            await self._handlers[job.kind](self._tools, job)
        except XimlerError as error:
            # What is wrong with the job itself will be wrong the next time, too.
            for_good = isinstance(error, Invalid | NotFound)
            await outbox.fail(database, job, f"{error.code}: {error.message}", for_good=for_good)
            DONE.labels(job.kind, "dead" if for_good else "failed").inc()
            log.warning("job failed", reason=error.message, again=not for_good)
        except Exception as bug:
            await outbox.fail(database, job, f"{type(bug).__name__}: {bug}")
            DONE.labels(job.kind, "failed").inc()
            log.exception("job failed", exc_info=bug)
        else:
            await outbox.complete(database, job)
            DONE.labels(job.kind, "done").inc()
            log.debug("job done")
        finally:
            holding.cancel()
            SECONDS.labels(job.kind).observe(asyncio.get_running_loop().time() - started)

    async def _hold(self, job: Job) -> None:
        """Keep the lease of a job that takes long."""
        while True:
            await asyncio.sleep((outbox.LEASE / 3).total_seconds())
            with contextlib.suppress(Unavailable):
                await outbox.renew(self._tools.database, job)
