"""The interface of payment providers: they move money, and decide nothing.

Ximler computes every amount. An intent is created, its id stored, then confirmed; a retry reads and confirms
the same intent, so that nothing rests on a provider remembering an idempotency key. An intent that was
created and lost is harmless: only `confirm` takes money.
"""

from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

import msgspec
from bson import ObjectId

from ximler.core.errors import Unavailable
from ximler.core.money import Money
from ximler.schema.charge import DisputeStatus
from ximler.schema.payment import PaymentStatus
from ximler.schema.refund import RefundStatus
from ximler.schema.subscription import SubscriptionStatus

__all__ = [
    "Dispute", "Intent", "IntentStatus", "Mirrors", "Notice", "PaymentMethod", "Provider", "ProviderUnavailable", "Refunded",
    "Sale", "Session", "TheirInvoice", "TheirSubscription",
]  # fmt: skip

IntentStatus = Literal["CREATED", "PROCESSING", "SUCCEEDED", "FAILED"]


class ProviderUnavailable(Unavailable):
    """The provider did not answer. It may have carried out the request."""

    code = "PROVIDER_UNAVAILABLE"


class PaymentMethod(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    label: str
    fingerprint: str  # identifies the card, also across customers
    expires: str | None = None  # the last month in which a card is valid: "2030-12"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A hosted page on which a customer enters a payment method; `method` once that is done.

    Or subscribes, where the provider bills: `subscription_id`.
    """

    id: str
    url: str
    customer_id: str
    method: PaymentMethod | None = None
    subscription_id: str | None = None


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A payment. `reference` is the charge's id; `hard`: the method will never work."""

    id: str
    status: IntentStatus
    reference: str
    amount_minor: int
    currency: str
    refunded_minor: int = 0
    failure: str | None = None
    hard: bool = False


class Refunded(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a refund. `reference` is the key it was asked for with.
    It may fail after it has succeeded."""

    id: str | None
    reference: str
    status: RefundStatus
    failure: str | None = None
    intent_id: str | None = None


class Dispute(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's objection to a payment at their bank. `reference` is the charge's id."""

    id: str
    reference: str
    status: DisputeStatus
    amount_minor: int


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """A verified event: something happened to an object, whose state is to be fetched. `reference` is its
    charge's or refund's id, where the event says so.
    """

    id: str
    kind: str
    object_id: str
    reference: str | None = None


class Provider(Protocol):
    """Every verb raises ProviderUnavailable. `key` is an idempotency key."""

    async def customer(self, user_id: ObjectId) -> str: ...

    async def open_session(
        self, *, key: str, customer_id: str, title: str, return_url: str, expires_at: datetime
    ) -> Session: ...

    async def session(self, session_id: str) -> Session: ...

    async def usable(self, method_id: str) -> bool:
        """Whether the provider still has the payment method."""

    async def detach(self, method_id: str) -> None:
        """Forget the payment method. Idempotent: one that is gone already is fine."""

    async def forget_customer(self, customer_id: str) -> None:
        """Forget the customer with all payment methods. Payments stay. Idempotent."""

    async def create_intent(self, *, customer_id: str, amount_minor: int, currency: str, reference: str) -> Intent: ...

    async def confirm(self, intent_id: str, method_id: str) -> Intent:
        """Take the money. An intent that was confirmed before is returned as it is."""

    async def intent(self, intent_id: str) -> Intent: ...

    async def refund(self, *, key: str, intent_id: str, amount_minor: int) -> Refunded:
        """Raises Invalid where the provider refuses."""

    async def refund_state(self, refund_id: str) -> Refunded: ...

    async def dispute(self, dispute_id: str) -> Dispute: ...

    def verify(self, body: bytes, signature: str) -> Notice | None:
        """None for an event of no concern. Raises Unauthenticated for a signature that is wrong or older than
        five minutes, Invalid for another body.
        """

    async def advance(self) -> None:
        """Settle the payments that are due by now. Only the sandbox has any."""


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription that the provider is to sell and bill.

    `percent` or `minor` is off `once`, or for `months`; None is for ever.
    """

    key: str
    customer_id: str
    price_id: str
    currency: str
    trial_days: int
    return_url: str
    expires_at: datetime
    code: str | None = None
    percent: str | None = None
    minor: int | None = None
    once: bool = False
    months: int | None = None


class TheirSubscription(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription that the provider bills. `end` is when it ended, or will end because it `cancels`."""

    id: str
    customer_id: str
    status: SubscriptionStatus
    price_id: str | None
    price_minor: int | None
    currency: str
    start: datetime
    end: datetime | None
    cancels: bool
    period_start: datetime
    period_end: datetime
    trial_end: datetime | None
    invoice_id: str | None  # the latest
    fingerprint: str | None = None  # of the payment method, where there was a trial


class TheirInvoice(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice of the provider's billing. `status` is its payment's; None for a draft."""

    id: str
    subscription_id: str | None
    status: PaymentStatus | None
    amount_minor: int
    currency: str
    description: str | None
    intent_id: str | None
    url: str | None
    paid_at: datetime | None


@runtime_checkable
class Mirrors(Protocol):
    """A provider with billing of its own. Every verb raises ProviderUnavailable."""

    async def subscription(self, subscription_id: str) -> TheirSubscription: ...

    async def invoice(self, invoice_id: str) -> TheirInvoice: ...

    async def intent(self, intent_id: str) -> Intent: ...

    async def refund_state(self, refund_id: str) -> Refunded: ...

    async def refund(self, *, key: str, intent_id: str, amount_minor: int) -> Refunded: ...

    async def session(self, session_id: str) -> Session: ...

    async def open_sale(self, sale: Sale) -> Session:
        """A page on which the customer subscribes, and pays."""

    async def misconfigured(self, url: str) -> list[str]:
        """Faults of the endpoint that is to send events to `url`."""

    async def end_subscription(self, subscription_id: str, *, now: bool) -> None:
        """Idempotent."""

    async def resume_subscription(self, subscription_id: str) -> None: ...

    async def change_subscription(self, subscription_id: str, price_id: str) -> None:
        """The difference is charged now. Raises Conflict for a declined card: then nothing has changed."""

    async def preview_change(self, subscription_id: str, price_id: str) -> Money:
        """The amount that `change_subscription` would charge."""
