"""`ximler keys`: API keys, for operators."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ximler.cli.context import Id, Run, connected, fields, minute

if TYPE_CHECKING:
    from ximler.apikeys.keys import Made
    from ximler.schema.api_key import ApiKey


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command()
@click.argument("user")
@click.option("--name", required=True, help="The key's name.")
@click.option(
    "--scope", "permissions", multiple=True, required=True, help="A scope, such as projects:read; may be repeated."
)
@click.option("--days", type=click.IntRange(1, 3650), help="Days until it expires.  [default: never]")
@click.option("--from", "allowed_addresses", multiple=True, help="Address or network that may use it; may be repeated.")
@connected(json="Print the key and its secret as JSON.")
async def create(
    run: Run, user: str, name: str, permissions: tuple[str, ...], days: int | None, allowed_addresses: tuple[str, ...]
) -> None:
    """Create a key that acts for USER (an id or e-mail address). Its secret is printed once."""
    from ximler.apikeys import keys as owned

    found = await run.user(user)
    made = await owned.create(
        run.database,
        run.actor,
        name=name,
        permissions=permissions,
        expires_at=None if days is None else run.database.clock.now() + timedelta(days=days),
        allowed_addresses=allowed_addresses,
        user_id=found.id,
    )
    _show_made(run, made)


@keys.command("list")
@click.argument("user")
@connected(json="Print the keys as JSON.")
async def list_keys(run: Run, user: str) -> None:
    """List the keys of USER (an id or e-mail address), newest first."""
    from ximler.apikeys import keys as owned

    now = run.database.clock.now()
    run.show_list(
        await owned.mine(run.database, run.actor, user_id=(await run.user(user)).id),
        row=lambda key: _row(key, now),
        columns={
            "Id": lambda key: key.id,
            "Last four": lambda key: key.hint or "",
            "Name": lambda key: key.name,
            "State": lambda key: owned.state(key, now),
            "Scopes": lambda key: ", ".join(key.permissions),
            "Expires": lambda key: minute(key.expires_at, "never"),
            "Last used": lambda key: minute(key.last_used, "never"),
        },
        empty=f"{user} has no keys: ximler keys create --help",
    )


@keys.command()
@click.argument("key_id", metavar="ID", type=Id())
@click.option(
    "--grace",
    "grace_hours",
    type=click.IntRange(0, 720),
    default=24,
    show_default=True,
    help="Hours that the old key still works.",
)
@connected(json="Print the new key and its secret as JSON.")
async def rotate(run: Run, key_id: Any, grace_hours: int) -> None:
    """Replace the key ID by a new one. Its secret is printed once."""
    from ximler.apikeys import keys as owned

    _show_made(run, await owned.rotate(run.database, run.actor, key_id, grace=timedelta(hours=grace_hours)))


@keys.command()
@click.argument("key_id", metavar="ID", type=Id())
@connected(json="Print the key as JSON.")
async def revoke(run: Run, key_id: Any) -> None:
    """Revoke the key ID permanently. Every process rejects it within a second."""
    from ximler.apikeys import keys as owned

    key = await owned.revoke(run.database, run.actor, key_id)
    run.show(_row(key, run.database.clock.now()), f"{key.name} (…{key.hint or ''}) is revoked.")


def _show_made(run: Run, made: "Made") -> None:
    run.show({**_row(made.key, made.key.created_at), "secret": made.secret}, made.secret)
    if not run.as_json:
        click.echo(f"This is the only time that the secret is shown. Id: {made.key.id}", err=True)


def _row(key: "ApiKey", now: datetime) -> dict[str, Any]:
    from ximler.apikeys.keys import state

    times = "created_at last_used expires_at revoked_at"
    return fields(key, f"id name hint permissions allowed_addresses {times} replaced_by") | {"state": state(key, now)}
