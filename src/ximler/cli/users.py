"""`ximler users`: accounts, for operators."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import click

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor

_OPERATOR = Actor(kind="operator", via="cli")


@click.group()
def users() -> None:
    """Create, find, look at and lock accounts; say who is an operator."""


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
        from ximler.accounts import administration as accounts
        from ximler.accounts.keyring import Keyring
        from ximler.database import sync

        keyring = Keyring(settings)
        try:
            async with context.database(settings) as database:
                await sync.require_ready(database)
                user = await accounts.create(
                    database, keyring, _OPERATOR, name=name, email=email, password=password, verified=not unverified
                )
                return accounts.Account(user)
        finally:
            keyring.close()

    account = context.run(work())
    if as_json:
        context.print_json(_row(account.user) | _state(account))
    else:
        click.echo(f"{account.user.email} can sign in. Id: {account.user.id}")


@users.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first.")
@click.option("--after", metavar="CURSOR", help="Continue after the cursor that the previous page ended with.")
@click.option("--json", "as_json", is_flag=True, help="Print accounts and the next cursor as JSON.")
@database_options
def list_users(limit: int, after: str | None, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """List accounts, newest first."""
    page = _page(None, limit, after, data_dir, mongodb_uri)
    nobody = "There are no accounts yet: ximler users create --help"
    _print_page(page, as_json, f"ximler users list --limit {limit}", nobody)


@users.command()
@click.argument("text")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first.")
@click.option("--after", metavar="CURSOR", help="Continue after the cursor that the previous page ended with.")
@click.option("--json", "as_json", is_flag=True, help="Print accounts and the next cursor as JSON.")
@database_options
def search(
    text: str, limit: int, after: str | None, as_json: bool, data_dir: Path | None, mongodb_uri: str | None
) -> None:
    """Find accounts whose e-mail address or name begins with TEXT, or by id."""
    page = _page(text, limit, after, data_dir, mongodb_uri)
    again = f"ximler users search {shlex.quote(text)} --limit {limit}"
    _print_page(page, as_json, again, "Nobody's address or name begins like that.")


@users.command()
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@database_options
def show(who: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Show an account, by e-mail address or id."""
    _print_account(_act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.get(*found)), as_json)


@users.command()
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@database_options
def verify(who: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Mark an account's address as verified."""
    _print_account(_act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.verify(*found)), as_json)


@users.command()
@click.argument("who")
@click.option("--reason", required=True, help="Why; the next operator reads it.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@database_options
def lock(who: str, reason: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Lock an account: every session ends, nobody signs in."""
    account = _act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.lock(*found, reason=reason))
    _print_account(account, as_json)


@users.command()
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@database_options
def unlock(who: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Open a locked account again."""
    _print_account(_act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.unlock(*found)), as_json)


@users.command("remove-factor")
@click.argument("who")
@database_options
def remove_factor(who: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Take away the second factor of somebody who has lost device and recovery codes.

    Ask them first to show who they are: the password alone signs in afterwards. They are told by mail.
    """

    def work(_: Any, database: Any, actor: Actor, user_id: Any) -> Any:
        from ximler.accounts import second_factor_enrolment

        return second_factor_enrolment.remove(database, actor, user_id)

    _act(data_dir, mongodb_uri, who, work)
    click.echo(f"{who} signs in by password alone.")


@users.command()
@click.argument("who")
@click.option("--role", type=click.Choice(["operator"]), required=True, help="What they may be.")
@database_options
def grant(who: str, role: Literal["operator"], data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Give an account a role: an operator sees and locks everybody's."""

    def work(_: Any, database: Any, actor: Actor, user_id: Any) -> Any:
        from ximler.accounts import roles

        return roles.grant(database, actor, user_id, role)

    given = _act(data_dir, mongodb_uri, who, work)
    click.echo(f"{who} is {'now' if given else 'already'} {role}.")


@users.command("revoke-role")
@click.argument("who")
@database_options
def revoke_role(who: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Take an account's role away; its sessions end."""

    def work(_: Any, database: Any, actor: Actor, user_id: Any) -> Any:
        from ximler.accounts import roles

        return roles.withdraw(database, actor, user_id)

    taken = _act(data_dir, mongodb_uri, who, work)
    click.echo(f"{who} has no role {'any more' if taken else 'to take away'}.")


@users.command("sessions")
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print the sessions as JSON.")
@database_options
def list_sessions(who: str, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """List where somebody is signed in, newest first."""
    found = _act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.open_sessions(*found))
    if as_json:
        fields = {
            "id": "public_id",
            "address": "address",
            "userAgent": "user_agent",
            "createdAt": "created_at",
            "expiresAt": "expires_at",
        }
        context.print_json([{name: getattr(each, field) for name, field in fields.items()} for each in found])
    elif found:
        rows = [
            (each.public_id, each.address or "", each.user_agent or "", _time(each.created_at), _time(each.expires_at))
            for each in found
        ]
        context.print_table(("Id", "Address", "Browser", "Since", "Until"), rows)
    else:
        click.echo("They are signed in nowhere.")


@users.command("revoke-sessions")
@click.argument("who")
@database_options
def revoke_sessions(who: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Sign somebody out everywhere."""
    ended = _act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.revoke_sessions(*found))
    click.echo(f"{ended} session{'s' if ended != 1 else ''} ended.")


@users.command()
@click.argument("who")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print the entries as JSON.")
@database_options
def history(who: str, limit: int, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Show somebody's latest sign-ins, those that failed too."""
    page = _act(data_dir, mongodb_uri, who, lambda accounts, *found: accounts.history(*found, first=limit))
    if as_json:
        context.print_json(
            [
                {
                    "at": entry.at,
                    "action": entry.action,
                    "address": entry.address,
                    "userAgent": entry.user_agent,
                    "count": entry.count,
                    "reason": entry.reason,
                }
                for entry in page.items
            ]
        )
    elif page.items:
        rows = [
            (
                _time(entry.at),
                entry.action.partition(".")[2],
                entry.count,
                entry.address or "",
                entry.user_agent or "",
                entry.reason or "",
            )
            for entry in page.items
        ]
        context.print_table(("At", "What", "At least", "Address", "Browser", "Reason"), rows)
    else:
        click.echo("Nothing is known of them.")


@users.command()
@click.argument("who")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@database_options
def export(who: str, file: Path, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Write all that is kept of somebody into a zip archive, for them.

    FILE must not exist. It is readable by you alone, and there only once it is complete.
    """
    if file.exists():
        raise click.BadParameter(f"{file} exists already: choose another name", param_hint="FILE")
    try:
        handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # readable by its owner alone
    except OSError as problem:
        raise click.FileError(str(file), problem.strerror or str(problem)) from None

    async def work(_: Any, database: Any, actor: Actor, user_id: Any) -> int:
        from ximler.privacy import export as privacy

        size = 0
        archive = await privacy.take(database, actor, user_id)
        with os.fdopen(handle, "wb") as out:
            async for part in archive:
                size += out.write(part)
        return size

    try:
        size = _act(data_dir, mongodb_uri, who, work)
        Path(partial).rename(file)
    except OSError as problem:
        raise click.FileError(str(file), problem.strerror or str(problem)) from None
    finally:
        Path(partial).unlink(missing_ok=True)
    click.echo(f"{file}: {size:,} bytes")


def _act(data_dir: Path | None, mongodb_uri: str | None, who: str, work: Callable[..., Any]) -> Any:
    """`work(users, database, operator, id)` for the account that WHO names."""
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def run() -> Any:
        from ximler.accounts import administration as accounts

        async with context.database(settings) as database:
            return await work(accounts, database, _OPERATOR, await accounts.id_of(database, _OPERATOR, who))

    return context.run(run())


def _page(search: str | None, limit: int, after: str | None, data_dir: Path | None, mongodb_uri: str | None) -> Any:
    from ximler.core.ids import decode_cursor

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    position = None if after is None else decode_cursor(after)

    async def work() -> Any:
        from ximler.accounts import administration as accounts

        async with context.database(settings) as database:
            return await accounts.page(database, _OPERATOR, search=search, first=limit, after=position)

    return context.run(work())


def _print_page(page: Any, as_json: bool, again: str, nobody: str) -> None:
    if as_json:
        context.print_json(
            {
                "users": [_row(account.user) | _state(account) for account in page.items],
                "next": page.end_cursor if page.has_next else None,
            }
        )
        return
    rows = []
    for account in page.items:
        user = account.user
        state = "locked" if account.locked_at else account.role or ("" if user.email_verified else "unverified")
        seen = _time(user.last_login) if user.last_login else "never"
        rows.append((user.id, user.email, user.name, state, user.created_at.strftime("%Y-%m-%d"), seen))
    if rows:
        context.print_table(("Id", "E-mail", "Name", "State", "Since", "Last sign-in"), rows)
    else:
        click.echo(nobody)
    if page.has_next:
        click.echo(f"More: {again} --after {page.end_cursor}")


def _print_account(account: Any, as_json: bool) -> None:
    whole = _row(account.user) | _state(account)
    if as_json:
        context.print_json(whole)
        return
    for name, value in whole.items():
        shown = _time(value) if isinstance(value, datetime) else {None: "-", True: "yes", False: "no"}.get(value, value)
        click.echo(f"{name:14} {''.join(c if c.isprintable() else chr(0xFFFD) for c in str(shown))}")


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


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


def _state(account: Any) -> dict[str, Any]:
    return {
        "role": account.role,
        "lockedAt": account.locked_at,
        "lockReason": account.lock_reason,
        "secondFactor": account.second_factor,
        "closedAt": account.user.deleted_at,
    }
