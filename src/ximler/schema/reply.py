"""`replies`: stored responses to requests with an `Idempotency-Key`. Private to accounts."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, Index, ShardKey

__all__ = ["REPLIES", "Reply"]


class Reply(Document, kw_only=True):
    """`id` is a keyed hash of sender and key; `request` is a hash of the request. `request` and `answer` are
    protected by a secret that requires the client's key, so the database alone reveals no token and allows no
    guessing of passwords.
    """

    id: bytes = field(name="_id")
    request: bytes
    answer: bytes | None = None  # None while the request is running
    others: int = 0  # other requests under the same key
    leased_until: datetime
    expires_at: datetime
    network: str | None = None  # of a caller without an account, as a registration's


REPLIES = Collection(
    name="replies",
    document=Reply,
    purpose="Stored responses to requests with an Idempotency-Key, for repeats.",
    owner="accounts",
    indexes=(
        Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB after 24 hours"),
        Index(
            keys=(("network", 1), ("expiresAt", -1)),
            partial={"network": {"$type": "string"}},
            ours=True,
            why="callers without an account, whose replies are limited",
        ),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "claimed and answered by id"),
)
