"""`replies`: answers to requests with an `Idempotency-Key`. Private to accounts."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, Index, ShardKey

__all__ = ["REPLIES", "Reply"]


class Reply(Document, kw_only=True):
    """`id` is a keyed hash of who asked and their key; `request` one of what they asked, under a secret that only their key
    opens, as `answer` is encrypted under one: the database cannot be asked what a token was, or guessed a password from."""

    id: bytes = field(name="_id")
    request: bytes
    answer: bytes | None = None  # none while it is worked on
    leased_until: datetime
    expires_at: datetime


REPLIES = Collection(
    name="replies",
    document=Reply,
    purpose="Answers to requests with an Idempotency-Key, for their repeats.",
    owner="accounts",
    indexes=(Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB after 24 hours"),),
    shard_key=ShardKey((("_id", "hashed"),), "claimed and answered by id"),
)
