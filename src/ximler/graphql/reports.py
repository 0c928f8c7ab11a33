"""Resolvers for operators: reports about the business."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date
from typing import Any

import msgspec

from ximler.analytics import cash, customers, discounts, revenue
from ximler.analytics.revenue import CustomerMovement, MovementKind
from ximler.core.ids import decode_cursor
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size

resolvers = Resolvers()

_RANGE = {"from": "start", "from_": "start", "to": "end"}


@resolvers.query("reports")
async def reports(ctx: Context) -> dict[str, Any]:
    ctx.actor.require_operator()
    return {}


def _lines(name: str, report: Callable[..., Awaitable[Sequence[msgspec.Struct]]]) -> None:
    """The field of a report whose lines are periods: `from` and `to` are their names in the API."""

    async def resolve(
        ctx: Context, parents: list[Any], from_: date, to: date, **more: Any
    ) -> list[list[dict[str, Any]]]:
        found = await report(ctx.database, ctx.actor, start=from_, end=to, **more)
        values = [msgspec.structs.asdict(each) for each in found]
        return [[each | {"from": each["start"], "to": each["end"]} for each in values]] * len(parents)

    resolvers.field("Reports", name)(resolve)


def _rows(name: str, report: Callable[..., Awaitable[Sequence[msgspec.Struct]]]) -> None:
    """The field of a report whose lines are as they are."""

    async def resolve(ctx: Context, parents: list[Any], **asked: Any) -> list[Sequence[msgspec.Struct]]:
        named = {_RANGE.get(argument, argument): value for argument, value in asked.items()}
        return [await report(ctx.database, ctx.actor, **named)] * len(parents)

    resolvers.field("Reports", name)(resolve)


_lines("mrr", revenue.mrr)
_lines("churn", revenue.churn)
_lines("cash", cash.cash)
_lines("usage", customers.usage)
_lines("signups", customers.signups)
_rows("cohorts", revenue.cohorts)
_rows("coupons", discounts.coupons)
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
