"""`throttles`: counters of recent attempts and their blocks. Private to accounts."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, Index, ShardKey

__all__ = ["THROTTLES", "Throttle"]


class Throttle(Document, kw_only=True):
    """`id` is a keyed hash of rule and subject, so no network or e-mail addresses are stored."""

    id: bytes = field(name="_id")
    count: int = 0
    blocked_until: datetime | None = None
    expires_at: datetime


THROTTLES = Collection(
    name="throttles",
    document=Throttle,
    purpose="Recent attempts to sign in, register, request links, pay and guess coupons; by account, address and device.",
    owner="accounts",
    indexes=(Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB when they are over"),),
    shard_key=ShardKey((("_id", "hashed"),), "read and counted by id"),
)
