"""`ximler usage show|override|rebuild|forgive`: usage and limits of users, for operators."""

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from ximler.cli.context import Run, connected, counted, fields, minute, print_table

__all__ = ["forgive", "override", "rebuild", "show"]

_GB = 1_000_000_000
_MAX_GB = 9_000_000
_user = click.argument("user", metavar="USER")


class _Gigabytes(click.ParamType[int]):
    """Bytes, from a number of GB."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        with suppress(InvalidOperation):  # no number, or "nan"
            number = Decimal(value)
            if number == -1 or 0 <= number <= _MAX_GB:
                return -1 if number == -1 else round(number * _GB)
        return self.fail(f"{value!r} is not a number from 0 to {_MAX_GB:,}, or -1 for unlimited", param, ctx)


@click.command()
@_user
@connected(json="Print usage and limits as JSON.")
async def show(run: Run, user: str) -> None:
    """Show the usage and the limits of USER (an id or e-mail address)."""
    from ximler.metering.limits import entitlements
    from ximler.metering.reports.overview import overview

    found = await run.user(user)
    resources = (await overview(run.database, run.actor, [found.id]))[found.id]
    entitlement = (await entitlements.resolve(run.database, [found.id]))[found.id]
    override = entitlement.override_at(run.database.clock.now())

    def text() -> None:
        click.echo(f"{found.email} is on the plan {entitlement.plan_name}.")
        if override is not None:
            until = f" until {minute(entitlement.override_until)} UTC" if entitlement.override_until else ""
            click.echo(f"Limits are overridden{until}: {override.reason} ({override.by})")
        rows = [
            (r.resource, f"{r.used:,}", _limit(r.limit), _limit(r.remaining), minute(r.period_end)) for r in resources
        ]
        print_table(("Resource", "Used", "Limit", "Remaining", "Resets (UTC)"), rows)
        for r in resources:
            if r.forfeited:
                held = f"{r.forfeited:,} {r.resource} are forfeited: a process that held them died"
                click.echo(f"{held}. Give them back: ximler usage forgive {found.email} --reason …")

    run.show(
        {
            "user": found.id,
            "email": found.email,
            "plan": entitlement.plan_id,
            "override": None
            if override is None
            else {"reason": override.reason, "by": override.by, "until": entitlement.override_until},
            "usage": [
                fields(r, "resource used limit remaining forfeited") | {"resetsAt": r.period_end} for r in resources
            ],
        },
        text,
    )


def _one_or_the_other(*, end: bool, reason: str, user: str, **limits: object) -> None:  # noqa: ARG001 (all options)
    if end and any(limit is not None for limit in limits.values()):
        raise click.UsageError("--end takes no limits")


@click.command()
@_user
@click.option("--api-calls", type=click.IntRange(-1), help="API calls a period; -1 is unlimited.")
@click.option("--projects", type=click.IntRange(-1), help="Projects; -1 is unlimited.")
@click.option("--storage-gb", "storage_bytes", type=_Gigabytes(), help="GB (10⁹ bytes) of storage; -1 is unlimited.")
@click.option(
    "--until",
    "expires_at",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="When the override ends, in UTC.",
)
@click.option("--end", is_flag=True, help="Go back to the plan's limits.")
@click.option("--reason", required=True, help="Why; it is kept in the audit log.")
@connected(json="Print the user's id as JSON.", first=_one_or_the_other)
async def override(
    run: Run,
    user: str,
    api_calls: int | None,
    projects: int | None,
    storage_bytes: int | None,
    expires_at: datetime | None,
    end: bool,
    reason: str,
) -> None:
    """Override the plan's limits for USER (an id or e-mail address).

    It takes effect everywhere within a second, and replaces an earlier override. Omitted resources keep the
    plan's limit.
    """
    from ximler.metering.limits import entitlements

    found = await run.user(user)
    if end:
        await entitlements.end_override(run.database, run.actor, found.id, reason=reason)
        run.show({"user": found.id, "overridden": False}, f"{found.email} has the plan's limits again.")
        return
    await entitlements.override(
        run.database,
        run.actor,
        found.id,
        reason=reason,
        api_calls=api_calls,
        projects=projects,
        storage_bytes=storage_bytes,
        expires_at=expires_at.replace(tzinfo=UTC) if expires_at else None,
    )
    run.show({"user": found.id, "overridden": True}, f"The limits of {found.email} are overridden.")


def _one_or_all(*, user: str | None, everybody: bool, dry_run: bool) -> None:  # noqa: ARG001 (all options)
    if (user is None) != everybody:
        raise click.UsageError("Name a USER, or say --all")


@click.command()
@click.argument("user", metavar="[USER]", required=False)
@click.option("--all", "everybody", is_flag=True, help="All users, instead of one.")
@click.option("--dry-run", is_flag=True, help="Only report. Exit code 1: there are differences.")
@connected(json="Print the differences as JSON.", first=_one_or_all)
async def rebuild(run: Run, user: str | None, everybody: bool, dry_run: bool) -> int:  # noqa: ARG001 (`first` checks it)
    """Rebuild quotas from the ledger, and gauges from the documents that exist.

    Reports every difference; there are none unless another application has written to the database. Forfeited
    units stay forfeited: see `ximler usage forgive`.
    """
    from ximler.metering import corrections

    if user is not None:
        found = await run.user(user)
        drifts = await corrections.rebuild(run.database, run.actor, found.id, dry_run=dry_run)
    else:
        every = corrections.rebuild_all(run.database, run.actor, dry_run=dry_run)
        drifts = [drift async for drifts in every for drift in drifts]
    run.show_list(
        drifts,
        row=lambda d: {"user": d.user_id, "of": d.of, "what": d.what, "was": d.was, "is": d.now},
        columns={
            "User": lambda d: d.user_id,
            "Of": lambda d: d.of,
            "What": lambda d: d.what,
            "Was": lambda d: f"{d.was:,}",
            "Would be" if dry_run else "Is": lambda d: f"{d.now:,}",
        },
        empty="There are no differences.",
    )
    return 1 if dry_run and drifts else 0


@click.command()
@_user
@click.option("--units", type=click.IntRange(1), help="How many; all forfeited units unless given.")
@click.option("--reason", required=True, help="Why; it is kept in the audit log.")
@connected(json="Print the number of units as JSON.")
async def forgive(run: Run, user: str, units: int | None, reason: str) -> None:
    """Give forfeited units of this period back to USER (an id or e-mail address).

    Units that a process held when it died are forfeited, because it may have served them.
    """
    from ximler.metering import corrections

    found = await run.user(user)
    given = await corrections.forgive(run.database, run.actor, found.id, reason=reason, units=units)
    run.show({"units": given}, f"{counted(given, 'unit')} given back.")


def _limit(units: int | None) -> str:
    return "unlimited" if units is None else f"{units:,}"
