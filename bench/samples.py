"""Payments as a live system has them: the documents that are read, and the objects that are written."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId

from ximler.schema.document import AT_WRITE
from ximler.schema.payment import Payment, PaymentStatus

__all__ = ["COUNT", "payment_documents", "payments"]

COUNT = 20_000
_STATUSES: tuple[PaymentStatus, ...] = ("PAID", "PAID", "PAID", "PENDING", "FAILED", "REFUNDED")
_AMOUNTS = (0, 29, 29.99, 99, 290, 12.5)
_START = datetime(2026, 1, 1, tzinfo=UTC)


def payments(count: int = COUNT, *, stamped: bool = True) -> list[Payment]:
    """Always the same but for their ids; all fields set, but for the stamps unless `stamped`."""
    chance = random.Random(20_000)
    users = [ObjectId() for _ in range(count // 10)]
    made = []
    for number in range(count):
        user = chance.randrange(len(users))
        moment = _START + timedelta(milliseconds=chance.randrange(200 * 24 * 3600 * 1000))
        made.append(
            Payment(
                user_id=users[user],
                subscription_id=ObjectId(),
                amount=chance.choice(_AMOUNTS),
                status=chance.choice(_STATUSES),
                description=f"Monthly subscription, invoice {number}",
                stripe_payment_intent_id=f"pi_{number:024d}",
                stripe_invoice_id=f"in_{number:024d}",
                invoice_url=f"https://invoice.example.com/i/acct_{user:08d}/{number:024d}",
                paid_at=moment,
                created_at=moment if stamped else AT_WRITE,
                updated_at=moment if stamped else AT_WRITE,
            )
        )
    return made


def payment_documents(count: int = COUNT) -> list[dict[str, Any]]:
    """As several applications have left them in one collection.

    A quarter has no `paidAt`, a tenth no `invoiceUrl` (both may be absent). One in a hundred needs tolerance:
    a null currency, no `updatedAt`, or both; its amount is a double even where it is whole, and it has a
    field we do not know.
    """
    documents = []
    for number, payment in enumerate(payments(count)):
        document: dict[str, Any] = {
            "_id": payment.id,
            "userId": payment.user_id,
            "subscriptionId": payment.subscription_id,
            "amount": payment.amount,
            "currency": "USD",
            "status": payment.status,
            "description": payment.description,
            "stripePaymentIntentId": payment.stripe_payment_intent_id,
            "stripeInvoiceId": payment.stripe_invoice_id,
            "invoiceUrl": payment.invoice_url,
            "paidAt": payment.paid_at,
            "createdAt": payment.created_at,
            "updatedAt": payment.updated_at,
        }
        if number % 4 == 0:
            del document["paidAt"]
        if number % 10 == 0:
            del document["invoiceUrl"]
        if number % 100 == 50:
            kind = number // 100 % 3
            document |= {"amount": float(payment.amount), "__v": 0}
            if kind != 1:
                document["currency"] = None
            if kind != 0:
                del document["updatedAt"]
        documents.append(document)
    return documents
