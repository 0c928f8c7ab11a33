"""`usageevents`: ids of all counted events, for idempotency. Private to metering."""

from msgspec import field

from ximler.schema.document import Collection, Document, Kept, ShardKey, UserId

__all__ = ["USAGE_EVENTS", "UsageEvent"]


class UsageEvent(Document, kw_only=True):
    """`id` is the event's second and a hash of its source and id (see metering.ledger.events), so that the
    index grows at its end. The other values are in the ledger's row of the hour.
    """

    id: Kept[bytes] = field(name="_id")
    user_id: UserId
    amount: Kept[int]


USAGE_EVENTS = Collection(
    name="usageevents",
    document=UsageEvent,
    purpose="Ids of all counted events, for idempotency.",
    owner="metering",
    shard_key=ShardKey((("_id", "hashed"),), "looked up by `_id`; in its order all writes would go to one shard"),
)
