"""The report of coupons: what each one took off invoices. Operators only."""

from datetime import date

import msgspec
from bson import ObjectId

from ximler.analytics.spans import midnight, spans
from ximler.billing import invoices
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page

__all__ = ["CouponInvoice", "CouponLine", "coupons", "invoices_of"]


class CouponLine(msgspec.Struct, frozen=True, kw_only=True):
    """A coupon's effect in one currency: the paid invoices that it reduced,
    their customers, and by how much."""

    code: str
    currency: str
    invoices: int
    customers: int
    discount_minor: int


class CouponInvoice(msgspec.Struct, frozen=True, kw_only=True):
    """The rows behind the figures: an invoice that a coupon reduced, and by how much.
    The newest ones may have no number yet."""

    invoice_id: ObjectId
    number: str | None
    user_id: ObjectId
    issued: date
    currency: str
    discount_minor: int


async def coupons(database: Database, actor: Actor, *, start: date, end: date) -> list[CouponLine]:
    """The discounts of each coupon on invoices issued between two days (UTC,
    without `end`), the largest first.

    Raises Forbidden, and Invalid for an empty range. One command, which reads the invoices of the range.
    """
    actor.require_operator()
    if end <= start:
        raise Invalid.field("to", f"{end} is not after {start}: the range has no day")
    rows = await invoices.discounts(database, midnight(start), midnight(end))
    return [CouponLine(**row) for row in rows]


async def invoices_of(
    database: Database,
    actor: Actor,
    *,
    code: str,
    start: date,
    end: date,
    first: int = 20,
    after: Position | None = None,
) -> Page[CouponInvoice]:
    """The invoices behind a coupon's line, latest first. Raises as `coupons`."""
    actor.require_operator()
    spans(start, end, "MONTH", most=None)
    code = code.strip().upper()
    page = await invoices.discounted(database, midnight(start), midnight(end), code, first=first, after=after)
    rows = [
        CouponInvoice(
            invoice_id=each.id,
            number=each.number,
            user_id=each.user_id,
            issued=(each.issued_at or each.created_at).date(),
            currency=each.currency,
            discount_minor=-sum(
                line["amount_minor"] for line in each.lines if (line["kind"], line["description"]) == ("DISCOUNT", code)
            ),
        )
        for each in page.items
    ]
    return Page(rows, page.cursors, has_next=page.has_next)
