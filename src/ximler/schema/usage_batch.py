"""`usagebatches` and `usagesettlements`: recorded events that are not yet in the ledger. Private to metering.

Both are tables of up to 20,000 rows, stored by column: the nth items of the lists form a row.
"""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import Collection, Created, Document, ShardKey
from ximler.schema.usage import ResourceType

__all__ = ["USAGE_BATCHES", "USAGE_SETTLEMENTS", "UsageBatch", "UsageSettlement"]


class UsageBatch(Created, kw_only=True):
    """Sums, by user, hour (since 1970) and source, of the events of one transaction. Removed once ledger and
    quotas have them.
    """

    resource: ResourceType
    users: list[ObjectId]
    hours: list[int]
    sources: list[str]
    amounts: list[int]


USAGE_BATCHES = Collection(
    name="usagebatches",
    document=UsageBatch,
    purpose="Sums of recorded events on their way into the ledger.",
    owner="metering",
    shard_key=ShardKey((), "a handful of documents at a time, read and removed in their order"),
)


class UsageSettlement(Document, kw_only=True):
    """The latest settlement of a resource: its `number` and, until it is completed, its `batches` and the
    amount for each quota.

    The ledger's rows and the quotas store the number of the latest settlement that they include, which makes
    settlements idempotent.
    """

    id: ResourceType = field(name="_id")
    number: int = 0
    begun_at: datetime | None = None
    batches: list[ObjectId] = field(default_factory=list[ObjectId])
    quotas: list[str] = field(default_factory=list[str])
    users: list[ObjectId] = field(default_factory=list[ObjectId])
    amounts: list[int] = field(default_factory=list[int])


USAGE_SETTLEMENTS = Collection(
    name="usagesettlements",
    document=UsageSettlement,
    purpose="The latest settlement of recorded events, and its remaining work.",
    owner="metering",
    shard_key=ShardKey((), "one document a resource"),
)
