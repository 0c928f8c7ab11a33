"""Reports of recurring revenue: MRR and its movements, churn and retention, cohorts. Operators only.

Definitions, with an example each, are in docs/analytics.md. Amounts are summed as minor units a year, and
divided by twelve and rounded (half up) once, so that
`start + new + reactivation + expansion - contraction - churn = end` holds in every line. Currencies are never
added. Days are UTC.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, NamedTuple

import msgspec
from bson import ObjectId

from ximler.analytics import retention, rollups
from ximler.analytics.retention import Kept
from ximler.analytics.spans import By, first_day, following, midnight, spans
from ximler.core.actor import Actor
from ximler.core.ids import Position, encode_cursor
from ximler.core.money import exponent
from ximler.database import Database
from ximler.database.pages import Page, check_size
from ximler.schema.customer_day import CUSTOMER_DAYS, CustomerDay, MovementKind
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS, RevenueDay

__all__ = [
    "Churn",
    "Cohort",
    "CohortMonth",
    "CustomerMovement",
    "MovementKind",
    "Mrr",
    "churn",
    "cohorts",
    "movements",
    "mrr",
]

_STORED = dict(zip(RevenueDay.__struct_fields__, RevenueDay.__struct_encode_fields__, strict=True))


class Mrr(msgspec.Struct, frozen=True, kw_only=True):
    """A currency's monthly recurring revenue over `[start, end)`. Amounts in minor units a month.

    `committed_minor` is what remains of the end's MRR without the subscriptions that are cancelled, and at
    the prices that are agreed; `at_risk_minor` is the part whose payment failed. `arpa_minor` is the average
    per customer.
    """

    currency: str
    start: date
    end: date
    start_minor: int
    new_minor: int
    reactivation_minor: int
    expansion_minor: int
    contraction_minor: int
    churn_minor: int
    end_minor: int
    committed_minor: int
    at_risk_minor: int
    arpa_minor: int | None
    customers: int  # at the end
    new: int
    reactivated: int
    expanded: int
    contracted: int
    churned: int
    cancelled: int  # subscriptions that will end with their period


class Churn(msgspec.Struct, frozen=True, kw_only=True):
    """Retention of those who were customers at the start of `[start, end)`.
    Rates are fractions; None without customers.

    `lost` counts those who are not customers at the end. `gross_churn` is churn and contraction, and
    `net_churn` the same less expansion, over the start's MRR; `gross_retention` (GRR) and `net_retention`
    (NRR) look at the same customers' MRR at the end. `lifetime_value_minor` is the average MRR per customer
    over the monthly `logo_churn`; None for other periods, and where no customer was lost.
    """

    currency: str
    start: date
    end: date
    customers: int  # at the start
    lost: int
    logo_churn: float | None
    gross_churn: float | None
    net_churn: float | None
    gross_retention: float | None
    net_retention: float | None
    lifetime_value_minor: int | None


class CohortMonth(msgspec.Struct, frozen=True, kw_only=True):
    """A cohort at the end of a month (or, of the current one, by now)."""

    month: date
    customers: int
    mrr_minor: int


class Cohort(msgspec.Struct, frozen=True, kw_only=True):
    """Those whose recurring revenue began in `month`, and how many of them and of their revenue remain."""

    currency: str
    month: date
    size: int
    months: list[CohortMonth]


class CustomerMovement(msgspec.Struct, frozen=True, kw_only=True):
    """The rows behind a figure: a customer's net change on a day, in minor units a month."""

    user_id: ObjectId
    currency: str
    day: date
    kind: MovementKind | None
    start_minor: int
    end_minor: int
    cancelled: bool


async def mrr(
    database: Database,
    actor: Actor,
    *,
    start: date,
    end: date,
    by: By = "MONTH",
    currency: str | None = None,
) -> list[Mrr]:
    """MRR and its movements between two days (without `end`), a line for each period and currency.

    Raises Forbidden, and Invalid for an empty or too long range.
    """
    actor.require_operator()
    periods = spans(start, end, by)
    found, _ = await _sums(database, start, end, by, currency)
    return [_line(code, each) for code, sums in found.items() for each in _walk(sums, periods)]


async def churn(
    database: Database,
    actor: Actor,
    *,
    start: date,
    end: date,
    by: By = "MONTH",
    currency: str | None = None,
) -> list[Churn]:
    """Churn and retention, a line for each period and currency. Raises as `mrr`.

    One command more than `mrr` for weeks, and for months that the range cuts.
    """
    actor.require_operator()
    periods = spans(start, end, by)
    found, kept = await _sums(database, start, end, by, currency)
    lines = [(code, each) for code, sums in found.items() for each in _walk(sums, periods)]
    if by == "DAY":
        kept = {(code, each.start): retention.of_day(each.moved) for code, each in lines}
    kept |= await retention.kept(
        database, [(code, each.start, each.end) for code, each in lines if (code, each.start) not in kept], by
    )
    return [_retention(code, each, kept[code, each.start], whole=by == "MONTH") for code, each in lines]


async def cohorts(
    database: Database, actor: Actor, *, start: date, end: date, currency: str | None = None
) -> list[Cohort]:
    """The cohorts whose first month lies between two days, month by month until `end`. Raises as `mrr`."""
    actor.require_operator()
    spans(start, end, "MONTH")
    changes, sizes = await _changes(database, end, currency)
    found = []
    for (code, first), changed in sorted(changes.items()):
        if not start.replace(day=1) <= first < end:
            continue
        annual = customers = 0
        month, rows = first, []
        while month < end:
            if change := changed.get(month):
                annual, customers = annual + change[0], customers + change[1]
            rows.append(CohortMonth(month=month, customers=customers, mrr_minor=_twelfth(annual)))
            month = following(month)
        found.append(Cohort(currency=code, month=first, size=sizes[code, first], months=rows))
    return found


async def movements(
    database: Database,
    actor: Actor,
    *,
    start: date,
    end: date,
    currency: str,
    kind: MovementKind | None = None,
    first: int = 20,
    after: Position | None = None,
) -> Page[CustomerMovement]:
    """The customers behind a period's figures, latest first. Raises as `mrr`."""
    actor.require_operator()
    spans(start, end, "MONTH", most=None)
    await rollups.refresh(database)
    where: dict[str, Any] = {"currency": currency.upper(), "day": {"$gte": midnight(start), "$lt": midnight(end)}}
    if kind is not None:
        where["kind"] = kind
    # By day and user, which identify a row: its `_id` is a string, which cursors cannot hold.
    if after is not None:
        day, user_id = after
        where = {"$and": [where, {"$or": [{"day": {"$lt": day}}, {"day": day, "userId": {"$lt": user_id}}]}]}
    check_size(first)
    rows = await database[CUSTOMER_DAYS].find(where, sort=[("day", -1), ("userId", -1)], limit=first + 1)
    cursors = [encode_cursor((each.day, each.user_id)) for each in rows[:first]]
    return Page([_customer(each) for each in rows[:first]], cursors, has_next=len(rows) > first)


class _Held(NamedTuple):
    """Recurring revenue at a moment, in minor units a year, and the number of customers."""

    annual: int = 0
    committed: int = 0
    at_risk: int = 0
    customers: int = 0

    def after(self, sums: Mapping[str, int]) -> "_Held":
        return _Held(
            self.annual + sum(sign * sums[name] for name, sign in _SIGNS.items()),
            self.committed + sums["committed_minor"],
            self.at_risk + sums["at_risk_minor"],
            self.customers + sums["new"] + sums["reactivated"] - sums["churned"],
        )


class _Span(NamedTuple):
    """A period: the revenue before and after it, and its movements."""

    start: date
    end: date
    before: _Held
    held: _Held
    moved: dict[str, int]


_SIGNS = {"new_minor": 1, "reactivation_minor": 1, "expansion_minor": 1, "contraction_minor": -1, "churn_minor": -1}
_MOVED = (*_SIGNS, "new", "reactivated", "expanded", "contracted", "churned", "cancelled")
_SUMMED = {name: _STORED[name] for name in (*_MOVED, "committed_minor", "at_risk_minor")}
_NONE = dict.fromkeys(_SUMMED, 0)


def _walk(sums: Mapping[date, Mapping[str, int]], periods: list[tuple[date, date]]) -> Iterator[_Span]:
    """Each period, from the sums by its first day; those of all days before are at `date.min`."""
    held = _Held().after(sums.get(date.min, _NONE))
    for start, end in periods:
        before, moved = held, sums.get(start, _NONE)
        held = held.after(moved)
        yield _Span(start, end, before, held, {name: moved[name] for name in _MOVED})


def _line(currency: str, span: _Span) -> Mrr:
    before, held, moved = span.before, span.held, span.moved
    # Each amount is the difference of two rounded sums, so that they add up to the end's.
    amounts, annual = dict(moved), before.annual
    rounded = start_minor = _twelfth(annual)
    for name, sign in _SIGNS.items():
        if moved[name]:
            annual += sign * moved[name]
            so_far, rounded = rounded, _twelfth(annual)
            amounts[name] = sign * (rounded - so_far)
    return Mrr(
        currency=currency,
        start=span.start,
        end=span.end,
        start_minor=start_minor,
        end_minor=rounded,
        committed_minor=_twelfth(held.committed),
        at_risk_minor=_twelfth(held.at_risk),
        arpa_minor=_half_up(held.annual, 12 * held.customers) if held.customers else None,
        customers=held.customers,
        **amounts,
    )


def _retention(currency: str, span: _Span, kept: Kept, *, whole: bool) -> Churn:
    line = _line(currency, span)
    customers, annual, lost = span.before.customers, span.before.annual, kept.lost
    net = line.churn_minor + line.contraction_minor - line.expansion_minor
    return Churn(
        currency=line.currency,
        start=line.start,
        end=line.end,
        customers=customers,
        lost=lost,
        logo_churn=lost / customers if customers else None,
        gross_churn=(line.churn_minor + line.contraction_minor) / line.start_minor if line.start_minor else None,
        net_churn=net / line.start_minor if line.start_minor else None,
        gross_retention=(annual - kept.less) / annual if annual else None,
        net_retention=(annual + kept.change) / annual if annual else None,
        lifetime_value_minor=_half_up(annual, 12 * lost) if lost and whole else None,
    )


async def _sums(
    database: Database, start: date, end: date, by: By, currency: str | None
) -> tuple[dict[str, dict[date, dict[str, int]]], dict[tuple[str, date], Kept]]:
    """By currency, the sums of the days of each period by its first day;
    all days before `start` are at `date.min`.

    And the retention of whole months, where it is known.
    """
    if currency is not None:
        exponent(currency.upper())
    await rollups.refresh(database)
    code: Any = currency.upper() if currency else {"$gt": ""}
    first, last = start.replace(day=1), end.replace(day=1)
    months: dict[str, Any] = {"$lt": midnight(last if by == "MONTH" else first)}
    days = [{"$gte": midnight(max(first, last)), "$lt": midnight(end)}]  # of the last month, which the end cuts
    if by != "MONTH":
        days = [{"$gte": midnight(first), "$lt": midnight(end)}]
    elif start > first and first < last:  # of the first month, which the start cuts
        months["$ne"] = midnight(first)
        days.append({"$gte": midnight(first), "$lt": midnight(following(first))})
    by_month, by_day = await asyncio.gather(
        database[REVENUE_MONTHS].aggregate(
            [{"$match": {"currency": code, "month": months}}, {"$project": {"cohorts": 0, "_id": 0, "summed": 0}}]
        ),
        database[REVENUE_DAYS].aggregate(
            [
                {"$match": {"$or": [{"currency": code, "day": each} for each in days]}},
                {"$project": dict.fromkeys(("currency", "day", *_SUMMED.values()), 1) | {"_id": 0}},
            ]
        ),
    )
    found: dict[str, dict[date, dict[str, int]]] = {currency.upper(): {}} if currency else {}
    kept = {
        (row["currency"], row["month"].date()): Kept(row["lost"], row["lessMinor"], row["changeMinor"])
        for row in by_month
        if row.get("lost") is not None
    }
    for row in sorted([*by_month, *by_day], key=lambda row: str(row["currency"])):
        day = (row["month"] if "month" in row else row["day"]).date()
        place = max(start, first_day(day, by)) if day >= start else date.min
        sums = found.setdefault(row["currency"], {}).setdefault(place, dict(_NONE))
        for name, stored in _SUMMED.items():
            sums[name] += row.get(stored, 0)
    return found, kept


async def _changes(
    database: Database, end: date, currency: str | None
) -> tuple[dict[tuple[str, date], dict[date, list[int]]], dict[tuple[str, date], int]]:
    """The changes of each cohort by month: minor units a year, and customers. And the cohorts' sizes.

    Keys are currency and cohort, then the month.
    """
    if currency is not None:
        exponent(currency.upper())
    await rollups.refresh(database)
    code: Any = currency.upper() if currency else {"$gt": ""}
    last = midnight(end.replace(day=1))
    named = {"_id": 0, "currency": 1, "new": 1, "cohorts": 1}
    by_month, by_day = await asyncio.gather(
        database[REVENUE_MONTHS].aggregate(
            [{"$match": {"currency": code, "month": {"$lt": last}}}, {"$project": {**named, "month": 1}}]
        ),
        database[REVENUE_DAYS].aggregate(
            [
                {"$match": {"currency": code, "day": {"$gte": last, "$lt": midnight(end)}}},
                {"$project": {**named, "month": "$day"}},
            ]
        ),
    )
    found: dict[tuple[str, date], dict[date, list[int]]] = {}
    sizes: dict[tuple[str, date], int] = defaultdict(int)
    firsts: dict[str, date] = {}
    for row in [*by_month, *by_day]:
        month, code = row["month"].date().replace(day=1), row["currency"]
        sizes[code, month] += row["new"]
        for cohort, (annual, customers) in row["cohorts"].items():
            first = firsts.get(cohort) or firsts.setdefault(cohort, date.fromisoformat(f"{cohort}-01"))
            so_far = found.setdefault((code, first), {}).setdefault(month, [0, 0])
            so_far[0] += annual
            so_far[1] += customers
    return found, sizes


def _customer(day: CustomerDay) -> CustomerMovement:
    return CustomerMovement(
        user_id=day.user_id,
        currency=day.currency,
        day=day.day.date(),
        kind=day.kind,
        start_minor=_twelfth(day.start_minor),
        end_minor=_twelfth(day.end_minor),
        cancelled=day.cancelled,
    )


def _twelfth(annual: int) -> int:
    return _half_up(annual, 12)


def _half_up(amount: int, divisor: int) -> int:
    whole = (2 * abs(amount) + divisor) // (2 * divisor)
    return whole if amount >= 0 else -whole
