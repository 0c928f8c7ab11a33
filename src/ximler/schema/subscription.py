"""`subscriptions`: users' plans, with period and price."""

from datetime import datetime
from typing import Annotated, Literal

from ximler.core.money import Money
from ximler.schema.document import (
    Collection,
    Number,
    Record,
    ShardKey,
    Stamped,
    Theirs,
    UserId,
    ascending,
    erased_as,
)

__all__ = ["SUBSCRIPTIONS", "Subscription", "SubscriptionStatus"]

SubscriptionStatus = Literal["ACTIVE", "CANCELLED", "EXPIRED", "PAST_DUE"]


class Subscription(Stamped, kw_only=True):
    """Fields of ours, all optional, for subscriptions that Ximler bills: the current period, the trial's end,
    and the plan of the next period.
    """

    user_id: UserId
    plan_id: Record[str]  # plans.id
    status: Record[SubscriptionStatus]
    start_date: Record[datetime]
    end_date: Record[datetime | None] = None
    auto_renew: Annotated[bool, erased_as(False)] = True
    price: Record[Number]
    currency: Record[str] = "USD"
    stripe_subscription_id: Record[str | None] = None
    stripe_customer_id: Theirs[str | None] = None
    period_start: Record[datetime | None] = None
    period_end: Record[datetime | None] = None
    trial_end: Record[datetime | None] = None
    pending_plan_id: Record[str | None] = None  # plans.id

    @property
    def price_money(self) -> Money:
        return Money.of(self.price, self.currency.upper())

    @property
    def price_minor(self) -> int:
        return self.price_money.minor


SUBSCRIPTIONS = Collection(
    name="subscriptions",
    document=Subscription,
    purpose="Users' plans, with period and price.",
    owner="billing",
    indexes=(
        ascending("userId", "status", why="a user's subscription"),
        ascending("stripeSubscriptionId", why="webhooks find their subscription"),
        ascending("status", why="reports"),
        ascending("endDate", why="subscriptions that end next"),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "read by user; `_id` lets a chunk split within one"),
)
