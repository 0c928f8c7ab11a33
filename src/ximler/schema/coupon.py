"""`coupons`: discounts by code."""

from datetime import datetime
from typing import Literal

from msgspec import field

from ximler.schema.document import Collection, Number, ShardKey, Stamped, Uppercase, ascending

__all__ = ["COUPONS", "Coupon", "CouponType"]

CouponType = Literal["PERCENTAGE", "FIXED"]


class Coupon(Stamped, kw_only=True):
    """`value` is a percentage, or an amount of `currency` in major units. No `applicable_plans` means every plan."""

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
