"""`entitlements`: each user's limits. Private to metering."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, ShardKey, UserId, ascending

__all__ = ["ENTITLEMENTS", "Entitlement", "Override"]


class Override(Document, kw_only=True):
    """An operator's override. None keeps the plan's limit; -1 is unlimited."""

    projects: int | None = None
    storage_bytes: int | None = None
    api_calls: int | None = None
    reason: str
    by: str  # the operator's id, or the channel ("cli")


class Entitlement(Document, kw_only=True):
    """The plan's limits; `override` takes precedence while it is in force. -1 is unlimited.

    `revision` counts the writes. Opening a quota writes here too, so that it conflicts with a concurrent
    change of limits.
    """

    id: UserId = field(name="_id")  # the user's
    plan_id: Internal[str]
    plan_name: Internal[str]
    projects: Internal[int]
    storage_bytes: Internal[int]
    api_calls: Internal[int]
    anchor_day: Internal[int] = 1  # of the month: see metering.limits.periods
    override: Internal[Override | None] = None
    override_until: Internal[datetime | None] = None  # None: until it is ended
    revision: Internal[int] = 0
    created_at: Internal[datetime] = AT_WRITE
    updated_at: Internal[datetime] = AT_WRITE

    def override_at(self, moment: datetime) -> Override | None:
        """The override in force at that moment, or None."""
        return None if self.override_until is not None and moment >= self.override_until else self.override


ENTITLEMENTS = Collection(
    name="entitlements",
    document=Entitlement,
    purpose="Each user's limits: their plan's, an operator's override, and the day on which their periods begin.",
    owner="metering",
    indexes=(ascending("planId", ours=True, why="users of a plan whose limits change"),),
    shard_key=ShardKey((("_id", "hashed"),), "read and written by user"),
)
