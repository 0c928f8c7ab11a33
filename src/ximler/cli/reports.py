"""`ximler reports mrr|churn|cohorts|coupons|coupon-invoices|movements|verify|rebuild`, for operators.
`reports_customers` has the others."""

import csv
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ximler.cli.context import Run, camel, connected, counted, fields, paged, progress_bar
from ximler.core.money import Money

if TYPE_CHECKING:
    from ximler.database.collection import Page

_EMPTY = "There is no recurring revenue in this range."
_NO_COUPONS = "No coupon was used in this range."
_PLOTTED = 6  # cohorts
_MOST_BARS = 12
_KINDS = ["NEW", "REACTIVATION", "EXPANSION", "CONTRACTION", "CHURN"]


class Day(click.ParamType[date]):
    """2026-11-30, or 2026-11 for its first day."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value if len(value) > 7 else f"{value}-01")
        except ValueError:
            self.fail(f"{value!r} is not a day such as 2026-11-30, or a month such as 2026-11", param, ctx)


start_option = click.option("--from", "start", type=Day(), help="The first day, in UTC. A year ago unless given.")
end_option = click.option("--to", "end", type=Day(), help="The day after the last, in UTC. Tomorrow unless given.")


def _range(command: Any) -> Any:
    for option in (
        click.option("--currency", help="Only this one. Every currency unless given."),
        end_option,
        start_option,
    ):
        command = option(command)
    return command


by = click.option(
    "--by", type=click.Choice(["DAY", "WEEK", "MONTH"], case_sensitive=False), default="MONTH", show_default=True
)
plot_option = click.option("--plot", "as_plot", is_flag=True, help="Draw the figures in the terminal.")
csv_option = click.option("--csv", "as_csv", is_flag=True, help="Print CSV; sums of money are in minor units.")


@click.group()
def reports() -> None:
    """Reports about the business. Definitions are in docs/analytics.md."""


@reports.command()
@_range
@by
@csv_option
@plot_option
@connected(json="Print the lines as JSON.")
async def mrr(run: Run, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """Monthly recurring revenue, and its movements."""
    from ximler.analytics import revenue

    found = await revenue.mrr(run.database, run.actor, **asked_range(asked))
    if as_plot:
        from ximler.cli.plots import plot

        lines: dict[str, list[Any]] = {}
        for each in found:
            lines.setdefault(each.currency, []).append((each.start, float(Money(each.end_minor, each.currency).major)))
        plot("MRR at the end of each period", lines, empty=_EMPTY)
        return
    show(
        run,
        revenue.Mrr,
        found,
        as_csv=as_csv,
        columns={
            "From": lambda each: each.start,
            "Start": money("start_minor"),
            "New": money("new_minor"),
            "Reactivated": money("reactivation_minor"),
            "Expansion": money("expansion_minor"),
            "Contraction": money("contraction_minor"),
            "Churn": money("churn_minor"),
            "End": money("end_minor"),
            "At risk": money("at_risk_minor"),
            "Customers": lambda each: f"{each.customers:,}",
        },
    )


@reports.command()
@_range
@by
@csv_option
@plot_option
@connected(json="Print the lines as JSON.")
async def churn(run: Run, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """Churn and retention."""
    from ximler.analytics import revenue

    found = await revenue.churn(run.database, run.actor, **asked_range(asked))
    if as_plot:
        from ximler.cli.plots import plot

        rates: dict[str, list[Any]] = {}
        for each in found:
            rates.setdefault(each.currency, []).append((each.start, 100 * (each.logo_churn or 0)))
        plot("Logo churn, percent", rates, empty=_EMPTY)
        return
    show(
        run,
        revenue.Churn,
        found,
        as_csv=as_csv,
        columns={
            "From": lambda each: each.start,
            "Currency": lambda each: each.currency,
            "Customers": lambda each: f"{each.customers:,}",
            "Lost": lambda each: f"{each.lost:,}",
            "Logo churn": percent("logo_churn"),
            "Gross churn": percent("gross_churn"),
            "Net churn": percent("net_churn"),
            "GRR": percent("gross_retention"),
            "NRR": percent("net_retention"),
            "LTV": money("lifetime_value_minor"),
        },
    )


@reports.command()
@_range
@csv_option
@plot_option
@connected(json="Print the cohorts as JSON.")
async def cohorts(run: Run, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """Customers by the month they began, and how many of them remain after each month."""
    from ximler.analytics import revenue

    found = await revenue.cohorts(run.database, run.actor, **asked_range(asked))
    if as_plot:
        from ximler.cli.plots import plot

        latest = sorted(found, key=lambda each: each.month)[-_PLOTTED:]
        named = {f"{each.month:%Y-%m} {each.currency}": each.months for each in latest}
        remaining = {name: [(each.month, float(each.customers)) for each in months] for name, months in named.items()}
        plot("Customers who remain, by cohort", remaining, empty=_EMPTY)
        return
    if as_csv:
        print_csv(
            ["currency", "cohort", "size", *map(camel, revenue.CohortMonth.__struct_fields__)],
            [
                {"currency": each.currency, "cohort": each.month, "size": each.size, **row_of(month)}
                for each in found
                for month in each.months
            ],
        )
        return
    longest = max((len(each.months) for each in found), default=0)
    run.show_list(
        found,
        row=lambda each: row_of(each) | {"months": [row_of(month) for month in each.months]},
        columns={
            "Month": lambda each: f"{each.month:%Y-%m}",
            "Currency": lambda each: each.currency,
            "Size": lambda each: f"{each.size:,}",
            **{f"+{index}": _remaining(index) for index in range(longest)},
        },
        empty=_EMPTY,
    )


@reports.command()
@start_option
@end_option
@csv_option
@plot_option
@connected(json="Print the coupons as JSON.")
async def coupons(run: Run, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """The discount that each coupon gave on paid invoices, the largest first."""
    from ximler.analytics import discounts

    found = await discounts.coupons(run.database, run.actor, **asked_range(asked))
    if as_plot:
        from ximler.cli.plots import bars

        largest = {
            f"{each.code} {each.currency}": float(Money(each.discount_minor, each.currency).major)
            for each in found[:_MOST_BARS]
        }
        bars("Discount on paid invoices", largest, empty=_NO_COUPONS)
        return
    show(
        run,
        discounts.CouponLine,
        found,
        as_csv=as_csv,
        columns={
            "Code": lambda each: each.code,
            "Invoices": lambda each: f"{each.invoices:,}",
            "Customers": lambda each: f"{each.customers:,}",
            "Taken off": money("discount_minor"),
        },
        empty=_NO_COUPONS,
    )


@reports.command("coupon-invoices")
@click.argument("code")
@start_option
@end_option
@paged
@csv_option
@connected(json="Print the invoices and the next cursor as JSON.")
async def coupon_invoices(run: Run, code: str, limit: int, after: Any, as_csv: bool, **asked: Any) -> None:
    """List the invoices behind the figures of a coupon."""
    from ximler.analytics import discounts

    show(
        run,
        discounts.CouponInvoice,
        await discounts.invoices_of(run.database, run.actor, code=code, first=limit, after=after, **asked_range(asked)),
        as_csv=as_csv,
        columns={
            "Issued": lambda each: each.issued,
            "Number": lambda each: each.number or "",
            "User": lambda each: each.user_id,
            "Taken off": money("discount_minor"),
        },
        empty=_NO_COUPONS,
    )


@reports.command()
@start_option
@end_option
@click.option("--currency", default="USD", show_default=True)
@click.option("--kind", type=click.Choice(_KINDS, case_sensitive=False), help="Every kind unless given.")
@paged
@csv_option
@connected(json="Print the customers and the next cursor as JSON.")
async def movements(run: Run, kind: Any, limit: int, after: Any, as_csv: bool, **asked: Any) -> None:
    """List the customers behind the figures: each one's net change by day."""
    from ximler.analytics import revenue

    page = await revenue.movements(run.database, run.actor, kind=kind, first=limit, after=after, **asked_range(asked))
    show(
        run,
        revenue.CustomerMovement,
        page,
        as_csv=as_csv,
        columns={
            "Day": lambda each: each.day,
            "User": lambda each: each.user_id,
            "Kind": lambda each: each.kind or ("CANCELLED" if each.cancelled else ""),
            "Before": money("start_minor"),
            "After": money("end_minor"),
        },
    )


@reports.command()
@click.option("--repair", is_flag=True, help="Add what the ledger lacks, as of now, and compute wrong rollups anew.")
@connected(json="Print what differs as JSON.")
async def verify(run: Run, repair: bool) -> int | None:
    """Compare the ledger of recurring revenue with the subscriptions, and the rollups with it.
    Exit code 1 if they differ."""
    from ximler.analytics import verification
    from ximler.billing import drifts

    found = await drifts.check(run.database, repair=repair)
    wrong = await verification.verify(run.database)
    if wrong and repair:
        await verification.rebuild(run.database)
    if run.as_json:
        items = [row_of(each) for each in found]
        run.show({"items": items, "next": None, "rollups": [row_of(each) for each in wrong]}, "")
    else:
        run.show_list(
            found,
            row=row_of,
            columns={
                "User": lambda each: each.user_id,
                "Subscription": lambda each: each.subscription_id,
                "Recorded a year": lambda each: str(Money(each.recorded_minor, each.currency)),
                "Actual a year": lambda each: str(Money(each.actual_minor, each.currency)),
            },
            empty="The ledger agrees with every subscription.",
        )
        if found:
            subscriptions = counted(len(found), "subscription")
            click.echo(f"{subscriptions} corrected." if repair else f"{subscriptions} differ: --repair corrects them.")
        if wrong:
            run.show_list(
                wrong,
                row=row_of,
                columns={
                    "Rollup": lambda each: each.rollup,
                    "Id": lambda each: each.id,
                    "Problem": lambda each: each.problem,
                },
                empty="",
            )
            differing = counted(len(wrong), "rollup")
            click.echo(f"{differing} computed anew." if repair else f"{differing} differ: --repair computes them anew.")
        else:
            click.echo("The rollups agree with the ledger.")
    return 1 if (found or wrong) and not repair else None


@reports.command()
@connected(json="Print the number of movements as JSON.")
async def rebuild(run: Run) -> None:
    """Compute the rollups anew, from the ledgers and the payments. Reports stay usable meanwhile."""
    from ximler.analytics import verification

    with progress_bar("Rolling up", "movements", quiet=run.as_json) as progress:
        count = await verification.rebuild(run.database, progress=progress)
    run.show({"movements": count}, f"{counted(count, 'movement')} rolled up.")


def asked_range(asked: dict[str, Any]) -> dict[str, Any]:
    """The options, with the last year for a range that was not given."""
    end = asked["end"] or datetime.now(UTC).date() + timedelta(days=1)
    if asked["end"] is None and asked["start"] is not None and asked["start"] >= end:
        raise click.UsageError(f"--from: {asked['start']} is in the future.")
    start = asked["start"] or (end - timedelta(days=365)).replace(day=1)
    return asked | {"start": start, "end": end}


def show(
    run: Run,
    kind: type[msgspec.Struct],
    found: "Sequence[Any] | Page[Any]",
    *,
    as_csv: bool,
    columns: dict[str, Callable[[Any], object]],
    empty: str = _EMPTY,
) -> None:
    if as_csv:
        items = found if isinstance(found, Sequence) else found.items
        print_csv([*map(camel, kind.__struct_fields__)], [row_of(each) for each in items])
    else:
        run.show_list(found, row=row_of, columns=columns, empty=empty)


def row_of(each: msgspec.Struct) -> dict[str, Any]:
    """Its fields, by the names that JSON, CSV and GraphQL give them."""
    return fields(each, " ".join(each.__struct_fields__))


def print_csv(columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def money(name: str) -> Callable[[Any], str]:
    def shown(each: Any) -> str:
        minor = getattr(each, name)
        return "" if minor is None else str(Money(minor, each.currency))

    return shown


def percent(name: str) -> Callable[[Any], str]:
    def shown(each: Any) -> str:
        rate = getattr(each, name)
        return "" if rate is None else f"{100 * rate:.1f}%"

    return shown


def _remaining(index: int) -> Callable[[Any], str]:
    def shown(each: Any) -> str:
        return f"{each.months[index].customers:,}" if index < len(each.months) else ""

    return shown
