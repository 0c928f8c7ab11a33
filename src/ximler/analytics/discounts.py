"""The report of coupons: what each one took off invoices. Operators only."""

from datetime import date

import msgspec

from ximler.analytics.spans import midnight
from ximler.billing import invoices
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.database import Database

__all__ = ["CouponLine", "coupons"]


class CouponLine(msgspec.Struct, frozen=True, kw_only=True):
    """A coupon's effect in one currency: the paid invoices that it reduced,
    their customers, and by how much."""

    code: str
    currency: str
    invoices: int
    customers: int
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
