"""`mirrors`: readings of objects that Stripe's own billing runs. Private to billing."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Index, ShardKey

__all__ = ["MIRRORS", "Mirror"]


class Mirror(Document, kw_only=True):
    """`_id` is the id of a subscription, an invoice or a payment intent at Stripe.
    `ticket` and `applied` are as in `charges`.
    """

    id: str = field(name="_id")
    ticket: int = 0
    applied: int = 0
    read_at: datetime | None = None
    created_at: datetime = AT_WRITE


MIRRORS = Collection(
    name="mirrors",
    document=Mirror,
    purpose="Readings of subscriptions, invoices and payments that Stripe's own billing runs.",
    owner="billing",
    indexes=(Index(keys=(("readAt", 1),), ttl_seconds=30 * 86_400, ours=True, why="deletes old readings"),),
    shard_key=ShardKey((("_id", "hashed"),), "read by `_id`"),
)
