"""`ximler users`: accounts, for operators."""

import sys
from pathlib import Path
from typing import Any

import click

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor

_OPERATOR = Actor(kind="operator", via="cli")


@click.group()
def users() -> None:
    """Create and list accounts."""


@users.command()
@click.option("--name", required=True, help="The person's name.")
@click.option("--email", required=True, help="Their address; what they sign in with.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it.")
@click.option("--unverified", is_flag=True, help="Leave the address unverified.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@database_options
def create(
    name: str,
    email: str,
    password_stdin: bool,
    unverified: bool,
    as_json: bool,
    data_dir: Path | None,
    mongodb_uri: str | None,
) -> None:
    """Make an account, without a confirmation e-mail.

    The password is asked for, twice, or read from standard input: on the command line it would be visible to everybody.
    """
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri).with_secret()
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)

    async def work() -> Any:
        from ximler.accounts import users as accounts
        from ximler.accounts.keyring import Keyring
        from ximler.database import sync

        keyring = Keyring(settings)
        try:
            async with context.database(settings) as database:
                await sync.require_ready(database)
                return await accounts.create(
                    database, keyring, _OPERATOR, name=name, email=email, password=password, verified=not unverified
                )
        finally:
            keyring.close()

    user = context.run(work())
    if as_json:
        context.print_json(_row(user))
    else:
        click.echo(f"{user.email} can sign in. Id: {user.id}")


@users.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first.")
@click.option("--after", metavar="CURSOR", help="Continue after the cursor that the previous page ended with.")
@click.option("--json", "as_json", is_flag=True, help="Print accounts and the next cursor as JSON.")
@database_options
def list_users(limit: int, after: str | None, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """List accounts, newest first."""
    from ximler.core.ids import decode_cursor

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    position = None if after is None else decode_cursor(after)

    async def work() -> Any:
        from ximler.accounts import users as accounts

        async with context.database(settings) as database:
            return await accounts.page(database, _OPERATOR, first=limit, after=position)

    page = context.run(work())
    if as_json:
        context.print_json(
            {"users": [_row(user) for user in page.items], "next": page.end_cursor if page.has_next else None}
        )
        return
    rows = []
    for user in page.items:
        seen = user.last_login.strftime("%Y-%m-%d %H:%M") if user.last_login else "never"
        verified = "yes" if user.email_verified else "no"
        rows.append((user.id, user.email, user.name, verified, user.created_at.strftime("%Y-%m-%d"), seen))
    if rows:
        context.print_table(("Id", "E-mail", "Name", "Verified", "Since", "Last sign-in"), rows)
    else:
        click.echo("There are no accounts yet: ximler users create --help")
    if page.has_next:
        click.echo(f"More: ximler users list --limit {limit} --after {page.end_cursor}")


def _row(user: Any) -> dict[str, Any]:
    """What an operator may see; never the password's hash or a token."""
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "emailVerified": user.email_verified,
        "createdAt": user.created_at,
        "lastLogin": user.last_login,
    }
