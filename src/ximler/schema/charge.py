"""`charges`: attempts to collect an invoice at the payment provider. Private to billing."""

from datetime import datetime
from typing import Any, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Kept, Mixed, ShardKey, UserId, ascending

__all__ = ["CHARGES", "Charge", "ChargeStatus", "DisputeStatus"]

ChargeStatus = Literal["PENDING", "PAID", "FAILED"]
DisputeStatus = Literal["OPEN", "WON", "LOST"]


class Charge(Document, kw_only=True):
    """`_id` names subscription, period and try. `intent_id` is stored before the intent is confirmed, so
    retries confirm the same one.

    `ticket` counts readings of the provider's state, `applied` is the latest that was applied: of two
    readings the one that began later stands.
    """

    id: Kept[str] = field(name="_id")
    user_id: UserId
    invoice_id: Kept[ObjectId]
    payment_id: Kept[ObjectId]
    amount_minor: Kept[int]
    currency: Kept[str]
    method_id: Kept[str]
    customer_id: Kept[str]
    by_customer: Kept[bool] = False  # asked for, where renewals and their retries are not
    intent_id: Kept[str | None] = None
    outside: Kept[str | None] = None  # paid without the provider: by bank transfer, say
    status: Kept[ChargeStatus] = "PENDING"
    failure: Kept[str | None] = None
    refunded_minor: Kept[int] = 0  # of refunds that have not failed
    dispute: Kept[DisputeStatus | None] = None
    lost: Kept[Mixed] = field(default_factory=dict[str, Any])  # amounts that the bank took back, by dispute
    dispute_ticket: Kept[int] = 0
    dispute_applied: Kept[int] = 0
    looks: Kept[int] = 0  # while it stayed pending
    ticket: Kept[int] = 0
    applied: Kept[int] = 0
    created_at: Kept[datetime] = AT_WRITE
    updated_at: Kept[datetime] = AT_WRITE


CHARGES = Collection(
    name="charges",
    document=Charge,
    purpose="Attempts to collect an invoice at the payment provider.",
    owner="billing",
    indexes=(
        ascending("userId", ours=True, why="a user's charges"),
        ascending("invoiceId", ours=True, why="the attempts at an invoice"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "every step is by `_id`"),
)
