"""`ximler keys`: API keys, for operators."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor

if TYPE_CHECKING:
    from ximler.schema.api_key import ApiKey

_OPERATOR = Actor(kind="operator", via="cli")


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command()
@click.argument("email")
@click.option("--name", required=True, help="What it is for.")
@click.option(
    "--scope", "scopes", multiple=True, required=True, help="What it may do, such as projects:read; repeat it."
)
@click.option("--days", type=click.IntRange(1, 3650), help="Days after which it expires.  [default: never]")
@click.option("--from", "networks", multiple=True, help="Address or network that it works from; repeat it.")
@click.option("--json", "as_json", is_flag=True, help="Print the key and its secret as JSON.")
@database_options
def create(
    email: str,
    name: str,
    scopes: tuple[str, ...],
    days: int | None,
    networks: tuple[str, ...],
    as_json: bool,
    data_dir: Path | None,
    mongodb_uri: str | None,
) -> None:
    """Make a key that acts for the account EMAIL. Its secret is printed once."""
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> Any:
        from ximler.apikeys import keys as owned

        async with context.database(settings) as database:
            user = await database.users.get({"email": email})
            return await owned.create(
                database,
                _OPERATOR,
                name=name,
                permissions=scopes,
                expires_at=None if days is None else database.clock.now() + timedelta(days=days),
                allowed_addresses=networks,
                user_id=user.id,
            )

    _print_made(context.run(work()), as_json=as_json)


@keys.command("list")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@database_options
def list_keys(email: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """List the keys of the account EMAIL, newest first."""
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> Any:
        from ximler.apikeys import keys as owned

        async with context.database(settings) as database:
            user = await database.users.get({"email": email})
            return await owned.mine(database, _OPERATOR, user_id=user.id), database.clock.now()

    found, now = context.run(work())
    if as_json:
        context.print_json([_row(key, now) for key in found])
        return
    if not found:
        click.echo(f"{email} has no keys: ximler keys create --help")
        return
    rows = []
    for key in found:
        row = _row(key, now)
        until, used = _day(key.expires_at, "never"), _day(key.last_used, "never")
        rows.append((key.id, f"…{key.hint or ''}", key.name, row["state"], ", ".join(key.permissions), until, used))
    context.print_table(("Id", "Ends", "Name", "State", "Scopes", "Expires", "Last used"), rows)


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace", type=click.IntRange(0, 720), default=24, show_default=True, help="Hours that the old key works on."
)
@click.option("--json", "as_json", is_flag=True, help="Print the new key and its secret as JSON.")
@database_options
def rotate(key_id: str, grace: int, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Make a new key in the place of the key ID. Its secret is printed once."""
    from ximler.core.ids import object_id

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    wanted = object_id(key_id)

    async def work() -> Any:
        from ximler.apikeys import keys as owned

        async with context.database(settings) as database:
            return await owned.rotate(database, _OPERATOR, wanted, grace=timedelta(hours=grace))

    _print_made(context.run(work()), as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="ID")
@database_options
def revoke(key_id: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """End the key ID for good: within a second nothing takes it any more."""
    from ximler.core.ids import object_id

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    wanted = object_id(key_id)

    async def work() -> Any:
        from ximler.apikeys import keys as owned

        async with context.database(settings) as database:
            return await owned.revoke(database, _OPERATOR, wanted)

    key = context.run(work())
    click.echo(f"{key.name} (…{key.hint or ''}) is revoked.")


def _print_made(made: Any, *, as_json: bool) -> None:
    if as_json:
        context.print_json({**_row(made.key, made.key.created_at), "secret": made.secret})
        return
    click.echo(made.secret)
    click.echo(f"Shown here and nowhere else again. Id: {made.key.id}", err=True)


def _row(key: "ApiKey", now: datetime) -> dict[str, Any]:
    from ximler.apikeys.keys import state

    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "state": state(key, now),
        "permissions": key.permissions,
        "allowedAddresses": key.allowed_addresses,
        "createdAt": key.created_at,
        "lastUsed": key.last_used,
        "expiresAt": key.expires_at,
        "revokedAt": key.revoked_at,
        "replacedBy": key.replaced_by,
    }


def _day(moment: datetime | None, otherwise: str) -> str:
    return moment.strftime("%Y-%m-%d %H:%M") if moment else otherwise
