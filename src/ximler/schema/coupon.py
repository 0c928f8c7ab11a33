"""`coupons`: discounts by code."""

from datetime import datetime
from typing import Any, Literal

from msgspec import field

from ximler.core.money import Money
from ximler.schema.document import Collection, Mixed, Number, ShardKey, Stamped, Uppercase, ascending

__all__ = ["COUPONS", "Coupon", "CouponDuration", "CouponType"]

CouponType = Literal["PERCENTAGE", "FIXED"]
CouponDuration = Literal["ONCE", "REPEATING", "FOREVER"]


class Coupon(Stamped, kw_only=True):
    """`value` is a percentage, or an amount of `currency` in major units. No `applicable_plans` means every
    plan.

    Fields of ours, all optional: `duration` (unset: once) and `duration_periods` (of REPEATING) say for how
    many paid periods it applies; `pending` holds the reservations whose count in `used_count` is not yet
    recorded elsewhere (at most a few).
    """

    code: Uppercase
    name: str
    description: str | None = None
    type: CouponType
    value: Number
    currency: str = "USD"
    max_uses: int | None = None
    used_count: int = 0
    valid_from: datetime
    valid_until: datetime
    applicable_plans: list[str] = field(default_factory=list)  # plans.id
    active: bool = True
    duration: CouponDuration | None = None
    duration_periods: int | None = None
    pending: Mixed = field(default_factory=dict[str, Any])

    @property
    def value_minor(self) -> int | None:
        """A fixed amount in minor units; None for a percentage."""
        return Money.of(self.value, self.currency.upper()).minor if self.type == "FIXED" else None


COUPONS = Collection(
    name="coupons",
    document=Coupon,
    purpose="Discounts by code.",
    owner="billing",
    indexes=(
        ascending("code", unique=True, why="redemption"),
        ascending("active", why="the coupons on offer"),
        ascending("validFrom", "validUntil", why="coupons valid at a time"),
        ascending("applicablePlans", why="a plan's coupons"),
    ),
    shard_key=ShardKey((), "few documents, and a code is unique"),
)
