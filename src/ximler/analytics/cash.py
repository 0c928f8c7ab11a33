"""The report of cash: payments, refunds and failed payments. Operators only.
Rolled up by day from billing's documents."""

import asyncio
import operator
from collections import defaultdict
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import structlog
from bson import Decimal128

from ximler.analytics import buckets
from ximler.analytics.spans import By, first_day, midnight, spans, truncated
from ximler.billing import refunds
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import Position
from ximler.core.money import exponent
from ximler.database import Database
from ximler.database.collection import Page
from ximler.schema.payment import Payment

__all__ = ["BUCKETS", "CashLine", "cash", "payments"]

_log = structlog.get_logger("ximler.analytics")
_AMOUNT = {"$convert": {"input": "$amount", "to": "decimal", "onError": 0, "onNull": 0}}


class CashLine(msgspec.Struct, frozen=True, kw_only=True):
    """A currency's cash over `[start, end)`, in minor units.

    Payments count on the day they were paid, also if they were refunded since; refunds on the day they were
    made, unless they failed; failed payments on the day of the attempt.
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
    """A line for each period and currency that has any. Raises Forbidden, and Invalid for an empty range.

    One command for months that are rolled up, one for the days of others, and three for the last days.
    """
    actor.require_operator()
    if currency is not None:
        exponent(currency.upper())
    periods = spans(start, end, by)
    last = dict(periods)
    months = [each for each in periods if buckets.is_settled(database, *each)] if by == "MONTH" else []
    days = [(start, months[0][0]), (months[-1][1], end)] if months else [(start, end)]
    parts = await asyncio.gather(
        *(buckets.read(database, BUCKETS, spans(*each, "DAY", most=None), "DAY") for each in days if each[0] < each[1]),
        *([buckets.read(database, BUCKETS, months, "MONTH")] if months else []),
    )
    found: dict[tuple[str, date], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for day, lines in ((day, lines) for part in parts for day, lines in part.items()):
        for line in lines:
            sums = found[line["currency"], max(start, first_day(day, by))]
            for name, stored in _STORED.items():
                sums[name] += line.get(stored, 0)
    return [
        CashLine(currency=code, start=day, end=last[day], **sums, net_minor=sums["paid_minor"] - sums["refunded_minor"])
        for (code, day), sums in sorted(found.items())
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


async def _computed(database: Database, start: date, end: date, by: By) -> dict[date, list[dict[str, Any]]]:
    """The lines of each period from the documents. Three commands at once."""
    within = {"$gte": midnight(start), "$lt": midnight(end)}
    paid, failed, returned = await asyncio.gather(
        _payments(
            database, {"status": {"$in": ["PAID", "REFUNDED"]}, "paidAt": within}, truncated("$paidAt", start, by)
        ),
        _payments(database, {"status": "FAILED", "createdAt": within}, truncated("$createdAt", start, by)),
        refunds.sums(database, within, truncated("$createdAt", start, by)),
    )
    found: dict[date, dict[str, dict[str, Any]]] = defaultdict(dict)
    for names, rows in (
        (("payments", "paidMinor"), paid),
        (("failed", "failedMinor"), failed),
        (("refunds", "refundedMinor"), returned),
    ):
        for code, day, count, minor in rows:
            line = found[day].setdefault(code, {"currency": code})
            for name, value in zip(names, (count, minor), strict=True):
                line[name] = line.get(name, 0) + value
    return {day: [line for _, line in sorted(lines.items())] for day, lines in found.items()}


_STORED = {
    "payments": "payments",
    "paid_minor": "paidMinor",
    "refunds": "refunds",
    "refunded_minor": "refundedMinor",
    "failed": "failed",
    "failed_minor": "failedMinor",
}
BUCKETS = buckets.Report("cash", ("DAY", "MONTH"), _computed, operator.eq, 0)


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
