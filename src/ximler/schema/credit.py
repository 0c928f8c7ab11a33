"""`credits`: movements of users' credit balances. Private to billing."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Record, ShardKey, UserId, ascending

__all__ = ["CREDITS", "Credit"]


class Credit(Document, kw_only=True):
    """`_id` identifies the cause, so that each moves the balance once. A user's movements add up to their
    balance.
    """

    id: Record[str] = field(name="_id")
    user_id: UserId
    currency: Record[str]
    amount_minor: Record[int]  # positive: in the user's favour
    reason: Record[str]
    created_at: Record[datetime] = AT_WRITE


CREDITS = Collection(
    name="credits",
    document=Credit,
    purpose="Movements of users' credit balances.",
    owner="billing",
    indexes=(ascending("userId", "-createdAt", ours=True, why="a user's movements, newest first"),),
    shard_key=ShardKey((("_id", "hashed"),), "inserted by cause"),
)
