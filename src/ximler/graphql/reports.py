"""Resolvers for operators: reports about the business."""

from datetime import date
from typing import Any

import msgspec

from ximler.analytics import discounts, revenue
from ximler.analytics.discounts import CouponLine
from ximler.analytics.revenue import By, Cohort, CustomerMovement, MovementKind
from ximler.core.ids import decode_cursor
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size

resolvers = Resolvers()


@resolvers.query("reports")
async def reports(ctx: Context) -> dict[str, Any]:
    ctx.actor.require_operator()
    return {}


@resolvers.field("Reports", "mrr")
async def mrr(
    ctx: Context, parents: list[Any], from_: date, to: date, by: By, currency: str | None = None
) -> list[list[dict[str, Any]]]:
    found = await revenue.mrr(ctx.database, ctx.actor, start=from_, end=to, by=by, currency=currency)
    return [[_line(each) for each in found]] * len(parents)


@resolvers.field("Reports", "churn")
async def churn(
    ctx: Context, parents: list[Any], from_: date, to: date, by: By, currency: str | None = None
) -> list[list[dict[str, Any]]]:
    found = await revenue.churn(ctx.database, ctx.actor, start=from_, end=to, by=by, currency=currency)
    return [[_line(each) for each in found]] * len(parents)


@resolvers.field("Reports", "cohorts")
async def cohorts(
    ctx: Context, parents: list[Any], from_: date, to: date, currency: str | None = None
) -> list[list[Cohort]]:
    return [await revenue.cohorts(ctx.database, ctx.actor, start=from_, end=to, currency=currency)] * len(parents)


@resolvers.field("Reports", "coupons")
async def coupons(ctx: Context, parents: list[Any], from_: date, to: date) -> list[list[CouponLine]]:
    return [await discounts.coupons(ctx.database, ctx.actor, start=from_, end=to)] * len(parents)


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


def _line(line: revenue.Mrr | revenue.Churn) -> dict[str, Any]:
    """`from` and `to` are its names in the API."""
    values = msgspec.structs.asdict(line)
    return values | {"from": values["start"], "to": values["end"]}
