"""`refusals`: counters of refused actions per address and minute. Private to audit."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, Index, ShardKey

__all__ = ["REFUSALS", "Refusal"]


class Refusal(Document, kw_only=True):
    """`id` is a hash of action, address, minute and subject, which the log has in clear."""

    id: bytes = field(name="_id")
    count: int = 0
    expires_at: datetime


REFUSALS = Collection(
    name="refusals",
    document=Refusal,
    purpose="Counters of refused actions per address and minute, so that a flood cannot fill the audit log.",
    owner="audit",
    indexes=(Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB after their minute"),),
    shard_key=ShardKey((("_id", "hashed"),), "counted by id"),
)
