"""`quotas`: a user's limit and usage of a resource in one period, with open leases. Private to metering."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from bson import Int64, ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, Mixed, ShardKey, UserId, ascending
from ximler.schema.plan import UNLIMITED
from ximler.schema.usage import ResourceType

__all__ = ["QUOTAS", "Lease", "Quota", "period_start_of", "quota_id", "user_of"]


class Lease(msgspec.Struct, frozen=True):
    """Units that one process may spend in memory. `n` of them are open: granted, and not yet reported as
    used.

    `seq` counts reports and `grants` counts grants. Each step is guarded by its count, so it is idempotent.
    `at` is the time of the latest step (ms since 1970); only leases of releases without heartbeats expire by
    it.
    """

    n: int
    seq: int
    grants: int
    at: int


class Quota(Document, kw_only=True):
    """Invariants: `granted = settled + forfeited + Σ leases.n`, and `granted + ingested + foreign ≤ limit`
    whenever units are granted.

    `settled` was used and reported by leases, `ingested` was recorded as events, `forfeited` was held by a
    process that died: it may have been used, so it is not granted again. `hours` (`h` and the hours since
    1970 → units) are the settled units by the hour, from which the ledger's rows are derived; `detail` is the
    latest hours' by API key and route.
    """

    id: Internal[str] = field(name="_id")  # see `quota_id`
    user_id: UserId
    resource: Internal[ResourceType]
    period_start: Internal[datetime]
    period_end: Internal[datetime]
    limit: Internal[int]  # a copy of the entitlement's, updated with it; -1 is unlimited
    limit_until: Internal[datetime | None] = None  # when an override ends, and
    limit_then: Internal[int | None] = None  # the limit from then on
    plan_id: Internal[str | None] = None  # the plan that the limit is copied from; None: an override without an end
    alerted: Internal[int] = 0  # the highest threshold (%) that the user was notified of
    opened: Internal[bool] = False  # the limit was copied in a transaction with the entitlement, a condition of grants
    superseded: Internal[bool] = False  # the user's periods begin on another day now: no grants
    granted: Internal[int] = 0
    settled: Internal[int] = 0
    forfeited: Internal[int] = 0
    ingested: Internal[int] = 0
    foreign: Internal[int] = 0  # rows that other applications wrote to the ledger, as of the last rebuild
    steps: Internal[int] = 0  # number of updates: orders two readings
    ingested_through: Internal[int] = (
        0  # the latest settlement of recorded events that `ingested` has (see UsageSettlement)
    )
    leases: Internal[Mixed] = field(default_factory=dict[str, Any])  # by lease id (`<process>-<number>`): see Lease
    holders: Internal[list[str]] = field(default_factory=list[str])  # the processes of `leases`, each once
    look_at: Internal[datetime | None] = None  # set by releases without heartbeats: their leases have no holder yet
    hours: Internal[Mixed] = field(default_factory=dict[str, Any])
    detail: Internal[Mixed] = field(default_factory=dict[str, Any])
    created_at: Internal[datetime] = AT_WRITE
    updated_at: Internal[datetime] = AT_WRITE

    @property
    def used(self) -> int:
        """Reported usage, at most a second old."""
        return self.settled + self.ingested + self.foreign

    @property
    def open(self) -> int:
        """Units held by processes: unused, or used within the last second."""
        return sum(lease.n for lease in self.open_leases.values())

    @property
    def units_by_hour(self) -> dict[str, Any]:
        """`hours`; empty if another application wrote another kind of value there."""
        return self.hours if isinstance(self.hours, dict) else {}

    @property
    def open_leases(self) -> dict[str, Lease]:
        """By id. Values that are not leases, written by another application, are left out."""
        found = self.leases.items() if isinstance(self.leases, dict) else ()
        return {lease_id: lease for lease_id, value in found if (lease := _lease(value)) is not None}

    def limit_at(self, moment: datetime) -> int:
        """-1 is unlimited."""
        if self.limit_until is not None and moment >= self.limit_until:
            return UNLIMITED if self.limit_then is None else self.limit_then
        return self.limit

    def free_at(self, moment: datetime) -> int | None:
        """Units that can still be granted; None is unlimited.
        Negative after a lowered limit or late events."""
        limit = self.limit_at(moment)
        return None if limit < 0 else limit - self.granted - self.ingested - self.foreign

    def remaining_at(self, moment: datetime) -> int | None:
        """Units that can still be used by any process: free and open ones. None is unlimited."""
        free = self.free_at(moment)
        return None if free is None else max(0, free + self.open)


def _lease(value: Any) -> Lease | None:
    """The lease that a stored value is. Other applications write whole numbers as doubles, too."""
    try:
        counts = n, seq, grants, at = value["n"], value["seq"], value["grants"], value["at"]
    except (KeyError, TypeError):
        return None
    if n.__class__ is seq.__class__ is grants.__class__ is at.__class__ is int:  # mostly
        return Lease(n, seq, grants, at)
    is_one = all(type(count) in (int, Int64) or (type(count) is float and count.is_integer()) for count in counts)
    return Lease(*map(int, counts)) if is_one else None


def quota_id(user_id: ObjectId, resource: ResourceType, period_start: datetime) -> str:
    """`507f1f77bcf86cd799439011:apiCalls:2026-01-31`: periods begin at midnight."""
    return f"{user_id}:{resource}:{period_start:%Y-%m-%d}"


def period_start_of(quota_id: str) -> datetime:
    """The start of the period in a quota's id."""
    return datetime.strptime(quota_id[-10:], "%Y-%m-%d").replace(tzinfo=UTC)


def user_of(quota_id: Any) -> ObjectId | None:
    """The user in a quota's id; None for an id that another application made."""
    user = quota_id[:24] if isinstance(quota_id, str) else ""
    return ObjectId(user) if ObjectId.is_valid(user) else None


QUOTAS = Collection(
    name="quotas",
    document=Quota,
    purpose="A user's limit and usage of a resource in one period, with the units leased to each process.",
    owner="metering",
    indexes=(
        ascending("userId", "resource", "periodStart", ours=True, why="a user's quotas, over time"),
        ascending("planId", "periodEnd", ours=True, why="current quotas of a plan whose limit changes"),
        ascending("periodEnd", ours=True, why="the report of users near their limits"),
        ascending("holders", ours=True, why="leases of processes whose heartbeat has expired"),
        ascending("lookAt", ours=True, why="leases of releases without heartbeats"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "every step is one guarded update by `_id`"),
)
