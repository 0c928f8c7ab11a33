"""The outbox: jobs written in the change's own transaction, claimed with a lease, retried with backoff.

    class Closed(Document, kw_only=True):
        user_id: ObjectId

    @outbox.job("accounts.send_closed", Closed)
    async def send_closed(payload: Closed, *, database: Database, mailer: Mailer) -> None: ...

    await send_closed.enqueue(transaction, Closed(user_id=user.id))

The decorator is a job's only registration. The worker supplies keyword parameters by their annotated type
(see `ximler.worker.Tools`); `job: Job` is the claimed job itself. `outbox.daily` and `outbox.every` register
jobs enqueued by the clock, once for all processes. A domain below the one that does the work declares the
kind with `outbox.job` and enqueues; the higher one uses it as the decorator.

A job runs at least once: if a worker dies after its effect, the job's lease expires and another worker
repeats it. So a job's effect is idempotent where possible. A job with a `dedupe_key` is enqueued once, for as
long as the first is kept.
"""

import random
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Generic, TypeVar, get_type_hints

from bson import ObjectId

from ximler.core import pacing
from ximler.core.clock import EPOCH
from ximler.core.errors import Conflict, NotFound
from ximler.core.ids import Position
from ximler.database import mixed
from ximler.database.codec import codec_of
from ximler.database.collection import Page
from ximler.database.connection import Database
from ximler.database.failures import DocumentExists
from ximler.schema.document import Document
from ximler.schema.job import OUTBOX, Job, JobStatus

__all__ = [
    "HANDLERS",
    "LEASE",
    "MAX_ATTEMPTS",
    "SCHEDULES",
    "Handler",
    "Job",
    "Kind",
    "Nothing",
    "Schedule",
    "cancel",
    "claim",
    "complete",
    "daily",
    "due_at",
    "enqueue",
    "every",
    "fail",
    "forget",
    "job",
    "page",
    "renew",
    "retry",
    "trim",
    "unfinished",
]

P = TypeVar("P", bound=Document)
Work = Callable[..., Awaitable[object]]

LEASE = timedelta(seconds=60)
MAX_ATTEMPTS = 12  # over about nine hours
_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 2 * 3600.0
_MAX_ERROR = 1000
_DAY = timedelta(days=1)
_COUNTED = {"attempts": {"$type": "number"}}  # a job without it cannot be claimed, and would hold up all others


class Nothing(Document, kw_only=True):
    """An empty payload, for example of a scheduled job."""


class Kind(Generic[P]):
    """A kind of job and its payload. As a decorator, it registers the function that runs such jobs.

    `kept`: finished jobs are kept for a week. Jobs that anybody can cause are not, and their number is
    limited (`trim`): their payload has the `network` that caused them.
    """

    def __init__(self, name: str, payload: type[P], *, kept: bool = True) -> None:
        self.name = name
        self.payload = payload
        self.kept = kept

    def __call__(self, function: Work) -> "Handler[P]":
        return Handler(self, function)

    async def enqueue(
        self, database: Database, payload: P, *, dedupe_key: str | None = None, run_at: datetime | None = None
    ) -> None:
        """Enqueue a job, in the transaction that `database` is bound to, if any. See `outbox.enqueue`."""
        raw = codec_of(self.payload).encode(payload, database.clock.now().replace(tzinfo=None))
        await enqueue(database, self.name, mixed.native(raw), dedupe_key=dedupe_key, run_at=run_at)


class Handler(Kind[P]):
    """The function that runs the jobs of a kind. It can be called directly, too."""

    def __init__(self, kind: Kind[P], function: Work, *, scheduled: bool = False) -> None:
        super().__init__(kind.name, kind.payload, kept=kind.kept)
        if HANDLERS.setdefault(self.name, self) is not self:
            raise ValueError(f"{self.name!r} has two handlers")
        self.function = function
        self.scheduled = scheduled  # nobody waits for it

    def __call__(self, *given: Any, **tools: Any) -> Any:
        work = self.function(*given, **tools)
        return pacing.unhurried(work) if self.scheduled else work

    @cached_property
    def wanted(self) -> dict[str, Any]:
        """The keyword parameters that the worker supplies, by name, with their types."""
        keywords = self.function.__kwdefaults__ or {}
        hints = get_type_hints(self.function)
        names = self.function.__code__.co_varnames[self.function.__code__.co_argcount :]
        return {name: hints[name] for name in names[: self.function.__code__.co_kwonlyargcount] if name not in keywords}

    async def run(self, job: Job, tools: dict[str, Any]) -> None:
        """Run a job. Raises UnreadableDocument for a payload of another version, and the errors of the
        function.
        """
        payload = () if self.payload is Nothing else (codec_of(self.payload).decode(dict(job.payload)),)
        await self(*payload, **tools)


class Schedule:
    """Enqueue a job in every interval, counted from midnight UTC, at an offset into it."""

    def __init__(self, kind: Kind[Nothing], interval: timedelta, offset: timedelta) -> None:
        if not timedelta(0) <= offset < interval <= _DAY:  # the key of a finished job is forgotten after a week
            raise ValueError("A schedule's interval is a day at most, and its offset less than the interval")
        self.kind = kind
        self.interval = interval
        self.offset = offset

    def latest(self, now: datetime) -> datetime:
        """The time when the job was last due. A missed job is enqueued late, once."""
        return now - (now - EPOCH - self.offset) % self.interval

    async def enqueue(self, database: Database) -> datetime:
        """Enqueue the last due job, unless it is enqueued already;
        returns when the next is due. One command."""
        due = self.latest(database.clock.now())
        moment = f"{due:%Y-%m-%d}" if self.interval == _DAY else f"{due:%Y-%m-%dT%H:%M:%S}"
        await self.kind.enqueue(database, Nothing(), dedupe_key=f"{self.kind.name}:{moment}")
        return due + self.interval


HANDLERS: dict[str, Handler[Any]] = {}
SCHEDULES: list[Schedule] = []


def job(name: str, payload: type[P], *, kept: bool = True) -> Kind[P]:
    """A kind of job, and the decorator of its function: `async def f(payload, *, database: Database)`."""
    return Kind(name, payload, kept=kept)


def daily(name: str, *, hour: int) -> Callable[[Work], Handler[Nothing]]:
    """Decorator of a job that runs every day at an hour UTC. The function takes no payload."""
    return every(name, _DAY, offset=timedelta(hours=hour))


def every(name: str, interval: timedelta, *, offset: timedelta = timedelta(0)) -> Callable[[Work], Handler[Nothing]]:
    """Decorator of a job that runs in every interval of at most a day, counted from midnight UTC. It takes no
    payload.
    """

    def register(function: Work) -> Handler[Nothing]:
        handler = Handler(Kind(name, Nothing), function, scheduled=True)
        SCHEDULES.append(Schedule(handler, interval, offset))
        return handler

    return register


async def enqueue(
    database: Database,
    kind: str,
    payload: dict[str, Any],
    *,
    dedupe_key: str | None = None,
    run_at: datetime | None = None,
) -> None:
    """Enqueue a job, in the transaction that `database` is bound to, if any. One command.

    With a known `dedupe_key` nothing is enqueued. Inside a transaction a duplicate key would abort it, so
    there the key is looked up first (one more command).
    """
    if dedupe_key and database.session is not None and await database[OUTBOX].find_one({"dedupeKey": dedupe_key}):
        return
    job = Job(kind=kind, payload=payload, dedupe_key=dedupe_key, run_at=run_at or database.clock.now())
    try:
        await database[OUTBOX].insert(job)
    except DocumentExists:
        if database.session is not None:
            raise


async def claim(database: Database, kinds: Sequence[str], *, lease: timedelta = LEASE) -> Job | None:
    """Lease the job that has been due longest to the caller, or return None. One guarded command, safe to
    race.

    `leased_by` identifies the claim: `complete`, `fail` and `renew` apply only while the job carries it.
    """
    now = database.clock.now()
    return await database[OUTBOX].find_and_patch(
        {"status": {"$in": ["PENDING", "RUNNING"]}, "runAt": {"$lte": now}, "kind": {"$in": list(kinds)}, **_COUNTED},
        {
            "$set": {"status": "RUNNING", "runAt": now + lease, "leasedBy": secrets.token_hex(8)},
            "$inc": {"attempts": 1},
        },
        sort=[("runAt", 1)],
    )


async def renew(database: Database, job: Job, *, lease: timedelta = LEASE) -> bool:
    """Extend a long job's lease; False when it is lost."""
    return await database[OUTBOX].patch(_mine(job), {"$set": {"runAt": database.clock.now() + lease}})


async def complete(database: Database, job: Job, *, kept: bool = True) -> bool:
    """Mark it done, or remove it; False when the lease had expired and another worker has it."""
    if not kept:
        return await database[OUTBOX].delete(_mine(job))
    return await database[OUTBOX].patch(
        _mine(job),
        {"$set": {"status": "DONE", "doneAt": database.clock.now()}, "$unset": {"leasedBy": "", "lastError": ""}},
    )


async def fail(database: Database, job: Job, error: str, *, for_good: bool = False) -> bool:
    """Schedule a retry with exponential backoff; after `MAX_ATTEMPTS`, or `for_good`, the job is dead."""
    dead = for_good or job.attempts >= MAX_ATTEMPTS
    delay = min(_FIRST_RETRY_S * 2 ** (job.attempts - 1), _LONGEST_RETRY_S) * random.uniform(0.75, 1.25)  # noqa: S311 (jitter)
    return await database[OUTBOX].patch(
        _mine(job),
        {
            "$set": {
                "status": "DEAD" if dead else "PENDING",
                "runAt": database.clock.now() + timedelta(seconds=delay),
                "lastError": error[:_MAX_ERROR],
            },
            "$unset": {"leasedBy": ""},
        },
    )


async def due_at(database: Database, kinds: Collection[str]) -> datetime | None:
    """When the next job of these kinds is due. Other kinds are left to processes that know them."""
    waiting = {"status": {"$in": ["PENDING", "RUNNING"]}, "kind": {"$in": list(kinds)}}
    found = await database[OUTBOX].find(waiting, sort=[("runAt", 1)], limit=1)
    return found[0].run_at if found else None


async def page(
    database: Database, *, status: JobStatus | None = None, first: int = 20, after: Position | None = None
) -> Page[Job]:
    """Jobs, newest first."""
    return await database[OUTBOX].page({"status": status} if status else {}, first=first, after=after)


async def retry(database: Database, job_id: ObjectId) -> Job:
    """Make a dead, cancelled or waiting job due now, with all attempts. Raises NotFound, Conflict while it
    runs.
    """
    fresh = {"status": "PENDING", "runAt": database.clock.now(), "attempts": 0}
    where = {"_id": job_id, "status": {"$in": ["DEAD", "CANCELLED", "PENDING"]}}
    return await _changed(database, job_id, where, {"$set": fresh})


async def cancel(database: Database, job_id: ObjectId) -> Job:
    """Cancel a waiting or dead job. Raises NotFound, Conflict when it is running or done."""
    where = {"_id": job_id, "status": {"$in": ["PENDING", "DEAD"]}}
    now = database.clock.now()
    return await _changed(database, job_id, where, {"$set": {"status": "CANCELLED", "doneAt": now}})


async def unfinished(database: Database, kind: str) -> list[Job]:
    """The jobs of a kind that wait, run or are dead."""
    undone: list[JobStatus] = ["PENDING", "RUNNING", "DEAD"]
    return await database[OUTBOX].find({"status": {"$in": undone}, "kind": kind})


async def forget(database: Database, user_id: ObjectId, email: str) -> int:
    """Remove dead jobs of a user, or whose error names their address; returns how many. Other jobs expire."""
    said = {"$regex": re.escape(email)}
    about = [{"payload.userId": user_id}, {"payload.email": email}, {"payload.typed": email}, {"lastError": said}]
    return await database[OUTBOX].delete_many({"status": {"$in": ["DEAD", "CANCELLED"]}, "$or": about})


async def trim(database: Database, most: int) -> int:
    """Remove waiting and dead jobs of the kinds that are not kept, above `most`: the oldest of the networks
    that have the most. Returns how many.
    """
    unfinished: list[JobStatus] = ["PENDING", "RUNNING", "DEAD", "CANCELLED"]
    kinds = [handler.name for handler in HANDLERS.values() if not handler.kept]
    where = {"status": {"$in": unfinished}, "kind": {"$in": kinds}}
    return await database[OUTBOX].trim(most, where=where, order=[("createdAt", -1)], by="payload.network")


async def _changed(database: Database, job_id: ObjectId, where: dict[str, Any], update: dict[str, Any]) -> Job:
    job = await database[OUTBOX].find_and_patch(where, update)
    if job is not None:
        return job
    found = await database[OUTBOX].find_one({"_id": job_id})
    if found is None:
        raise NotFound(f"No job {job_id}")
    raise Conflict(f"The job {job_id} is {found.status.lower()}")


def _mine(job: Job) -> dict[str, Any]:
    return {"_id": job.id, "status": "RUNNING", "leasedBy": job.leased_by}
