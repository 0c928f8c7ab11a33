"""`revenuedays` and `revenuemonths`: movements of recurring revenue over
all customers. Private to analytics."""

from datetime import datetime
from typing import Any

from msgspec import field

from ximler.schema.document import Collection, Document, Index, Mixed, ShardKey, ascending

__all__ = ["REVENUE_DAYS", "REVENUE_MONTHS", "RevenueDay", "RevenueMonth"]


class RevenueSums(Document, kw_only=True):
    """Sums over the `customerdays` of a currency: amounts in minor units a year, and customers.

    `cohorts` has the changes by the month of the customers' first recurring revenue: amount and customers.
    """

    id: str = field(name="_id")
    currency: str
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


class RevenueDay(RevenueSums, kw_only=True):
    """The sums of a UTC day: "USD:2026-11-29".

    `version` grows whenever a customer's day changes, and `summed` whenever the sums are written;
    a day that is `dirty` is computed again.
    """

    day: datetime
    version: int = 0
    summed: int = 0
    dirty: bool | None = None


class RevenueMonth(RevenueSums, kw_only=True):
    """The sums of a month's days: "USD:2026-11". `summed` is the sum of theirs:
    of two computations the later has more.

    The last three are about the customers of the month's start.
    They are absent where an earlier release has summed.
    """

    month: datetime  # its first day
    summed: int = 0
    lost: int | None = None  # not customers at the end
    less_minor: int | None = None  # the sum of decreases, from the start to the end
    change_minor: int | None = None  # increases less decreases


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

REVENUE_MONTHS = Collection(
    name="revenuemonths",
    document=RevenueMonth,
    purpose="Each month's movements of recurring revenue, computed from `revenuedays`.",
    owner="analytics",
    indexes=(ascending("currency", "month", ours=True, why="a report's months"),),
    shard_key=ShardKey((("_id", "hashed"),), "a few hundred small documents"),
)
