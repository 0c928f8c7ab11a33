"""`ximler usage show|override|rebuild|forgive`: what users may use and did, and what an operator changes of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor

if TYPE_CHECKING:
    from ximler.database import Database
    from ximler.metering.corrections import Drift
    from ximler.schema.user import User

__all__ = ["forgive", "override", "rebuild", "show"]

_OPERATOR = Actor(kind="operator", via="cli")
_GB = 1_000_000_000
_user = click.argument("user", metavar="USER")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command()
@_user
@_as_json
@database_options
def show(user: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """What USER (an id or an e-mail address) has used of each resource, and what they may."""
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> Any:
        from ximler.metering.limits import entitlements
        from ximler.metering.reports.overview import overview

        async with context.database(settings) as database:
            found = await _find(database, user)
            resources = (await overview(database, _OPERATOR, [found.id]))[found.id]
            entitlement = (await entitlements.resolve(database, [found.id]))[found.id]
            return found, resources, entitlement, entitlement.override_at(database.clock.now())

    found, resources, entitlement, override = context.run(work())
    if as_json:
        context.print_json(
            {
                "user": found.id,
                "email": found.email,
                "plan": entitlement.plan_id,
                "override": None
                if override is None
                else {"reason": override.reason, "by": override.by, "until": entitlement.override_until},
                "usage": [
                    {
                        "resource": r.resource,
                        "used": r.used,
                        "limit": r.limit,
                        "remaining": r.remaining,
                        "resetsAt": r.period_end,
                    }
                    for r in resources
                ],
            }
        )
        return
    click.echo(f"{found.email} is on the plan {entitlement.plan_name}.")
    if override is not None:
        until = f" until {_time(entitlement.override_until)}" if entitlement.override_until else ""
        click.echo(f"Limits are overridden{until}: {override.reason} ({override.by})")
    rows = [
        (r.resource, f"{r.used:,}", _limit(r.limit), _limit(r.remaining), _time(r.period_end) if r.period_end else "")
        for r in resources
    ]
    context.print_table(("Resource", "Used", "Limit", "Remaining", "Resets"), rows)


@click.command()
@_user
@click.option("--api-calls", type=click.IntRange(-1), help="API calls a period; -1 is unlimited.")
@click.option("--projects", type=click.IntRange(-1), help="Projects; -1 is unlimited.")
@click.option("--storage-gb", type=float, help="GB (10⁹ bytes) of storage; -1 is unlimited.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="When it ends by itself, in UTC.")
@click.option("--end", is_flag=True, help="Go back to the plan's limits.")
@click.option("--reason", required=True, help="Why; it is kept in the audit log.")
@database_options
def override(
    user: str,
    api_calls: int | None,
    projects: int | None,
    storage_gb: float | None,
    until: datetime | None,
    end: bool,
    reason: str,
    data_dir: Path | None,
    mongodb_uri: str | None,
) -> None:
    """Give USER (an id or an e-mail address) other limits than their plan's.

    It holds everywhere within a second, and replaces an earlier override. Resources that are not named keep the plan's limit.
    """
    if end and (api_calls, projects, storage_gb, until) != (None, None, None, None):
        raise click.UsageError("--end takes no limits")
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> Any:
        from ximler.metering.limits import entitlements

        async with context.database(settings) as database:
            found = await _find(database, user)
            if end:
                await entitlements.end_override(database, _OPERATOR, found.id, reason=reason)
            else:
                await entitlements.override(
                    database,
                    _OPERATOR,
                    found.id,
                    reason=reason,
                    api_calls=api_calls,
                    projects=projects,
                    storage_bytes=_bytes(storage_gb),
                    expires_at=until.replace(tzinfo=UTC) if until else None,
                )
            return found

    found = context.run(work())
    click.echo(f"{found.email} has the plan's limits again." if end else f"The limits of {found.email} are overridden.")


@click.command()
@click.argument("user", metavar="[USER]", required=False)
@click.option("--all", "everybody", is_flag=True, help="Everybody, instead of one user.")
@click.option("--dry-run", is_flag=True, help="Only report. Exit code 1: there are differences.")
@_as_json
@database_options
def rebuild(
    user: str | None, everybody: bool, dry_run: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None
) -> int:
    """Make quotas what the ledger says, and gauges what exists.

    Reports every difference; there are none unless somebody has written to the database past Ximler. Forfeited units stay
    forfeited: see `ximler usage forgive`.
    """
    if (user is None) != everybody:
        raise click.UsageError("Name a USER, or say --all")
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> "list[Drift]":
        from ximler.metering import corrections

        async with context.database(settings) as database:
            if user is not None:
                found = await _find(database, user)
                return await corrections.rebuild(database, _OPERATOR, found.id, dry_run=dry_run)
            every = corrections.rebuild_all(database, _OPERATOR, dry_run=dry_run)
            return [drift async for drifts in every for drift in drifts]

    drifts = context.run(work())
    if as_json:
        shown = [{"user": d.user_id, "of": d.of, "what": d.what, "was": d.was, "is": d.now} for d in drifts]
        context.print_json({"drift": shown, "corrected": not dry_run})
    elif drifts:
        rows = [(d.user_id, d.of, d.what, f"{d.was:,}", f"{d.now:,}") for d in drifts]
        context.print_table(("User", "Of", "What", "Was", "Is to be" if dry_run else "Is"), rows)
    else:
        click.echo("There is no difference.")
    return 1 if dry_run and drifts else 0


@click.command()
@_user
@click.option("--units", type=click.IntRange(1), help="How many; all that are forfeited unless given.")
@click.option("--reason", required=True, help="Why; it is kept in the audit log.")
@database_options
def forgive(user: str, units: int | None, reason: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Give USER (an id or an e-mail address) back what was forfeited in this period.

    Units are forfeited when a process dies that held them: it may have served them, and had no time to say so.
    """
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> int:
        from ximler.metering import corrections

        async with context.database(settings) as database:
            found = await _find(database, user)
            return await corrections.forgive(database, _OPERATOR, found.id, reason=reason, units=units)

    click.echo(f"{context.run(work()):,} units are given back.")


async def _find(database: "Database", user: str) -> "User":
    """By e-mail address or id. Raises NotFound, Invalid."""
    from ximler.core.errors import NotFound
    from ximler.core.ids import object_id

    found = await database.users.find_one({"email": user} if "@" in user else {"_id": object_id(user, "user")})
    if found is None:
        raise NotFound(f"There is no user {user}")
    return found


def _bytes(gigabytes: float | None) -> int | None:
    if gigabytes is None:
        return None
    return -1 if gigabytes < 0 else round(gigabytes * _GB)


def _limit(units: int | None) -> str:
    return "unlimited" if units is None else f"{units:,}"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
