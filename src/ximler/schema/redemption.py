"""`redemptions`: uses of coupons. Private to billing."""

from datetime import datetime
from typing import Annotated, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import (
    AT_WRITE,
    Collection,
    Document,
    Index,
    Internal,
    Kept,
    Record,
    ShardKey,
    Theirs,
    Uppercase,
    UserId,
    ascending,
    ref,
)

__all__ = ["REDEMPTIONS", "Redemption", "RedemptionStatus", "redemption_id"]

RedemptionStatus = Literal["RESERVED", "CONFIRMED"]


def redemption_id(code: str, user_id: ObjectId) -> str:
    """One per coupon and user: its uniqueness limits a coupon to one use per user."""
    return f"{code}:{user_id}"


class Redemption(Document, kw_only=True):
    """`token` names one attempt to reserve; `counted` says that this attempt is part of the coupon's
    `usedCount`.
    """

    id: Internal[str] = field(name="_id")
    code: Record[Uppercase]
    user_id: UserId
    plan_id: Record[str]
    token: Kept[str]
    status: Record[RedemptionStatus] = "RESERVED"
    counted: Kept[bool] = False
    expires_at: Internal[datetime | None] = None  # unset once it is confirmed
    confirmed_at: Record[datetime | None] = None
    subscription_id: Record[Annotated[ObjectId | None, ref("subscriptions")]] = None
    fingerprint: Theirs[str | None] = None  # of the payment method that paid
    created_at: Record[datetime] = AT_WRITE


REDEMPTIONS = Collection(
    name="redemptions",
    document=Redemption,
    purpose="Uses of coupons: reserved by a checkout, confirmed by its payment.",
    owner="billing",
    indexes=(
        ascending("code", "status", ours=True, why="a coupon's uses, to verify `usedCount`"),
        ascending("userId", ours=True, why="a user's uses"),
        ascending("status", "expiresAt", ours=True, why="abandoned reservations"),
        Index(
            keys=(("code", 1), ("fingerprint", 1)),
            unique=True,
            partial={"fingerprint": {"$type": "string"}},
            ours=True,
            why="once per payment method, under any e-mail address",
        ),
    ),
    shard_key=ShardKey((), "a unique index on the payment method"),
)
