"""The report of cash: payments, refunds and failed payments. Operators only. Computed from billing's documents."""

import asyncio
from collections import defaultdict
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import structlog
from bson import Decimal128

from ximler.analytics.spans import By, midnight, spans, truncated
from ximler.billing import refunds
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import Position
from ximler.core.money import exponent
from ximler.database import Database
from ximler.database.collection import Page
from ximler.schema.payment import Payment

__all__ = ["CashLine", "cash", "payments"]

_log = structlog.get_logger("ximler.analytics")
_AMOUNT = {"$convert": {"input": "$amount", "to": "decimal", "onError": 0, "onNull": 0}}


class CashLine(msgspec.Struct, frozen=True, kw_only=True):
    """A currency's cash over `[start, end)`, in minor units.

    Payments count on the day they were paid, also if they were refunded since; refunds on the day they were made, unless
    they failed; failed payments on the day of the attempt.
    """

    currency: str
    start: date
    end: date
    payments: int = 0
    paid_minor: int = 0
    refunds: int = 0
    refunded_minor: int = 0
    failed: int = 0
    failed_minor: int = 0
    net_minor: int = 0


async def cash(
    database: Database, actor: Actor, *, start: date, end: date, by: By = "MONTH", currency: str | None = None
) -> list[CashLine]:
    """A line for each period and currency that has any. Three commands. Raises Forbidden, and Invalid for an empty range."""
    actor.require_operator()
    if currency is not None:
        exponent(currency.upper())
    within = {"$gte": midnight(start), "$lt": midnight(end)}
    last = dict(spans(start, end, by))
    paid, failed, returned = await asyncio.gather(
        _payments(
            database, {"status": {"$in": ["PAID", "REFUNDED"]}, "paidAt": within}, truncated("$paidAt", start, by)
        ),
        _payments(database, {"status": "FAILED", "createdAt": within}, truncated("$createdAt", start, by)),
        refunds.sums(database, within, truncated("$createdAt", start, by)),
    )
    found: dict[tuple[str, date], dict[str, int]] = defaultdict(dict)
    for names, rows in (
        (("payments", "paid_minor"), paid),
        (("failed", "failed_minor"), failed),
        (("refunds", "refunded_minor"), returned),
    ):
        for code, day, count, minor in rows:
            line = found[code, day]
            for name, value in zip(names, (count, minor), strict=True):
                line[name] = line.get(name, 0) + value
    return [
        CashLine(
            currency=code,
            start=day,
            end=last[day],
            **line,
            net_minor=line.get("paid_minor", 0) - line.get("refunded_minor", 0),
        )
        for (code, day), line in sorted(found.items())
        if currency is None or code == currency.upper()
    ]


async def payments(
    database: Database,
    actor: Actor,
    *,
    start: date,
    end: date,
    failed: bool = False,
    first: int = 20,
    after: Position | None = None,
) -> Page[Payment]:
    """The payments behind the figures, latest first: those that were paid, or those that failed."""
    actor.require_operator()
    spans(start, end, "MONTH", most=None)
    by = "createdAt" if failed else "paidAt"
    statuses = ["FAILED"] if failed else ["PAID", "REFUNDED"]
    where = {"status": {"$in": statuses}, by: {"$gte": midnight(start), "$lt": midnight(end)}}
    return await database.payments.page(where, first=first, after=after, by=by)


async def _payments(
    database: Database, where: dict[str, Any], period: dict[str, Any]
) -> list[tuple[str, date, int, int]]:
    """Currency, period, number and sum. Sums are decimal: amounts are stored as numbers of major units.

    Payments that another application wrote in no currency of ISO 4217 are left out, and logged.
    """
    rows = await database.payments.aggregate(
        [
            {"$match": where},
            {
                "$group": {
                    "_id": {"currency": "$currency", "period": period},
                    "count": {"$sum": 1},
                    "amount": {"$sum": _AMOUNT},
                }
            },
        ]
    )
    found = []
    for row in rows:
        code = str(row["_id"].get("currency") or "USD").upper()
        try:
            minor = _minor(row["amount"], code)
        except Invalid as unknown:
            _log.warning("payments not reported", payments=row["count"], reason=unknown.message)
            continue
        found.append((code, row["_id"]["period"].date(), row["count"], minor))
    return found


def _minor(amount: Any, currency: str) -> int:
    decimal = amount.to_decimal() if isinstance(amount, Decimal128) else Decimal(amount)
    return round(decimal.scaleb(exponent(currency)))
