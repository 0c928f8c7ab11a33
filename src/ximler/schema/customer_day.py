"""`customerdays`: how a customer's recurring revenue changed on a day. Private to analytics."""

from datetime import datetime
from typing import Literal

from msgspec import field

from ximler.schema.document import Collection, Document, Kept, ShardKey, UserId, ascending

__all__ = ["CUSTOMER_DAYS", "CustomerDay", "MovementKind"]

MovementKind = Literal["NEW", "REACTIVATION", "EXPANSION", "CONTRACTION", "CHURN"]


class CustomerDay(Document, kw_only=True):
    """The net change of a customer on a UTC day, over all their subscriptions in one currency.

    Amounts are minor units a year; `start_minor` and `end_minor` are those of the day's start and end. `kind`
    is None if only the committed part, or the part at risk, has changed. `cohort` is the month of the first
    recurring revenue.
    """

    id: Kept[str] = field(name="_id")
    user_id: UserId
    currency: Kept[str]
    day: Kept[datetime]
    cohort: Kept[str]
    kind: Kept[MovementKind | None] = None
    start_minor: Kept[int]
    end_minor: Kept[int]
    committed_minor: Kept[int]  # by how much it changed
    at_risk_minor: Kept[int]  # the same
    cancelled: Kept[bool] = False  # nothing will remain when the period ends


CUSTOMER_DAYS = Collection(
    name="customerdays",
    document=CustomerDay,
    purpose="The net change of each customer's recurring revenue by day, computed from the ledger of movements.",
    owner="analytics",
    indexes=(
        ascending(
            "currency", "day", "userId", "startMinor", "endMinor", ours=True, why="customers behind a figure, and churn"
        ),
        ascending("userId", ours=True, why="the days of a customer, to compute them again"),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "computed by customer"),
)
