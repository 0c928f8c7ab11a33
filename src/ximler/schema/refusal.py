"""`refusals`: how often something was refused to one address within one minute. Private to audit."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, Index, ShardKey

__all__ = ["REFUSALS", "Refusal"]


class Refusal(Document, kw_only=True):
    """`id` is a hash of action, address, minute and subject: the log has them in clear, this only counts."""

    id: bytes = field(name="_id")
    count: int = 0
    expires_at: datetime


REFUSALS = Collection(
    name="refusals",
    document=Refusal,
    purpose="How often something was refused to one address within one minute, so that a flood cannot fill the audit log.",
    owner="audit",
    indexes=(
        Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB when their minute is over"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "counted by id"),
)
