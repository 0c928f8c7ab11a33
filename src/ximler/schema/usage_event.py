"""`usageevents`: every event that was ever counted, so that none is counted twice. Private to metering."""

from msgspec import field

from ximler.schema.document import Collection, Document, Kept, ShardKey, UserId

__all__ = ["USAGE_EVENTS", "UsageEvent"]


class UsageEvent(Document, kw_only=True):
    """`id` is the second in which it happened and a hash of its source and id (see metering.ledger.events), so that the index
    grows at its end. The ledger's row of its hour has the rest."""

    id: Kept[bytes] = field(name="_id")
    user_id: UserId
    amount: Kept[int]


USAGE_EVENTS = Collection(
    name="usageevents",
    document=UsageEvent,
    purpose="Every event that was counted, so that none is counted twice.",
    owner="metering",
    shard_key=ShardKey((("_id", "hashed"),), "looked up by `_id`; in its order all writes would go to one shard"),
)
