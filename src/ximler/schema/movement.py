"""`movements`: the recurring revenue of each subscription over time. Private to billing."""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Index, Kept, Record, ShardKey, UserId, ascending

__all__ = ["MOVEMENTS", "Movement", "Step"]


class Movement(Document, kw_only=True):
    """A subscription's recurring revenue from `at` on, until its next movement. Rows are never changed.

    Amounts are minor units a year. `committed_minor` is what remains when the period ends: zero once it is
    cancelled. `at_risk_minor` is the part whose payment failed. `number` orders the movements of a
    subscription. `pending` rows are not in the rollups of `analytics` yet.
    """

    id: Record[str] = field(name="_id")  # the subscription's id and `number`, so that a repeated step writes it once
    user_id: UserId
    subscription_id: Record[ObjectId]
    number: Kept[int]
    at: Record[datetime]
    plan_id: Record[str]
    currency: Record[str]
    annual_minor: Record[int]
    committed_minor: Record[int]
    at_risk_minor: Record[int]
    pending: Kept[bool | None] = None
    created_at: Kept[datetime] = AT_WRITE


class Step(Document, kw_only=True):
    """The fields of a movement that reports are computed from: a rebuild reads those of all movements."""

    id: str = field(name="_id")
    user_id: ObjectId
    subscription_id: ObjectId
    at: datetime
    currency: str
    annual_minor: int
    committed_minor: int
    at_risk_minor: int
    pending: bool | None = None


MOVEMENTS = Collection(
    name="movements",
    document=Movement,
    purpose="The recurring revenue of each subscription over time: the ledger behind the reports.",
    owner="billing",
    indexes=(
        ascending("userId", "at", ours=True, why="a customer's movements, in order"),
        ascending("subscriptionId", "-at", ours=True, why="the latest movement of a subscription"),
        Index(
            keys=(("pending", 1),), partial={"pending": True}, ours=True, why="movements that are not in the rollups"
        ),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "read by customer"),
)
