"""`ximler reports cash|payments|usage|largest|near-limits|signups|storage`, for operators."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import click

from ximler.cli.context import Run, connected, fields, paged
from ximler.cli.reports import (
    Day,
    asked_range,
    by,
    csv_option,
    end_option,
    money,
    percent,
    plot_option,
    print_csv,
    reports,
    show,
    start_option,
)
from ximler.core.money import Money
from ximler.metering.limits.plans import FREE_PLAN

_EMPTY = "Nothing is stored."
_NO_SIGNUPS = "There is no sign-up in this range."
_first = click.option("--first", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")


@reports.command()
@start_option
@end_option
@click.option("--currency", help="Only this one. Every currency unless given.")
@by
@csv_option
@plot_option
@connected(json="Print the lines as JSON.")
async def cash(run: Run, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """Payments, refunds and failed payments."""
    from ximler.analytics import cash as report

    found = await report.cash(run.database, run.actor, **asked_range(asked))
    if as_plot:
        from ximler.cli.plots import plot

        lines: dict[str, list[Any]] = defaultdict(list)
        for each in found:
            lines[each.currency].append((each.start, float(Money(each.net_minor, each.currency).major)))
        plot("Payments less refunds", lines, empty="There is no payment in this range.")
        return
    show(
        run,
        report.CashLine,
        found,
        as_csv=as_csv,
        columns={
            "From": lambda each: each.start,
            "Payments": lambda each: f"{each.payments:,}",
            "Paid": money("paid_minor"),
            "Refunds": lambda each: f"{each.refunds:,}",
            "Refunded": money("refunded_minor"),
            "Failed": lambda each: f"{each.failed:,}",
            "Failed sum": money("failed_minor"),
            "Net": money("net_minor"),
        },
        empty="There is no payment in this range.",
    )


@reports.command()
@start_option
@end_option
@click.option("--failed", is_flag=True, help="Failed payments instead of paid ones.")
@paged
@csv_option
@connected(json="Print the payments and the next cursor as JSON.")
async def payments(run: Run, failed: bool, limit: int, after: Any, as_csv: bool, **asked: Any) -> None:
    """List the payments behind the figures of cash."""
    from ximler.analytics import cash as report

    columns = ["id", "userId", "paidAt", "createdAt", "amount", "status", "failure"]

    def row(each: Any) -> dict[str, Any]:
        return fields(each, "id user_id paid_at created_at status failure") | {"amount": str(each.amount_money)}

    page = await report.payments(run.database, run.actor, failed=failed, first=limit, after=after, **asked_range(asked))
    if as_csv:
        print_csv(columns, [row(each) for each in page.items])
        return
    run.show_list(
        page,
        row=row,
        columns={
            "Paid": lambda each: f"{each.paid_at or each.created_at:%Y-%m-%d %H:%M}",
            "User": lambda each: each.user_id,
            "Amount": lambda each: str(each.amount_money),
            "Status": lambda each: each.status,
            "Failure": lambda each: each.failure or "",
        },
        empty="There is no payment in this range.",
    )


@reports.command()
@start_option
@end_option
@by
@csv_option
@plot_option
@connected(json="Print the lines as JSON.")
async def usage(run: Run, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """Calls, projects and bytes by plan: calls made, projects and bytes added."""
    from ximler.analytics import customers

    found = await customers.usage(run.database, run.actor, **asked_range(asked))
    if as_plot:
        from ximler.cli.plots import plot

        calls: dict[str, list[Any]] = defaultdict(list)
        for each in found:
            if each.resource == "apiCalls":
                calls[each.plan_id or FREE_PLAN].append((each.start, float(each.amount)))
        plot("API calls by plan", calls, empty="There are no API calls in this range.")
        return
    show(
        run,
        customers.UsageLine,
        found,
        as_csv=as_csv,
        columns={
            "From": lambda each: each.start,
            "Resource": lambda each: each.resource,
            "Plan": lambda each: each.plan_id or FREE_PLAN,
            "Users": lambda each: f"{each.users:,}",
            "Amount": lambda each: f"{each.amount:,}",
        },
        empty="There is no usage in this range.",
    )


@reports.command()
@click.argument("resource", type=click.Choice(["apiCalls", "projects", "storage"]), default="apiCalls")
@click.option("--from", "start", type=Day(), help="The first day, in UTC. That of this month unless given.")
@end_option
@_first
@csv_option
@connected(json="Print the users as JSON.")
async def largest(run: Run, resource: Any, as_csv: bool, **asked: Any) -> None:
    """List the users with the largest usage: of calls in the range, of projects and bytes now."""
    from ximler.analytics import customers

    if asked["start"] is None and asked["end"] is None:
        asked["start"] = datetime.now(UTC).date().replace(day=1)
    show(
        run,
        customers.UserAmount,
        await customers.largest(run.database, run.actor, resource=resource, **asked_range(asked)),
        as_csv=as_csv,
        columns={
            "User": lambda each: each.user_id,
            "Plan": lambda each: each.plan_id or FREE_PLAN,
            "Amount": lambda each: f"{each.amount:,}",
        },
        empty="There is no usage in this range.",
    )


@reports.command("near-limits")
@click.option("--percent", type=click.IntRange(0, 100), default=80, show_default=True, help="Of the period's calls.")
@_first
@csv_option
@connected(json="Print the users as JSON.")
async def near_limits(run: Run, percent: int, first: int, as_csv: bool) -> None:
    """List the users who have used most of the API calls of their period."""
    from ximler.analytics import customers

    show(
        run,
        customers.NearLimit,
        await customers.near_limits(run.database, run.actor, share=percent / 100, first=first),
        as_csv=as_csv,
        columns={
            "User": lambda each: each.user_id,
            "Plan": lambda each: each.plan_id or FREE_PLAN,
            "Used": lambda each: f"{each.used:,}",
            "Limit": lambda each: f"{each.limit:,}",
            "Share": lambda each: f"{100 * each.share:.1f}%",
            "Until": lambda each: each.period_end.date(),
        },
        empty="No user is near a limit.",
    )


@reports.command()
@start_option
@end_option
@by
@click.option("--rows", is_flag=True, help="The users behind the figures instead, latest first.")
@_first
@csv_option
@plot_option
@connected(json="Print the lines as JSON.")
async def signups(run: Run, rows: bool, first: int, as_csv: bool, as_plot: bool, **asked: Any) -> None:
    """Sign-ups, and how many of them have paid since."""
    from ximler.analytics import customers

    asked = asked_range(asked)
    if rows:
        if as_plot:
            raise click.UsageError("--plot draws the figures, and --rows lists users: give one.")
        asked.pop("by")
        show(
            run,
            customers.Signup,
            await customers.signups_of(run.database, run.actor, first=first, **asked),
            as_csv=as_csv,
            columns={
                "Registered": lambda each: each.registered,
                "User": lambda each: each.user_id,
                "Verified": lambda each: "yes" if each.verified else "no",
                "Days to pay": _days,
            },
            empty=_NO_SIGNUPS,
        )
        return
    found = await customers.signups(run.database, run.actor, **asked)
    if as_plot:
        from ximler.cli.plots import plot

        lines = {
            "registered": [(each.start, float(each.registered)) for each in found],
            "paid": [(each.start, float(each.paid)) for each in found],
        }
        plot("Sign-ups", lines, empty=_NO_SIGNUPS)
        return
    show(
        run,
        customers.Signups,
        found,
        as_csv=as_csv,
        columns={
            "From": lambda each: each.start,
            "Registered": lambda each: f"{each.registered:,}",
            "Verified": lambda each: f"{each.verified:,}",
            "Paid": lambda each: f"{each.paid:,}",
            "Conversion": percent("conversion"),
            "Days to pay": _days,
        },
        empty=_NO_SIGNUPS,
    )


@reports.command()
@csv_option
@plot_option
@connected(json="Print the plans as JSON.")
async def storage(run: Run, as_csv: bool, as_plot: bool) -> None:
    """Projects and stored bytes by plan, now."""
    from ximler.analytics import customers

    found = await customers.storage(run.database, run.actor)
    if as_plot:
        from ximler.cli.plots import bars

        bars("Stored MB by plan", {each.plan_id or FREE_PLAN: each.storage_bytes / 1e6 for each in found}, empty=_EMPTY)
        return
    show(
        run,
        customers.PlanStorage,
        found,
        as_csv=as_csv,
        columns={
            "Plan": lambda each: each.plan_id or FREE_PLAN,
            "Users": lambda each: f"{each.users:,}",
            "Projects": lambda each: f"{each.projects:,}",
            "Bytes": lambda each: f"{each.storage_bytes:,}",
        },
        empty=_EMPTY,
    )


def _days(each: Any) -> str:
    return "" if each.days_to_pay is None else f"{each.days_to_pay:.1f}"
