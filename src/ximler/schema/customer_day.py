"""`customerdays`: how a customer's recurring revenue changed on a day. Private to analytics."""

from datetime import datetime
from typing import Literal

from msgspec import field

from ximler.schema.document import Collection, Document, Internal, ShardKey, UserId, ascending

__all__ = ["CUSTOMER_DAYS", "CustomerDay", "MovementKind"]

MovementKind = Literal["NEW", "REACTIVATION", "EXPANSION", "CONTRACTION", "CHURN"]


class CustomerDay(Document, kw_only=True):
    """The net change of a customer on a UTC day, over all their subscriptions in one currency.

    Amounts are minor units a year; `start_minor` and `end_minor` are those of the day's start and end. `kind` is None
    if only the committed part, or the part at risk, has changed. `cohort` is the month of the first recurring revenue.
    """

    id: str = field(name="_id")
    user_id: UserId
    currency: Internal[str]
    day: Internal[datetime]
    cohort: Internal[str]
    kind: Internal[MovementKind | None] = None
    start_minor: Internal[int]
    end_minor: Internal[int]
    committed_minor: Internal[int]  # by how much it changed
    at_risk_minor: Internal[int]  # the same
    cancelled: Internal[bool] = False  # nothing will remain when the period ends


CUSTOMER_DAYS = Collection(
    name="customerdays",
    document=CustomerDay,
    purpose="The net change of each customer's recurring revenue by day, computed from the ledger of movements.",
    owner="analytics",
    indexes=(
        ascending("currency", "day", ours=True, why="the customers behind a figure of the reports"),
        ascending("userId", ours=True, why="the days of a customer, to compute them again"),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "computed by customer"),
)
