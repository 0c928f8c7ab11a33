"""`ximler audit`: seal, verify, search, export, prune and erase the audit log, for operators."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec

from ximler.cli import context
from ximler.cli.context import Run, connected, counted, database_options, fields, minute, paged, progress_bar
from ximler.cli.files import Output, output_option
from ximler.core.errors import Invalid

_AGO = re.compile(r"(\d+)([smhdwy])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}

F = TypeVar("F", bound=Callable[..., Any])


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601 (UTC by default), or an age: 90d, 12h, 30m."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if ago := _AGO.fullmatch(value):
                return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a time (2026-11-25T12:00) nor how long ago (90d, 12h, 30m)", param, ctx)


def filters(command: F) -> F:
    """The options that select entries."""
    for option in (
        click.option("--until", type=Moment(), help="Written before then (a time, or 12h for 12 hours ago)."),
        click.option("--since", type=Moment(), help="Written since then (a time, or 90d for 90 days ago)."),
        click.option("--resource-id", help="About the thing of --resource with this id."),
        click.option("--resource", help="About things of this kind: users, projects, …"),
        click.option("--action", help="Of this action: accounts.password.changed, …"),
        click.option("--user", help="About this user: an id or e-mail address."),
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Seal, verify, search, export and prune the audit log.

    Workers seal it by themselves. `verify` detects entries that were altered, removed or inserted since. Keep
    the output of `head` elsewhere, and `verify --head` also detects a truncated log.
    """


@audit.command()
@click.option("--new-chain", is_flag=True, help="Continue although seals were removed or never made. This is audited.")
@connected(json="Print how many entries were sealed as JSON.", secret=True)
async def seal(run: Run, new_chain: bool) -> None:
    """Seal the entries written so far. Workers do it every 20 seconds."""
    from ximler.audit.heads import KeptHead
    from ximler.audit.keys import SealKeys
    from ximler.audit.sealing import Sealer

    keys = SealKeys.load(run.settings)
    with progress_bar("Sealing", "entries", quiet=run.as_json) as progress:
        kept = KeptHead(run.settings.data_path, run.database.name)
        sealer = Sealer(run.database, keys, kept=kept, may_found=run.settings.mongodb_uri is None)
        count = await sealer.seal(progress=progress, new_chain=new_chain)
    run.show({"sealed": count}, f"{_entries(count)} sealed." if count else "Everything is sealed.")


@audit.command()
@click.option("--head", metavar="FILE|N:HASH", help="An earlier head: also check that the log was not truncated since.")
@click.option("--others", is_flag=True, help="Accept entries that other applications write to the log.")
@click.option("--key", "public", multiple=True, metavar="pub:…", help="Check with these public keys instead of ours.")
@connected(json="Print the report as JSON.", secret=True)
async def verify(run: Run, head: str | None, others: bool, public: tuple[str, ...]) -> int:
    """Check every entry against its seal, and every seal against the one before.

    Names entries that were altered, removed or inserted. Exit code 1 when there are any. Changes nothing.
    Without --head, the head kept in the data folder is used, where there is one.
    """
    from ximler.audit import verification
    from ximler.audit.heads import KeptHead
    from ximler.audit.keys import SealKeys
    from ximler.audit.seals import Head

    keys = SealKeys.parse("\n".join(public), source="--key") if public else SealKeys.load(run.settings)
    kept = KeptHead(run.settings.data_path, run.database.name).read()
    known = (kept if kept and kept.number else None) if head is None else Head.parse(_text(head))
    with progress_bar("Verifying", "entries", quiet=run.as_json) as progress:
        report = await verification.verify(run.database, keys, head=known, others=others, progress=progress)
    run.show({"sound": report.sound, **msgspec.to_builtins(report, enc_hook=str)}, lambda: _show(report))
    return 0 if report.sound else 1


@audit.command()
@connected(json="Print it with the public keys, for --head and --key of `verify`.", secret=True)
async def head(run: Run) -> None:
    """Print the end of the chain of seals. Keep it elsewhere:
    `verify --head` then detects a truncated log."""
    from ximler.audit import seals
    from ximler.audit.keys import SealKeys

    found = await seals.head(run.database, SealKeys.load(run.settings))
    if found is None:
        click.echo("Nothing has been sealed yet: ximler audit seal", err=True)
    else:
        run.show(found, f"{found.number}:{found.hash}")


@audit.command()
@filters
@paged
@connected(json="Print entries and the next cursor as JSON.", secret=True)
async def search(run: Run, limit: int, after: Any, user: str | None, **where: Any) -> None:
    """List entries, newest first. Searching for a user's entries is audited as well."""
    from ximler.audit import search as owned

    user_id = await run.key_of(user) if user is not None else None
    run.show_list(
        await owned.page(run.database, run.actor, user_id=user_id, **where, first=limit, after=after),
        row=_entry,
        columns={
            "Time": lambda entry: entry.created_at.strftime("%Y-%m-%d %H:%M:%S"),
            "Action": lambda entry: entry.action,
            "User": lambda entry: entry.user_id or "",
            "Of": lambda entry: f"{entry.resource} {entry.resource_id or ''}",
            "By": lambda entry: owned.details(entry).get("actor", ""),
            "Address": lambda entry: entry.ip_address or "",
        },
        empty=f"There are no such entries.{_meant(where['action'])}",
    )


@audit.command()
@filters
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@output_option
@connected(secret=True)
async def export(run: Run, form: Literal["ndjson", "csv"], output: Output, user: str | None, **where: Any) -> None:
    """Write entries as lines of text, oldest first: NDJSON with all fields, CSV for spreadsheets."""
    from ximler.audit import export as exported
    from ximler.audit.search import condition

    count = 0
    user_id = await run.key_of(user) if user is not None else None
    with (
        output.opened() as file,
        progress_bar("Exporting", "entries", quiet=False) as progress,
    ):
        async for text in exported.lines(run.database, run.actor, condition(user_id=user_id, **where), form=form):
            file.write(text.encode(errors="replace"))
            count += text.count("\n")
            progress(count)
    if output.path:
        click.echo(f"{counted(count - int(form == 'csv'), 'line')} written to {output.path}.", err=True)


def _confirm_pruning(*, before: datetime, yes: bool) -> None:
    if not yes:
        click.confirm(f"Remove entries from before {minute(before)} UTC permanently?", abort=True, err=True)


@audit.command()
@click.option("--older-than", "before", type=Moment(), required=True, help="The age (400d) or a time.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected(json="Print how many entries were removed as JSON.", secret=True, first=_confirm_pruning)
async def prune(run: Run, before: datetime, yes: bool) -> None:  # noqa: ARG001 (`first` reads it)
    """Remove older sealed entries permanently. The rest can still be verified."""
    from ximler.audit.keys import SealKeys
    from ximler.audit.pruning import prune as remove

    keys = SealKeys.load(run.settings)
    with progress_bar("Pruning", "entries", quiet=run.as_json) as progress:
        count = await remove(run.database, keys, run.actor, before=before, progress=progress)
    run.show({"removed": count}, f"{_entries(count)} removed.")


def _confirm_erasure(*, user: str, yes: bool) -> None:
    if not yes:
        click.confirm(f"Remove the personal values of user {user} from the log permanently?", abort=True, err=True)


@audit.command()
@click.argument("user", metavar="USER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected(json="Print how many entries were changed as JSON.", secret=True, first=_confirm_erasure)
async def erase(run: Run, user: str, yes: bool) -> None:  # noqa: ARG001 (`first` reads it)
    """Remove addresses, names and other personal values of USER (an id or e-mail address) from the log,
    permanently.

    The log can still be verified. After an account was erased only its id is known.
    """
    from ximler.audit.erasure import erase as remove

    count = await remove(run.database, await run.key_of(user), actor=run.actor)
    run.show({"erased": count}, f"Personal values were removed from {_entries(count)}.")


@audit.command()
@click.option("--new", is_flag=True, help="Make a new key, and retire the one in use.")
@database_options
def key(new: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Print the public keys that check seals, or make a new key.

    Where XIMLER_AUDIT_KEY or MONGODB_URI is set the new key is printed, to be set as XIMLER_AUDIT_KEY;
    otherwise it goes into the data folder. Restart running processes.
    """
    from ximler.audit.keys import NoSealKey, SealKeys, new_key, replace

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    try:
        keys = SealKeys.load(settings)
    except NoSealKey:
        if not new:
            raise
        click.echo(new_key())
        return
    if not new:
        click.echo("\n".join(keys.public))
    elif settings.audit_key or settings.mongodb_uri:
        click.echo(",".join(keys.renewed().split()))
    else:
        click.echo(f"A new key is in {replace(settings, keys.renewed())}. Restart running processes.")


def _text(head: str) -> str:
    """The text of a file of that name, or the text itself."""
    path = Path(head)
    try:
        return path.read_text() if path.is_file() else head
    except OSError as problem:
        raise Invalid.field("head", f"{path}: {problem.strerror}") from None


def _show(report: Any) -> None:
    for problem in report.problems:
        where = f"entry {problem.entry}" if problem.entry else f"seal {problem.seal}"
        if problem.entry and problem.seal:
            where += f" (seal {problem.seal})"
        click.echo(f"{problem.what}: {where}: {problem.why}")
    if (rest := sum(report.counts.values()) - len(report.problems)) > 0:
        click.echo(f"… and {rest} more")
    parts = [_entries(report.entries), counted(report.seals, "seal")]
    for name, text in (("erased", "without personal values"), ("others", "from other applications"), ("pruned", "pruned"),
                       ("waiting", "not sealed yet")):  # fmt: skip
        if count := getattr(report, name):
            parts.append(f"{count:,} {text}")
    verdict = "The audit log is intact" if report.sound else "The audit log is NOT intact"
    click.echo(f"{verdict}: {', '.join(parts)}.")
    if report.head:
        click.echo(f"Head: {report.head.number}:{report.head.hash}")


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")


def _meant(action: str | None) -> str:
    """A hint if Ximler has no such action. Other applications may write others."""
    from difflib import get_close_matches

    from ximler.audit.actions import Action

    near = [] if action is None or action in set(Action) else get_close_matches(action, list(Action), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _entry(entry: Any) -> dict[str, Any]:
    from ximler.audit.search import details

    found = fields(entry, "id created_at action resource resource_id user_id user_agent")
    return found | {"address": entry.ip_address, "details": details(entry)}
