"""Resolvers for operators: reports about the business. With Valkey, processes share their results."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from functools import partial
from typing import Any, get_type_hints

import msgspec

from ximler.analytics import cash, customers, discounts, revenue
from ximler.analytics.discounts import CouponInvoice
from ximler.analytics.revenue import CustomerMovement, MovementKind
from ximler.core.ids import decode_cursor
from ximler.database.results import Kind
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size

resolvers = Resolvers()
KINDS: list[Kind] = []
Lines = Sequence[msgspec.Struct]
Report = Callable[..., Awaitable[Lines]]

# Collections that reports read. The others read what changes with every call
# or sign-in: their results expire.
_REVENUE = frozenset({"movements", "customerdays", "revenuedays", "revenuemonths"})
_CASH = frozenset({"payments", "refunds", "reportbuckets"})
_INVOICES = frozenset({"invoices"})

_RANGE = {"from": "start", "from_": "start", "to": "end"}


@resolvers.query("reports")
async def reports(ctx: Context) -> dict[str, Any]:
    ctx.actor.require_operator()
    return {}


def _shared(name: str, report: Report, reads: frozenset[str]) -> Callable[..., Awaitable[Lines]]:
    """The report, or its result that another call has computed."""
    kind = Kind(name, reads)
    KINDS.append(kind)
    of = get_type_hints(report)["return"]

    async def ask(ctx: Context, **asked: Any) -> Lines:
        ctx.actor.require_operator()
        load = partial(report, ctx.database, ctx.actor, **asked)
        if ctx.results is None:
            return await load()
        return await ctx.results.get(kind, ctx.actor, asked, load, of=of)

    return ask


def _lines(name: str, report: Report, reads: frozenset[str] = frozenset()) -> None:
    """The field of a report whose lines are periods: `from` and `to` are their names in the API."""
    ask = _shared(name, report, reads)

    async def resolve(
        ctx: Context, parents: list[Any], from_: date, to: date, **more: Any
    ) -> list[list[dict[str, Any]]]:
        values = [msgspec.structs.asdict(each) for each in await ask(ctx, start=from_, end=to, **more)]
        return [[each | {"from": each["start"], "to": each["end"]} for each in values]] * len(parents)

    resolvers.field("Reports", name)(resolve)


def _rows(name: str, report: Report, reads: frozenset[str] = frozenset()) -> None:
    """The field of a report whose lines are as they are."""
    ask = _shared(name, report, reads)

    async def resolve(ctx: Context, parents: list[Any], **asked: Any) -> list[Lines]:
        return [await ask(ctx, **{_RANGE.get(name, name): value for name, value in asked.items()})] * len(parents)

    resolvers.field("Reports", name)(resolve)


_lines("mrr", revenue.mrr, _REVENUE)
_lines("churn", revenue.churn, _REVENUE)
_lines("cash", cash.cash, _CASH)
_lines("usage", customers.usage)
_lines("signups", customers.signups)
_rows("cohorts", revenue.cohorts, _REVENUE)
_rows("coupons", discounts.coupons, _INVOICES)
_rows("largest", customers.largest)
_rows("nearLimits", customers.near_limits)
_rows("signupsOf", customers.signups_of)
_rows("storage", customers.storage)


@resolvers.field("Reports", "movements")
async def movements(
    ctx: Context,
    parents: list[Any],
    from_: date,
    to: date,
    currency: str,
    kind: MovementKind | None = None,
    first: int | None = None,
    after: str | None = None,
) -> list[Connection[CustomerMovement]]:
    page = await revenue.movements(
        ctx.database,
        ctx.actor,
        start=from_,
        end=to,
        currency=currency,
        kind=kind,
        first=page_size(first),
        after=None if after is None else decode_cursor(after),
    )
    return [Connection(page)] * len(parents)


@resolvers.field("Reports", "couponInvoices")
async def coupon_invoices(
    ctx: Context,
    parents: list[Any],
    from_: date,
    to: date,
    code: str,
    first: int | None = None,
    after: str | None = None,
) -> list[Connection[CouponInvoice]]:
    page = await discounts.invoices_of(
        ctx.database,
        ctx.actor,
        code=code,
        start=from_,
        end=to,
        first=page_size(first),
        after=None if after is None else decode_cursor(after),
    )
    return [Connection(page)] * len(parents)
