"""`ximler users`: accounts, for operators."""

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from ximler.cli.context import Run, connected, counted, fields, minute, paged
from ximler.cli.files import Output, output_argument

if TYPE_CHECKING:
    from ximler.accounts.administration import Account


@click.group()
def users() -> None:
    """Create, find, show and lock accounts; grant roles."""


def _ask_password(*, password_stdin: bool, **_: object) -> dict[str, Any]:
    if password_stdin:
        return {"password_stdin": sys.stdin.readline().rstrip("\r\n")}
    return {"password_stdin": click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)}


@users.command()
@click.option("--name", required=True, help="The person's name.")
@click.option("--email", required=True, help="The e-mail address to sign in with.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it.")
@click.option("--unverified", is_flag=True, help="Leave the address unverified.")
@connected(json="Print the account as JSON.", secret=True, first=_ask_password)
async def create(run: Run, name: str, email: str, password_stdin: str, unverified: bool) -> None:
    """Create an account, without a confirmation e-mail.

    The command asks for the password, twice, or reads it from standard input: as an option, other users of
    the machine could see it.
    """
    from ximler.accounts import administration
    from ximler.database import sync

    await sync.require_ready(run.database)
    user = await administration.create(
        run.database, run.keyring, run.actor, name=name, email=email, password=password_stdin, verified=not unverified
    )
    run.show(_row(administration.Account(user)), f"{user.email} can sign in. Id: {user.id}")


@users.command("list")
@paged
@connected(json="Print accounts and the next cursor as JSON.")
async def list_users(run: Run, limit: int, after: Any) -> None:
    """List accounts, newest first."""
    await _list(run, None, limit, after, empty="There are no accounts yet: ximler users create --help")


@users.command()
@click.argument("text")
@paged
@connected(json="Print accounts and the next cursor as JSON.")
async def search(run: Run, text: str, limit: int, after: Any) -> None:
    """Find accounts whose e-mail address or name begins with TEXT, or by id."""
    await _list(run, text, limit, after, empty="No e-mail address or name begins like that.")


@users.command()
@click.argument("user")
@connected(json="Print the account as JSON.")
async def show(run: Run, user: str) -> None:
    """Show the account of USER (an id or e-mail address), with plan, usage and API keys."""
    from ximler.accounts import administration
    from ximler.apikeys import keys
    from ximler.metering.limits import entitlements
    from ximler.metering.reports.overview import overview

    account = await administration.get(run.database, run.actor, await run.user_id(user))
    user_id, now = account.user.id, run.database.clock.now()
    more: dict[str, Any] = {}
    if account.user.deleted_at is None:
        entitlement = (await entitlements.resolve(run.database, [user_id]))[user_id]
        used = (await overview(run.database, run.actor, [user_id]))[user_id]
        theirs = await keys.mine(run.database, run.actor, user_id=user_id)
        more = {
            "plan": entitlement.plan_id,
            "usage": {each.resource: fields(each, "used limit forfeited") for each in used},
            "activeKeys": sum(keys.state(key, now) == "ACTIVE" for key in theirs),
        }
    _show(run, account, more)


@users.command()
@click.argument("user")
@connected(json="Print the account as JSON.")
async def verify(run: Run, user: str) -> None:
    """Mark the e-mail address of USER as verified."""
    from ximler.accounts import administration

    _show(run, await administration.verify(run.database, run.actor, await run.user_id(user)))


@users.command()
@click.argument("user")
@click.option("--reason", required=True, help="Why; the next operator reads it.")
@connected(json="Print the account as JSON.")
async def lock(run: Run, user: str, reason: str) -> None:
    """Lock the account of USER: its sessions end and sign-ins are refused."""
    from ximler.accounts import administration

    _show(run, await administration.lock(run.database, run.actor, await run.user_id(user), reason=reason))


@users.command()
@click.argument("user")
@connected(json="Print the account as JSON.")
async def unlock(run: Run, user: str) -> None:
    """Unlock the account of USER."""
    from ximler.accounts import administration

    _show(run, await administration.unlock(run.database, run.actor, await run.user_id(user)))


@users.command("remove-factor")
@click.argument("user")
@connected(json="Print the user's id as JSON.")
async def remove_factor(run: Run, user: str) -> None:
    """Remove the second factor of USER, who has lost device and recovery codes.

    Verify their identity first: afterwards the password alone signs in. They are notified by mail.
    """
    from ximler.accounts import second_factor_enrolment

    user_id = await run.user_id(user)
    await second_factor_enrolment.remove(run.database, run.actor, user_id)
    run.show({"id": user_id, "secondFactor": False}, f"{user} signs in by password alone.")


@users.command()
@click.argument("user")
@click.option("--role", type=click.Choice(["operator"]), required=True, help="The role.")
@connected(json="Print the user's id and role as JSON.")
async def grant(run: Run, user: str, role: Literal["operator"]) -> None:
    """Grant a role to USER: an operator sees and locks all accounts."""
    from ximler.accounts import roles

    user_id = await run.user_id(user)
    granted = await roles.grant(run.database, run.actor, user_id, role)
    run.show({"id": user_id, "role": role}, f"{user} is {'now' if granted else 'already'} an {role}.")


@users.command("revoke-role")
@click.argument("user")
@connected(json="Print the user's id and role as JSON.")
async def revoke_role(run: Run, user: str) -> None:
    """Withdraw the role of USER and end their sessions."""
    from ximler.accounts import roles

    user_id = await run.user_id(user)
    withdrawn = await roles.withdraw(run.database, run.actor, user_id)
    text = f"{user} {'no longer has a role' if withdrawn else 'has no role'}."
    run.show({"id": user_id, "role": None}, text)


@users.command("sessions")
@click.argument("user")
@connected(json="Print the sessions as JSON.")
async def list_sessions(run: Run, user: str) -> None:
    """List the sessions of USER, newest first."""
    from ximler.accounts import administration

    run.show_list(
        await administration.open_sessions(run.database, run.actor, await run.user_id(user)),
        row=lambda session: {"id": session.public_id, **fields(session, "address user_agent created_at expires_at")},
        columns={
            "Id": lambda session: session.public_id,
            "Address": lambda session: session.address or "",
            "Browser": lambda session: session.user_agent or "",
            "Since": lambda session: minute(session.created_at),
            "Expires": lambda session: minute(session.expires_at),
        },
        empty="There are no sessions.",
    )


@users.command("revoke-sessions")
@click.argument("user")
@connected(json="Print the number of sessions as JSON.")
async def revoke_sessions(run: Run, user: str) -> None:
    """End all sessions of USER."""
    from ximler.accounts import administration

    ended = await administration.revoke_sessions(run.database, run.actor, await run.user_id(user))
    run.show({"ended": ended}, f"{counted(ended, 'session')} ended.")


@users.command()
@click.argument("user")
@paged
@connected(json="Print the entries and the next cursor as JSON.")
async def history(run: Run, user: str, limit: int, after: Any) -> None:
    """Show the latest sign-ins of USER, also those that failed."""
    from ximler.accounts import administration

    run.show_list(
        await administration.history(run.database, run.actor, await run.user_id(user), first=limit, after=after),
        row=lambda event: fields(event, "at action address user_agent count reason"),
        columns={
            "At": lambda event: minute(event.at),
            "Event": lambda event: event.action.partition(".")[2],
            "At least": lambda event: event.count,
            "Address": lambda event: event.address or "",
            "Browser": lambda event: event.user_agent or "",
            "Reason": lambda event: event.reason or "",
        },
        empty="There are no entries.",
    )


@users.command()
@click.argument("user")
@output_argument
@connected()
async def export(run: Run, user: str, output: Output) -> None:
    """Write a zip archive with all data of USER, for them.

    FILE must not exist, unless --force is given. Only you can read it, and it appears once it is complete.
    """
    from ximler.privacy import export as privacy

    archive = await privacy.take(run.database, run.actor, await run.user_id(user))
    size = 0
    with output.opened() as file:
        async for part in archive:
            size += file.write(part)
    if output.path:
        click.echo(f"{output.path}: {size:,} bytes", err=True)


async def _list(run: Run, text: str | None, limit: int, after: Any, *, empty: str) -> None:
    from ximler.accounts import administration

    def state(account: "Account") -> str:
        if account.locked_at:
            return "locked"
        return account.role or ("" if account.user.email_verified else "unverified")

    run.show_list(
        await administration.page(run.database, run.actor, search=text, first=limit, after=after),
        row=_row,
        columns={
            "Id": lambda account: account.user.id,
            "E-mail": lambda account: account.user.email,
            "Name": lambda account: account.user.name,
            "State": state,
            "Since": lambda account: account.user.created_at.strftime("%Y-%m-%d"),
            "Last sign-in": lambda account: minute(account.user.last_login, "never"),
        },
        empty=empty,
    )


def _show(run: Run, account: "Account", more: dict[str, Any] | None = None) -> None:
    whole = _row(account) | (more or {})

    def text() -> None:
        words = {None: "-", True: "yes", False: "no"}
        for name, value in whole.items():
            if isinstance(value, dict):
                shown = "; ".join(f"{resource} {_of(used)}" for resource, used in value.items())
            elif value is None or isinstance(value, bool):
                shown = words[value]
            else:
                shown = minute(value) if isinstance(value, datetime) else value
            click.echo(f"{name:14} {''.join(c if c.isprintable() else chr(0xFFFD) for c in str(shown))}")

    run.show(whole, text)


def _of(used: dict[str, Any]) -> str:
    most = "" if used["limit"] is None else f" of {used['limit']:,}"
    return f"{used['used']:,}{most}" + (f" ({used['forfeited']:,} forfeited)" if used["forfeited"] else "")


def _row(account: "Account") -> dict[str, Any]:
    """The fields that an operator may see, without hashes and tokens."""
    user = account.user
    found = fields(user, "id email name email_verified created_at last_login")
    return found | fields(account, "role locked_at lock_reason second_factor") | {"closedAt": user.deleted_at}
