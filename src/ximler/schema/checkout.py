"""`checkouts`: purchases of a subscription that were begun. Private to billing."""

from datetime import datetime
from typing import Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.billing_account import Terms
from ximler.schema.document import (
    AT_WRITE,
    Collection,
    Document,
    Index,
    Internal,
    ShardKey,
    UserId,
    ascending,
)

__all__ = ["CHECKOUTS", "Checkout", "CheckoutKind", "CheckoutStatus"]

CheckoutKind = Literal["PLAN", "CARD"]

CheckoutStatus = Literal["OPEN", "PROCESSING", "PAID", "REFUSED", "EXPIRED"]


class Checkout(Document, kw_only=True):
    """The price is the one that was shown. OPEN → PROCESSING while it is paid → PAID, or OPEN again after a
    decline.

    A CARD adds a payment method to a running subscription, and is PAID when that is done: `terms` are the
    subscription's. REFUSED: it could not be bought (a subscription was there already, the coupon was used
    up); `problem` says why.
    """

    id: Internal[str] = field(name="_id")
    user_id: UserId
    kind: Internal[CheckoutKind] = "PLAN"
    status: Internal[CheckoutStatus] = "OPEN"
    terms: Internal[Terms]
    trial_days: Internal[int] = 0
    at_stripe: Internal[bool] = False  # Stripe bills the subscription
    makes_default: Internal[bool] = True  # of a CARD: it is charged from now on
    session_id: Internal[str | None] = None  # the provider's
    customer_id: Internal[str | None] = None  # at the provider
    url: Internal[str | None] = None
    return_url: Internal[str]
    tried: Internal[str | None] = None  # the payment method that was charged last
    subscription_id: Internal[ObjectId | None] = None
    problem: Internal[str | None] = None
    expires_at: Internal[datetime]
    created_at: Internal[datetime] = AT_WRITE
    updated_at: Internal[datetime] = AT_WRITE


CHECKOUTS = Collection(
    name="checkouts",
    document=Checkout,
    purpose="Purchases that were begun, with the price that was shown, and changes of the payment method.",
    owner="billing",
    indexes=(
        ascending("userId", "status", ours=True, why="a user's open checkouts"),
        ascending("sessionId", ours=True, why="the checkout of a provider's session"),
        ascending("status", "expiresAt", ours=True, why="abandoned checkouts"),
        Index(keys=(("expiresAt", 1),), ttl_seconds=90 * 86_400, ours=True, why="deletes old checkouts"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "read by `_id`"),
)
