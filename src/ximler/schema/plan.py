"""`plans`: the plans on offer, and their limits."""

from typing import Literal

from bson import ObjectId
from msgspec import field

from ximler.core.money import Money
from ximler.schema.document import Collection, Document, Number, ShardKey, Stamped, ascending

__all__ = ["PLANS", "UNLIMITED", "Interval", "Plan", "PlanLimits"]

Interval = Literal["MONTH", "YEAR"]

UNLIMITED = -1
GIGABYTE = 1_000_000_000


class PlanLimits(Document, kw_only=True):
    """-1 is unlimited."""

    projects: int
    storage: Number  # GB of 10⁹ bytes
    api_calls: int  # a month

    @property
    def storage_bytes(self) -> int:
        return UNLIMITED if self.storage < 0 else round(self.storage * GIGABYTE)


class Plan(Stamped, kw_only=True):
    """`id` is the specification's (`"pro"`), used by every API; MongoDB's `_id` is `object_id`.

    `trial_days`, a field of our own, is the length of the free trial.
    """

    object_id: ObjectId = field(name="_id", default_factory=ObjectId)
    id: str  # type: ignore[assignment]  # the specification's `id` takes the place of `_id` in our APIs
    name: str
    description: str | None = None
    price: Number
    currency: str = "USD"
    interval: Interval
    features: list[str] = field(default_factory=list)
    limits: PlanLimits
    stripe_price_id: str | None = None
    active: bool = True
    trial_days: int | None = None

    @property
    def price_money(self) -> Money:
        return Money.of(self.price, self.currency.upper())

    @property
    def price_minor(self) -> int:
        return self.price_money.minor


PLANS = Collection(
    name="plans",
    document=Plan,
    purpose="The plans on offer, and their limits.",
    owner="billing",
    indexes=(
        ascending("id", unique=True, why="a plan by its public id"),
        ascending("active", why="the plans on offer"),
        ascending("stripePriceId", why="webhooks find their plan"),
    ),
    shard_key=ShardKey((), "a handful of documents, cached"),
)
