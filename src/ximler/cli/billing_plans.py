"""`ximler billing plan create|edit|retire|list`, for operators."""

from decimal import Decimal, InvalidOperation
from typing import Any

import click

from ximler.cli.context import Run, connected, fields

__all__ = ["plan"]

_LIMITS = ("projects", "storage", "api_calls")


class _Price(click.ParamType[Decimal]):
    """Major units: 29.99."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            self.fail(f"{value!r} is not a price such as 29.99", param, ctx)
        return number


def _terms(command: Any) -> Any:
    """The options of a plan's terms."""
    for option in (
        click.option("--stripe-price", "stripe_price_id", help="The price's id at Stripe."),
        click.option("--trial-days", type=click.IntRange(0), help="Days that are free for a new subscriber."),
        click.option("--feature", "features", multiple=True, help="Shown to customers; repeatable."),
        click.option("--api-calls", type=click.IntRange(-1), help="A month; -1 is unlimited."),
        click.option("--storage", type=click.FloatRange(-1), help="GB of 10⁹ bytes; -1 is unlimited."),
        click.option("--projects", type=click.IntRange(-1), help="-1 is unlimited."),
        click.option("--description", help="Shown to customers."),
    ):
        command = option(command)
    return command


@click.group()
def plan() -> None:
    """Create, edit, retire and list plans.

    \b
    ximler billing plan create team 49 --name Team --projects 20 --storage 20 --api-calls 50000
    ximler billing plan edit team --price 59 --trial-days 14
    """


@plan.command()
@click.argument("plan", metavar="ID")
@click.argument("price", type=_Price())
@click.option("--name", required=True, help="Shown to customers.")
@click.option("--currency", default="USD", show_default=True, help="ISO 4217.")
@click.option(
    "--interval", type=click.Choice(["MONTH", "YEAR"], case_sensitive=False), default="MONTH", show_default=True
)
@_terms
@connected(json="Print the plan as JSON.")
async def create(run: Run, plan: str, price: Decimal, interval: str, **terms: Any) -> None:
    """Put the plan ID on offer for PRICE, in major units: 29.99. Audited.

    --projects, --storage and --api-calls are required.
    """
    from ximler.billing import catalogue

    given = _given(terms)
    missing = [name for name in _LIMITS if name not in given.get("limits", {})]
    if missing:
        raise click.UsageError(f"--{missing[0].replace('_', '-')} is required")
    made = await catalogue.create(run.database, run.actor, id=plan, price=price, interval=interval.upper(), **given)  # type: ignore[arg-type]  # one of the choices
    _show(run, made, "on offer")


@plan.command()
@click.argument("plan", metavar="ID")
@click.option("--name", help="Shown to customers.")
@click.option("--price", type=_Price(), help="For new subscribers, in major units: 29.99.")
@click.option("--active", is_flag=True, help="Put a retired plan on offer again.")
@_terms
@connected(json="Print the plan as JSON.")
async def edit(run: Run, plan: str, active: bool, **terms: Any) -> None:
    """Change the plan ID. Audited.

    The price is for new subscribers. Limits apply to every subscriber at once.
    """
    from ximler.billing import catalogue

    changes = _given(terms) | ({"active": True} if active else {})
    if not changes:
        raise click.UsageError("Nothing to change: name at least one option")
    _show(run, await catalogue.edit(run.database, run.actor, plan, **changes), "changed")


@plan.command()
@click.argument("plan", metavar="ID")
@connected(json="Print the plan as JSON.")
async def retire(run: Run, plan: str) -> None:
    """Take the plan ID off the offer. Its subscribers keep it. Audited.

    `ximler billing plan edit ID --active` takes this back.
    """
    from ximler.billing import catalogue

    _show(run, await catalogue.retire(run.database, run.actor, plan), "retired")


@plan.command("list")
@connected(json="Print the plans as JSON.")
async def list_plans(run: Run) -> None:
    """List the plans on offer, cheapest first, then the retired ones."""
    from ximler.billing import catalogue

    run.show_list(
        await catalogue.every(run.database, run.actor),
        row=_row,
        columns={
            "Plan": lambda each: each.id,
            "Name": lambda each: each.name,
            "Price": lambda each: f"{each.price_money} a {each.interval.lower()}",
            "Projects": lambda each: _limit(each.limits.projects),
            "Storage (GB)": lambda each: _limit(each.limits.storage),
            "API calls": lambda each: _limit(each.limits.api_calls),
            "Trial (days)": lambda each: each.trial_days or "",
            "On offer": lambda each: "yes" if each.active else "retired",
        },
        empty="There are no plans.",
    )


def _given(terms: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, limits together."""
    given = {name: value for name, value in terms.items() if value not in (None, ())}
    limits = {name: given.pop(name) for name in _LIMITS if name in given}
    return given | ({"limits": limits} if limits else {})


def _limit(value: float) -> str:
    return "unlimited" if value < 0 else f"{value:,}"


def _show(run: Run, each: Any, done: str) -> None:
    run.show(_row(each), f"The plan {each.id} ({each.price_money} a {each.interval.lower()}) is {done}.")


def _row(each: Any) -> dict[str, Any]:
    names = "id name description price currency interval features trial_days stripe_price_id active"
    return fields(each, names) | {"limits": fields(each.limits, " ".join(_LIMITS))}
