"""`ximler billing coupon create|list|edit|end`, for operators."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from ximler.cli.context import Run, connected, fields, minute, paged

__all__ = ["coupon"]

_DAYS = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_MAX_PERCENT = 100
_MAX_COUNT = 1_000_000_000
_code = click.argument("code", metavar="CODE")


class _Value(click.ParamType[Decimal]):
    """20% or 5.00."""

    name = "discount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = Decimal(value.removesuffix("%"))
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            self.fail(f"{value!r} is neither a percentage such as 20% nor an amount such as 5.00", param, ctx)
        if value.endswith("%") and not 0 < number <= _MAX_PERCENT:
            self.fail(f"{value!r} is not a percentage above 0, and 100 at most", param, ctx)
        return ("PERCENTAGE" if value.endswith("%") else "FIXED"), number


def _terms(command: Any) -> Any:
    """The options of a coupon's terms."""
    for option in (
        click.option(
            "--periods", "duration_periods", type=click.IntRange(1, _MAX_COUNT), help="Renewals of a REPEATING coupon."
        ),
        click.option(
            "--duration",
            type=click.Choice(["ONCE", "REPEATING", "FOREVER"], case_sensitive=False),
            help="ONCE unless given.",
        ),
        click.option(
            "--plan", "applicable_plans", multiple=True, help="For this plan only; repeatable. Every plan unless given."
        ),
        click.option("--until", "valid_until", type=_DAYS, help="Valid until then, in UTC."),
        click.option("--from", "valid_from", type=_DAYS, help="Valid from then, in UTC. From now unless given."),
        click.option("--max-uses", type=click.IntRange(1, _MAX_COUNT), help="Unlimited unless given."),
        click.option("--currency", help="Of an amount. USD unless given."),
        click.option("--description", help="Shown to customers."),
        click.option("--name", help="Shown to customers."),
    ):
        command = option(command)
    return command


@click.group()
def coupon() -> None:
    """Create, list, edit and end coupons."""


@coupon.command()
@_code
@click.argument("value", metavar="DISCOUNT", type=_Value())
@_terms
@connected(json="Print the coupon as JSON.")
async def create(run: Run, code: str, value: Any, **terms: Any) -> None:
    """Create the coupon CODE, which takes off DISCOUNT: 20% or 5.00. Audited."""
    from ximler.billing import coupons

    given = _given(terms)
    if "valid_until" not in given:
        raise click.UsageError("--until is required")
    kind, amount = value
    given = {"name": code.upper()} | given
    _show(run, await coupons.create(run.database, run.actor, code=code, type=kind, value=amount, **given), "created")


@coupon.command("list")
@click.option("--active", is_flag=True, help="Only those that have not ended.")
@paged
@connected(json="Print coupons and the next cursor as JSON.")
async def list_coupons(run: Run, active: bool, limit: int, after: Any) -> None:
    """List coupons, newest first."""
    from ximler.billing import coupons

    run.show_list(
        await coupons.page(run.database, run.actor, active=active or None, first=limit, after=after),
        row=_row,
        columns={
            "Code": lambda each: each.code,
            "Discount": _discount,
            "Duration": lambda each: each.duration or "ONCE",
            "Used": lambda each: f"{each.used_count:,}" + (f" of {each.max_uses:,}" if each.max_uses else ""),
            "Plans": lambda each: ", ".join(each.applicable_plans) or "all",
            "Until (UTC)": lambda each: minute(each.valid_until) if each.active else "ended",
        },
        empty="There are no coupons.",
    )


@coupon.command()
@_code
@click.option("--discount", "value", type=_Value(), help="20% or 5.00.")
@_terms
@connected(json="Print the coupon as JSON.")
async def edit(run: Run, code: str, value: Any, **terms: Any) -> None:
    """Change the terms of CODE for later redemptions. Audited."""
    from ximler.billing import coupons

    changes = _given(terms)
    if value is not None:
        changes["type"], changes["value"] = value
    if not changes:
        raise click.UsageError("Nothing to change: name at least one option")
    _show(run, await coupons.edit(run.database, run.actor, code, **changes), "changed")


@coupon.command()
@_code
@connected(json="Print the coupon as JSON.")
async def end(run: Run, code: str) -> None:
    """End CODE. Reservations that customers hold can still be used. Audited."""
    from ximler.billing import coupons

    _show(run, await coupons.end(run.database, run.actor, code), "ended")


def _given(terms: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, with times in UTC."""
    return {
        name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
        for name, value in terms.items()
        if value not in (None, ())
    }


def _discount(each: Any) -> str:
    return f"{each.value}%" if each.type == "PERCENTAGE" else f"{each.value} {each.currency}"


def _show(run: Run, each: Any, done: str) -> None:
    run.show(_row(each), f"The coupon {each.code} ({_discount(each)} off) is {done}.")


def _row(each: Any) -> dict[str, Any]:
    names = "code name description type value currency duration duration_periods max_uses used_count active"
    return fields(each, f"{names} valid_from valid_until applicable_plans")
