"""`receipts`: what was used under an idempotency key. Private to metering."""

from datetime import datetime
from typing import Annotated

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Index, ShardKey, ref
from ximler.schema.usage import ResourceType

__all__ = ["KEEP_S", "RECEIPTS", "Receipt"]

KEEP_S = 24 * 3600


class Receipt(Document, kw_only=True):
    """`id` is the SHA-256 of the user and the key."""

    id: bytes = field(name="_id")
    user_id: Annotated[ObjectId, ref("users")]
    resource: ResourceType
    units: int
    created_at: datetime = AT_WRITE


RECEIPTS = Collection(
    name="receipts",
    document=Receipt,
    purpose="What was used under an idempotency key, for a day.",
    owner="metering",
    indexes=(Index(keys=(("createdAt", 1),), ttl_seconds=KEEP_S, ours=True, why="removed after a day"),),
    shard_key=ShardKey((("_id", "hashed"),), "looked up by key"),
)
