"""`refunds`: refunds to a card or to the credit balance. Private to billing."""

from datetime import datetime
from typing import Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Kept, Record, ShardKey, UserId, ascending

__all__ = ["REFUNDS", "Refund", "RefundStatus", "RefundTarget"]

RefundStatus = Literal["PENDING", "SUCCEEDED", "FAILED"]
RefundTarget = Literal["CARD", "BALANCE", "DISPUTE"]


class Refund(Document, kw_only=True):
    """`_id` names the charge and the occasion, so that an occasion refunds once.

    A refund counts from the moment it is made until it fails. `note_id` is its credit note; None where the
    invoice was never paid by this charge (money that arrived too late, or twice). `DISPUTE`: the customer's
    bank took the money back. `ticket` and `applied` are as in `charges`.
    """

    id: Record[str] = field(name="_id")
    user_id: UserId
    charge_id: Kept[str]
    payment_id: Record[ObjectId]
    invoice_id: Record[ObjectId]
    note_id: Record[ObjectId | None] = None
    amount_minor: Record[int]
    tax_minor: Record[int] = 0
    currency: Record[str]
    to: Record[RefundTarget]
    status: Record[RefundStatus] = "PENDING"
    reason: Record[str | None] = None
    failure: Record[str | None] = None
    provider_id: Kept[str | None] = None
    looks: Kept[int] = 0
    ticket: Kept[int] = 0
    applied: Kept[int] = 0
    created_at: Record[datetime] = AT_WRITE


REFUNDS = Collection(
    name="refunds",
    document=Refund,
    purpose="Refunds, to a card or to the credit balance.",
    owner="billing",
    indexes=(
        ascending("userId", "-createdAt", ours=True, why="a user's refunds"),
        ascending("createdAt", ours=True, why="the report of cash"),
        ascending("chargeId", ours=True, why="the refunds of a charge, which never exceed it"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "every step is by `_id`"),
)
