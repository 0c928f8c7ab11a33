"""`outbox`: jobs, written in the transaction of their cause. Private to database."""

from datetime import datetime
from typing import Any, Literal

from msgspec import field

from ximler.schema.document import Collection, Index, Mixed, ShardKey, Stamped, ascending

__all__ = ["OUTBOX", "Job", "JobStatus"]

JobStatus = Literal["PENDING", "RUNNING", "DONE", "DEAD", "CANCELLED"]
KEEP_DONE_S = 7 * 24 * 3600


class Job(Stamped, kw_only=True):
    """`payload` refers to documents and never contains a secret. `leased_by` is a worker's claim until
    `run_at`.
    """

    kind: str
    payload: Mixed = field(default_factory=dict[str, Any])
    status: JobStatus = "PENDING"
    run_at: datetime  # earliest start; for a running job, the end of its lease
    attempts: int = 0
    leased_by: str | None = None
    dedupe_key: str | None = None
    last_error: str | None = None
    done_at: datetime | None = None


OUTBOX = Collection(
    name="outbox",
    document=Job,
    purpose="Jobs, written in the transaction of their cause.",
    owner="database",
    indexes=(
        ascending("status", "runAt", ours=True, why="jobs that are due"),
        ascending("-createdAt", "-_id", ours=True, why="operators' list, newest first"),
        Index(
            keys=(("dedupeKey", 1),),
            unique=True,
            partial={"dedupeKey": {"$type": "string"}},
            ours=True,
            why="a job is enqueued once",
        ),
        Index(keys=(("doneAt", 1),), ttl_seconds=KEEP_DONE_S, ours=True, why="finished jobs are removed after a week"),
    ),
    shard_key=ShardKey((), "claimed in order of time: short-lived, kept on one shard"),
)
