"""`usage`: the usage ledger."""

from datetime import datetime
from typing import Any, Literal

from msgspec import field

from ximler.schema.document import Collection, Created, Mixed, Number, Record, ShardKey, Theirs, UserId, ascending

__all__ = ["USAGE", "ResourceType", "Usage"]

ResourceType = Literal["projects", "storage", "apiCalls"]


class Usage(Created, kw_only=True):
    user_id: UserId
    resource_type: Record[ResourceType]
    amount: Record[Number]  # projects, bytes or calls
    period_start: Record[datetime]
    period_end: Record[datetime]
    metadata: Theirs[Mixed] = field(default_factory=dict[str, Any])


USAGE = Collection(
    name="usage",
    document=Usage,
    purpose="The usage ledger: one row per user, resource and hour.",
    owner="metering",
    indexes=(
        ascending("userId", "resourceType", "periodStart", why="a user's usage over time"),
        ascending("periodStart", "periodEnd", why="usage of all users over time"),
        ascending("resourceType", why="reports"),
    ),
    shard_key=ShardKey((("userId", 1), ("resourceType", 1), ("periodStart", 1)), "read and written by user, over time"),
)
