"""`invoices`: amounts due, line by line. Private to billing."""

import hashlib
from datetime import datetime
from typing import Any, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.billing_account import Terms
from ximler.schema.document import (
    Collection,
    Internal,
    Kept,
    Mixed,
    Record,
    ShardKey,
    Stamped,
    Theirs,
    UserId,
    ascending,
)

__all__ = ["INVOICES", "Invoice", "InvoiceKind", "InvoiceStatus", "invoice_id"]

InvoiceKind = Literal["CHECKOUT", "RENEWAL", "CHANGE", "CREDIT_NOTE"]
InvoiceStatus = Literal["DRAFT", "OPEN", "PAID", "VOID"]


def invoice_id(key: str) -> ObjectId:
    """The id of the invoice for one occasion: the same period of a subscription cannot have two."""
    return ObjectId(hashlib.sha256(key.encode()).digest()[:12])


class Invoice(Stamped, kw_only=True):
    """Amounts and lines never change. A DRAFT becomes PAID or VOID and is issued when it is paid; an OPEN one
    is issued.

    `key` names subscription, anchor and period (or change). `serial` is the number within `year`, given after
    the issue. A CREDIT_NOTE corrects a paid invoice; its amounts are negative, and it is VOID if its refund
    fails. `terms` and `anchor` take effect with the payment, where it is a purchase or a change of plan.
    """

    key: Record[str]
    user_id: UserId
    subscription_id: Record[ObjectId]
    checkout_id: Kept[str | None] = None
    corrects_id: Record[ObjectId | None] = None  # of a credit note: the invoice
    kind: Record[InvoiceKind]
    status: Record[InvoiceStatus]
    year: Record[int | None] = None
    serial: Record[int | None] = None
    issued_at: Record[datetime | None] = None
    paid_at: Record[datetime | None] = None
    currency: Record[str]
    lines: Record[Mixed] = field(default_factory=list[Any])
    discount_minor: Record[int] = 0
    tax_minor: Record[int] = 0
    total_minor: Record[int] = 0
    due_minor: Record[int] = 0
    balance_before_minor: Record[int] = 0
    balance_after_minor: Record[int] = 0
    plan_id: Record[str]
    period_start: Record[datetime | None] = None
    period_end: Record[datetime | None] = None
    seller: Record[str] = "Ximler"  # name and address, lines separated by `;`
    buyer_name: Theirs[str | None] = None
    buyer_email: Theirs[str | None] = None
    buyer_address: Theirs[str | None] = None
    buyer_country: Record[str | None] = None  # evidence of the tax
    buyer_vat_id: Theirs[str | None] = None
    terms: Internal[Terms | None] = None
    anchor: Internal[datetime | None] = None
    coupon: Internal[str | None] = None  # of a change of plan: reserved, and confirmed by the payment
    attempts: Kept[int] = 0

    @property
    def number(self) -> str | None:
        """`2026-000017`: without a gap within a year."""
        return None if self.serial is None or self.year is None else f"{self.year}-{self.serial:06}"

    @property
    def net_minor(self) -> int:
        return self.total_minor - self.tax_minor


INVOICES = Collection(
    name="invoices",
    document=Invoice,
    purpose="Amounts due, line by line, with a number.",
    owner="billing",
    indexes=(
        ascending("userId", "-createdAt", ours=True, why="a user's invoices, newest first"),
        ascending("issuedAt", ours=True, why="what coupons took off in a time"),
        ascending(
            "year",
            "serial",
            "issuedAt",
            "_id",
            ours=True,
            why="invoices without a number yet, in the order of issue; the numbers of a year, to verify them",
        ),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "read by user; numbers are given a batch at a time"),
)
