"""`usage`: the ledger of what was used, when."""

from datetime import datetime
from typing import Annotated, Any, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import Collection, Created, Mixed, Number, ShardKey, ascending, ref

__all__ = ["USAGE", "ResourceType", "Usage"]

ResourceType = Literal["projects", "storage", "apiCalls"]


class Usage(Created, kw_only=True):
    user_id: Annotated[ObjectId, ref("users")]
    resource_type: ResourceType
    amount: Number  # projects, bytes or calls
    period_start: datetime
    period_end: datetime
    metadata: Mixed = field(default_factory=dict[str, Any])


USAGE = Collection(
    name="usage",
    document=Usage,
    purpose="The ledger of what was used, when.",
    owner="metering",
    indexes=(
        ascending("userId", "resourceType", "periodStart", why="a user's usage over time"),
        ascending("periodStart", "periodEnd", why="everybody's usage over time"),
        ascending("resourceType", why="reports"),
    ),
    shard_key=ShardKey((("userId", 1), ("resourceType", 1), ("periodStart", 1)), "read and written by user, over time"),
)
