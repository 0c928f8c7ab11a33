"""`gauges`: how much of what exists a user has now. Private to metering."""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, ShardKey

__all__ = ["GAUGES", "Gauge"]


class Gauge(Document, kw_only=True):
    """Projects and bytes in one document, so that one guarded update reserves both. The limits are the plan's."""

    id: ObjectId = field(name="_id")  # the user's
    projects: int = 0
    storage_bytes: int = 0
    created_at: datetime = AT_WRITE
    updated_at: datetime = AT_WRITE


GAUGES = Collection(
    name="gauges",
    document=Gauge,
    purpose="How many projects and bytes a user has now.",
    owner="metering",
    shard_key=ShardKey((("_id", "hashed"),), "read and written by user"),
    private=True,
)
