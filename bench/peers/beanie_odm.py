"""Beanie 2, on PyMongo's async client.

Friendliest honest equivalents: attributes are named as the fields are, so that no alias is looked up; what
may be null or missing is declared optional and comes back as None (ours gives the default); no validator of
our own.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import beanie
from beanie import PydanticObjectId
from bson.codec_options import CodecOptions
from pymongo.asynchronous.database import AsyncDatabase

from ximler.schema import payment as ours

__all__ = ["find_all", "insert_many", "models", "prepare"]


class _Fields(beanie.Document):
    userId: PydanticObjectId
    subscriptionId: PydanticObjectId | None = None
    amount: float
    currency: str | None = "USD"
    status: Literal["PENDING", "PAID", "FAILED", "REFUNDED"]
    description: str | None = None
    stripePaymentIntentId: str | None = None
    stripeInvoiceId: str | None = None
    invoiceUrl: str | None = None
    paidAt: datetime | None = None
    createdAt: datetime | None = None
    updatedAt: datetime | None = None


class Payment(_Fields):
    class Settings:
        name = "payments"


class NaivePayment(_Fields):
    """The same collection on a client that leaves datetimes naive: less work than ours does."""

    class Settings:
        name = "payments"


async def prepare(database: AsyncDatabase[dict[str, Any]]) -> None:
    """Bind the models to the database, the first with aware datetimes."""
    await beanie.init_beanie(
        database=database.with_options(CodecOptions(tz_aware=True)), document_models=[Payment], skip_indexes=True
    )
    await beanie.init_beanie(database=database, document_models=[NaivePayment], skip_indexes=True)


async def find_all(*, aware: bool) -> list[Any]:
    return await (Payment if aware else NaivePayment).find_all().to_list()


def models(payments: Sequence[ours.Payment]) -> list[Payment]:
    return [
        Payment(
            id=PydanticObjectId(p.id),
            userId=PydanticObjectId(p.user_id),
            subscriptionId=PydanticObjectId(p.subscription_id),
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


async def insert_many(payments: list[Payment]) -> None:
    await Payment.insert_many(payments)
