"""`quotas`: how much of a limit is taken. Private to metering."""

from datetime import datetime
from typing import Annotated

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, ShardKey, ref
from ximler.schema.usage import ResourceType

__all__ = ["QUOTAS", "Quota"]


class Quota(Document, kw_only=True):
    """A gauge: `used` of what exists now. The limit is the plan's, and stands in the filter of every reservation."""

    id: str = field(name="_id")  # "<user id>:<resource>"
    user_id: Annotated[ObjectId, ref("users")]
    resource: ResourceType
    used: int = 0
    created_at: datetime = AT_WRITE
    updated_at: datetime = AT_WRITE


QUOTAS = Collection(
    name="quotas",
    document=Quota,
    purpose="How much of a limit is taken, by user and resource.",
    owner="metering",
    shard_key=ShardKey((("_id", "hashed"),), "read and written by its key"),
    private=True,
)
