"""`revenuedays`: a day's movements of recurring revenue over all customers. Private to analytics."""

from datetime import datetime
from typing import Any

from msgspec import field

from ximler.schema.document import Collection, Document, Index, Mixed, ShardKey, ascending

__all__ = ["REVENUE_DAYS", "RevenueDay"]


class RevenueDay(Document, kw_only=True):
    """Sums over the `customerdays` of a currency and UTC day: amounts in minor units a year, and customers.

    `cohorts` has the changes by the month of the customers' first recurring revenue: amount and customers. `version`
    grows whenever a customer's day changes; a day that is `dirty` is computed again.
    """

    id: str = field(name="_id")  # "USD:2026-11-29"
    currency: str
    day: datetime
    new_minor: int = 0
    reactivation_minor: int = 0
    expansion_minor: int = 0
    contraction_minor: int = 0
    churn_minor: int = 0
    new: int = 0
    reactivated: int = 0
    expanded: int = 0
    contracted: int = 0
    churned: int = 0
    cancelled: int = 0
    committed_minor: int = 0  # by how much it changed
    at_risk_minor: int = 0  # the same
    cohorts: Mixed = field(default_factory=dict[str, Any])
    version: int = 0
    dirty: bool | None = None


REVENUE_DAYS = Collection(
    name="revenuedays",
    document=RevenueDay,
    purpose="Each day's movements of recurring revenue, computed from `customerdays`.",
    owner="analytics",
    indexes=(
        ascending("currency", "day", ours=True, why="a report's days"),
        Index(keys=(("dirty", 1),), partial={"dirty": True}, ours=True, why="days that are computed again"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "a few thousand small documents"),
)
