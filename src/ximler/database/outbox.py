"""The outbox: jobs written in the change's transaction, claimed with a lease, retried with backoff.

A job is done at least once: a worker that dies after acting and before saying so leaves its lease to run out, and another
acts again. So handlers make their effect idempotent where they can. A `dedupe_key` makes asking once-only, for as long as
the job is kept.
"""

import random
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from ximler.core.errors import Conflict, NotFound
from ximler.core.ids import Position
from ximler.database.collection import Page
from ximler.database.connection import Database
from ximler.database.failures import DocumentExists
from ximler.schema.job import OUTBOX, Job, JobStatus

__all__ = [
    "LEASE",
    "MAX_ATTEMPTS",
    "cancel",
    "claim",
    "complete",
    "due_at",
    "enqueue",
    "fail",
    "forget",
    "page",
    "renew",
    "retry",
]

LEASE = timedelta(seconds=60)
MAX_ATTEMPTS = 12  # over about nine hours
_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 2 * 3600.0
_MAX_ERROR = 1000


async def enqueue(
    database: Database,
    kind: str,
    payload: dict[str, Any],
    *,
    dedupe_key: str | None = None,
    run_at: datetime | None = None,
) -> None:
    """Ask for a job, in the transaction that `database` is bound to, if it is. One command.

    With a `dedupe_key` that is known already nothing is asked for. Inside a transaction that would abort it, so there the
    key is looked up first (one command more).
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
    """The job that has been due longest, leased to the caller, or None. One guarded command: two workers never get the same.

    `leased_by` is the claim's own name: `complete`, `fail` and `renew` hold only while it is on the job.
    """
    now = database.clock.now()
    return await database[OUTBOX].find_and_patch(
        {"status": {"$in": ["PENDING", "RUNNING"]}, "runAt": {"$lte": now}, "kind": {"$in": list(kinds)}},
        {
            "$set": {"status": "RUNNING", "runAt": now + lease, "leasedBy": secrets.token_hex(8)},
            "$inc": {"attempts": 1},
        },
        sort=[("runAt", 1)],
    )


async def renew(database: Database, job: Job, *, lease: timedelta = LEASE) -> bool:
    """Hold a long job's lease for longer; False when it is no longer ours."""
    return await database[OUTBOX].patch(_mine(job), {"$set": {"runAt": database.clock.now() + lease}})


async def complete(database: Database, job: Job) -> bool:
    """It is done; False when the lease had run out and somebody else has it."""
    return await database[OUTBOX].patch(
        _mine(job),
        {"$set": {"status": "DONE", "doneAt": database.clock.now()}, "$unset": {"leasedBy": "", "lastError": ""}},
    )


async def fail(database: Database, job: Job, error: str, *, for_good: bool = False) -> bool:
    """It did not work: again later, each time about twice as late; after `MAX_ATTEMPTS`, or `for_good`, it is dead."""
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


async def due_at(database: Database) -> datetime | None:
    """When the next job is due."""
    waiting = {"status": {"$in": ["PENDING", "RUNNING"]}}
    found = await database[OUTBOX].find(waiting, sort=[("runAt", 1)], limit=1)
    return found[0].run_at if found else None


async def page(
    database: Database, *, status: JobStatus | None = None, first: int = 20, after: Position | None = None
) -> Page[Job]:
    """Jobs, newest first."""
    return await database[OUTBOX].page({"status": status} if status else {}, first=first, after=after)


async def retry(database: Database, job_id: ObjectId) -> Job:
    """Make a dead, cancelled or waiting job due now, with all its attempts. Raises NotFound, Conflict while it runs."""
    fresh = {"status": "PENDING", "runAt": database.clock.now(), "attempts": 0}
    where = {"_id": job_id, "status": {"$in": ["DEAD", "CANCELLED", "PENDING"]}}
    return await _changed(database, job_id, where, {"$set": fresh})


async def cancel(database: Database, job_id: ObjectId) -> Job:
    """Do not run a waiting or dead job. Raises NotFound, Conflict when it runs or is done."""
    where = {"_id": job_id, "status": {"$in": ["PENDING", "DEAD"]}}
    now = database.clock.now()
    return await _changed(database, job_id, where, {"$set": {"status": "CANCELLED", "doneAt": now}})


async def forget(database: Database, user_id: ObjectId, email: str) -> int:
    """Remove the dead jobs of a person, or whose error names their address; returns how many. The others go in time."""
    said = {"$regex": re.escape(email)}
    about = [{"payload.userId": user_id}, {"payload.email": email}, {"payload.typed": email}, {"lastError": said}]
    return await database[OUTBOX].delete_many({"status": {"$in": ["DEAD", "CANCELLED"]}, "$or": about})


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
