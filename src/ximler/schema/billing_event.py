"""`billingevents`: events received from the payment provider. Private to billing."""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Index, ShardKey, ascending

__all__ = ["BILLING_EVENTS", "BillingEvent"]


class BillingEvent(Document, kw_only=True):
    """The inbox: `_id` is the event's id, so repeated deliveries are one document, and the document is the
    job.

    It only names an object, whose current state is fetched from the provider.
    """

    id: str = field(name="_id")
    kind: str
    object_id: str
    reference: str | None = None  # its charge's or refund's id, where the event says so
    due_at: datetime | None = None  # None: applied
    tries: int = 0
    claim: ObjectId | None = None  # by the process that handles it
    problem: str | None = None
    done_at: datetime | None = None
    created_at: datetime = AT_WRITE


BILLING_EVENTS = Collection(
    name="billingevents",
    document=BillingEvent,
    purpose="Events received from the payment provider; each is applied once.",
    owner="billing",
    indexes=(
        ascending("dueAt", ours=True, why="pending events"),
        Index(keys=(("doneAt", 1),), ttl_seconds=30 * 86_400, ours=True, why="deletes applied events"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "inserted by event"),
)
