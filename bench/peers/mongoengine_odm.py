"""MongoEngine, on PyMongo's synchronous client, which is the only one it has.

Friendliest honest equivalents: references are plain ObjectIds, so that nothing is dereferenced; unknown
fields are ignored (`strict: False`, which it needs to read what others wrote); no indexes of its own.
"""

from collections.abc import Sequence
from typing import Any

import mongoengine  # type: ignore[import-untyped]  # it has no annotations
from mongoengine import DateTimeField, FloatField, ObjectIdField, StringField

from ximler.schema import payment as ours

__all__ = ["close", "find_all", "insert_many", "models", "prepare"]

_AWARE, _NAIVE = "bench-aware", "bench-naive"


class _Fields(mongoengine.Document):  # type: ignore[misc]  # as above
    meta: dict[str, Any] = {"abstract": True}  # noqa: RUF012 (MongoEngine's way)

    userId = ObjectIdField(required=True)
    subscriptionId = ObjectIdField()
    amount = FloatField(required=True)
    currency = StringField(default="USD")
    status = StringField(required=True, choices=("PENDING", "PAID", "FAILED", "REFUNDED"))
    description = StringField()
    stripePaymentIntentId = StringField()
    stripeInvoiceId = StringField()
    invoiceUrl = StringField()
    paidAt = DateTimeField()
    createdAt = DateTimeField()
    updatedAt = DateTimeField()


class Payment(_Fields):
    meta = {"collection": "payments", "strict": False, "auto_create_index": False, "db_alias": _AWARE}  # noqa: RUF012 (as above)


class NaivePayment(_Fields):
    """The same collection on a client that leaves datetimes naive: less work than ours does."""

    meta = {"collection": "payments", "strict": False, "auto_create_index": False, "db_alias": _NAIVE}  # noqa: RUF012 (as above)


def prepare(uri: str, database: str) -> None:
    mongoengine.connect(database, host=uri, alias=_AWARE, tz_aware=True)
    mongoengine.connect(database, host=uri, alias=_NAIVE, tz_aware=False)


def close() -> None:
    mongoengine.disconnect_all()


def find_all(*, aware: bool) -> list[Any]:
    return list((Payment if aware else NaivePayment).objects)


def models(payments: Sequence[ours.Payment]) -> list[Payment]:
    return [
        Payment(
            id=p.id,
            userId=p.user_id,
            subscriptionId=p.subscription_id,
            amount=p.amount,
            currency=p.currency,
            status=p.status,
            description=p.description,
            stripePaymentIntentId=p.stripe_payment_intent_id,
            stripeInvoiceId=p.stripe_invoice_id,
            invoiceUrl=p.invoice_url,
            paidAt=p.paid_at,
            createdAt=p.created_at,
            updatedAt=p.updated_at,
        )
        for p in payments
    ]


def insert_many(payments: list[Payment]) -> None:
    """`load_bulk=False`: it would read everything back."""
    Payment.objects.insert(payments, load_bulk=False)
