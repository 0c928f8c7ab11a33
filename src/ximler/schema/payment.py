"""`payments`: payments, including failed ones."""

from datetime import datetime
from typing import Annotated, Literal

from bson import ObjectId

from ximler.core.money import Money
from ximler.schema.document import Collection, Number, Record, ShardKey, Stamped, Theirs, UserId, ascending, ref

__all__ = ["PAYMENTS", "Payment", "PaymentStatus"]

PaymentStatus = Literal["PENDING", "PAID", "FAILED", "REFUNDED"]


class Payment(Stamped, kw_only=True):
    """Fields of our own, all optional: the paid invoice, and the reason of a failure."""

    user_id: UserId
    subscription_id: Record[Annotated[ObjectId | None, ref("subscriptions")]] = None
    amount: Record[Number]
    currency: Record[str] = "USD"
    status: Record[PaymentStatus]
    description: Theirs[str | None] = None
    stripe_payment_intent_id: Record[str | None] = None
    stripe_invoice_id: Record[str | None] = None
    invoice_url: Theirs[str | None] = None
    paid_at: Record[datetime | None] = None
    invoice_id: Record[ObjectId | None] = None
    failure: Record[str | None] = None

    @property
    def amount_money(self) -> Money:
        return Money.of(self.amount, self.currency.upper())

    @property
    def amount_minor(self) -> int:
        return self.amount_money.minor


PAYMENTS = Collection(
    name="payments",
    document=Payment,
    purpose="Payments, including failed ones.",
    owner="billing",
    indexes=(
        ascending("userId", why="a user's payments"),
        ascending("subscriptionId", why="a subscription's payments"),
        ascending("status", why="reports"),
        ascending("stripePaymentIntentId", why="webhooks find their payment"),
        ascending("stripeInvoiceId", why="webhooks find their payment"),
        ascending("-createdAt", why="newest first"),
        ascending("userId", "-createdAt", ours=True, why="a user's payments, newest first"),
        ascending("paidAt", ours=True, why="the report of cash"),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "read by user; `_id` lets a chunk split within one"),
)
