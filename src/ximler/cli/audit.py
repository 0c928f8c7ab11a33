"""`ximler audit`: seal, verify, search, export, prune and erase the audit log, for operators."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.settings import Settings

_OPERATOR = Actor(kind="operator", via="cli")
_AGO = re.compile(r"(\d+)([smhdwy])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}

F = TypeVar("F", bound=Callable[..., Any])


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601 (UTC where it says no zone), or how long ago: 90d, 12h, 30m."""

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
    """What entries to look for."""
    for option in (
        click.option("--until", type=Moment(), help="Written before then (a time, or 12h for 12 hours ago)."),
        click.option("--since", type=Moment(), help="Written since then (a time, or 90d for 90 days ago)."),
        click.option("--resource-id", help="About the thing of --resource with this id."),
        click.option("--resource", help="About things of this kind: users, projects, …"),
        click.option("--action", help="Of this action: accounts.password.changed, …"),
        click.option("--user", metavar="ID", help="About this user."),
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Seal, verify, search, export and prune the audit log.

    Workers seal it by themselves. `verify` shows that nothing was altered, removed or put in since; keep what `head` prints
    somewhere else, and it also shows that nothing was cut off.
    """


@audit.command()
@click.option("--json", "as_json", is_flag=True, help="Print how many entries were sealed as JSON.")
@database_options
def seal(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Seal what has been written, now. Workers do it every 20 seconds."""
    settings = _settings(data_dir, mongodb_uri)

    async def work() -> int:
        from ximler.audit.keys import SealKeys
        from ximler.audit.sealing import Sealer

        keys = SealKeys.load(settings)
        async with context.database(settings) as database:
            with _progress("Sealing", quiet=as_json) as progress:
                return await Sealer(database, keys).seal(progress=progress)

    count = context.run(work())
    if as_json:
        context.print_json({"sealed": count})
    else:
        click.echo(f"{_counted(count, 'entry', 'entries')} sealed." if count else "Everything is sealed.")


@audit.command()
@click.option("--head", metavar="FILE|N:HASH", help="An earlier head: also check that nothing was cut off since.")
@click.option("--others", is_flag=True, help="Entries that other applications write to the log are no problem.")
@click.option("--key", "public", multiple=True, metavar="pub:…", help="Check with these public keys instead of ours.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@database_options
def verify(
    head: str | None,
    others: bool,
    public: tuple[str, ...],
    as_json: bool,
    data_dir: Path | None,
    mongodb_uri: str | None,
) -> int:
    """Check every entry against its seal, and every seal against the one before.

    Names what was altered, is missing, or was put in. Exit code 1 when there is something. Changes nothing.
    """
    settings = _settings(data_dir, mongodb_uri)

    async def work() -> Any:
        from ximler.audit import verification
        from ximler.audit.keys import SealKeys
        from ximler.audit.seals import Head

        keys = SealKeys.parse("\n".join(public), source="--key") if public else SealKeys.load(settings)
        known = None if head is None else Head.parse(_text(head))
        async with context.database(settings) as database:
            with _progress("Verifying", quiet=as_json) as progress:
                return await verification.verify(database, keys, head=known, others=others, progress=progress)

    report = context.run(work())
    if as_json:
        context.print_json({"sound": report.sound, **_fields(report)})
    else:
        _show(report)
    return 0 if report.sound else 1


@audit.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print it with the public keys, for --head and --key of `verify`."
)
@database_options
def head(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Print where the chain of seals ends. Keep it elsewhere: `verify --head` then finds what was cut off."""
    settings = _settings(data_dir, mongodb_uri)

    async def work() -> Any:
        from ximler.audit import seals
        from ximler.audit.keys import SealKeys

        keys = SealKeys.load(settings)
        async with context.database(settings) as database:
            return await seals.head(database, keys)

    found = context.run(work())
    if found is None:
        click.echo("Nothing has been sealed yet: ximler audit seal", err=True)
    elif as_json:
        context.print_json(found)
    else:
        click.echo(f"{found.number}:{found.hash}")


@audit.command()
@filters
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first.")
@click.option("--after", metavar="CURSOR", help="Continue after the cursor that the previous page ended with.")
@click.option("--json", "as_json", is_flag=True, help="Print entries and the next cursor as JSON.")
@database_options
def search(
    limit: int, after: str | None, as_json: bool, data_dir: Path | None, mongodb_uri: str | None, **given: Any
) -> None:
    """List entries, newest first. That somebody's entries were looked at is written down as well."""
    from ximler.core.ids import decode_cursor

    settings = _settings(data_dir, mongodb_uri)
    where = _where(**given)
    position = None if after is None else decode_cursor(after)

    async def work() -> Any:
        from ximler.audit import search

        async with context.database(settings) as database:
            return await search.page(database, _OPERATOR, **where, first=limit, after=position)

    page = context.run(work())
    if as_json:
        found = [_entry(entry) for entry in page.items]
        context.print_json({"entries": found, "next": page.end_cursor if page.has_next else None})
        return
    if page.items:
        context.print_table(
            ("Time", "Action", "User", "Of", "By", "Address"),
            [
                (
                    entry.created_at.strftime("%Y-%m-%d %H:%M:%S"),
                    entry.action,
                    entry.user_id or "",
                    f"{entry.resource} {entry.resource_id or ''}",
                    _entry(entry)["details"].get("actor", ""),
                    entry.ip_address or "",
                )
                for entry in page.items
            ],
        )
    else:
        click.echo("There are no such entries.")
    if page.has_next:
        click.echo(f"More: the same with --after {page.end_cursor}")


@audit.command()
@filters
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write there instead of standard output."
)
@database_options
def export(
    form: Literal["ndjson", "csv"], output: Path | None, data_dir: Path | None, mongodb_uri: str | None, **given: Any
) -> None:
    """Write entries as lines of text, oldest first: NDJSON with everything, CSV for spreadsheets."""
    settings = _settings(data_dir, mongodb_uri)
    where = _where(**given)

    async def work() -> int:
        from ximler.audit import export as exported
        from ximler.audit.search import condition

        count = 0
        with output.open("w", encoding="utf-8", newline="") if output else _unclosed() as file:
            async with context.database(settings) as database:
                with _progress("Exporting", quiet=False) as progress:
                    async for text in exported.lines(database, _OPERATOR, condition(**where), form=form):
                        file.write(text)
                        count += text.count("\n")
                        progress(count)
        return count - int(form == "csv")

    count = context.run(work())
    if output:
        click.echo(f"{_counted(count, 'line', 'lines')} written to {output}.", err=True)


@audit.command()
@click.option("--older-than", "before", type=Moment(), required=True, help="What is older: 400d, or a time.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print how many entries were removed as JSON.")
@database_options
def prune(before: datetime, yes: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Remove sealed entries that are older, for good. What is left can still be verified."""
    settings = _settings(data_dir, mongodb_uri)
    if not yes:
        click.confirm(f"Remove entries from before {before:%Y-%m-%d %H:%M} UTC for good?", abort=True, err=True)

    async def work() -> int:
        from ximler.audit.keys import SealKeys
        from ximler.audit.pruning import prune as remove

        keys = SealKeys.load(settings)
        async with context.database(settings) as database:
            with _progress("Pruning", quiet=as_json) as progress:
                return await remove(database, keys, _OPERATOR, before=before, progress=progress)

    count = context.run(work())
    if as_json:
        context.print_json({"removed": count})
    else:
        click.echo(f"{_counted(count, 'entry', 'entries')} removed.")


@audit.command()
@click.argument("user_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print how many entries were changed as JSON.")
@database_options
def erase(user_id: str, yes: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Take a person out of the log, for good: addresses, names, whatever is personal. The log can still be verified."""
    from ximler.core.ids import object_id

    settings = _settings(data_dir, mongodb_uri)
    oid = object_id(user_id)
    if not yes:
        click.confirm(f"Remove what is personal of user {oid} from the log for good?", abort=True, err=True)

    async def work() -> int:
        from ximler.audit.erasure import erase as remove

        async with context.database(settings) as database:
            return await remove(database, oid, actor=_OPERATOR)

    count = context.run(work())
    if as_json:
        context.print_json({"erased": count})
    else:
        click.echo(f"The person was removed from {_counted(count, 'entry', 'entries')}.")


@audit.command()
@click.option("--new", is_flag=True, help="Make a new key, and retire the one in use.")
@database_options
def key(new: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Print the public keys that check seals, or make a new key.

    Where XIMLER_AUDIT_KEY or MONGODB_URI is set the new key is printed, to be set as XIMLER_AUDIT_KEY; otherwise it goes into
    the data folder. Restart what is running.
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
        click.echo(f"A new key is in {replace(settings, keys.renewed())}. Restart what is running.")


def _settings(data_dir: Path | None, mongodb_uri: str | None) -> Settings:
    """With the secret key: it tells our entries from others'."""
    return context.load(data_dir=data_dir, mongodb_uri=mongodb_uri).with_secret()


def _where(*, user: str | None, **given: Any) -> dict[str, Any]:
    from ximler.core.ids import object_id

    return {**given, "user_id": None if user is None else object_id(user, "user")}


def _text(head: str) -> str:
    """Of a file, or as it is."""
    path = Path(head)
    try:
        return path.read_text() if path.is_file() else head
    except OSError as problem:
        raise Invalid.field("head", f"{path}: {problem.strerror}") from None


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Says on a terminal how many entries have been gone through."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f} entries"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.update(task, completed=count)


@contextmanager
def _unclosed() -> Iterator[Any]:
    """Standard output, in UTF-8 whatever the terminal's; text that is no Unicode does not stop it."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace", newline="") as file:
        yield file


def _show(report: Any) -> None:
    for problem in report.problems:
        where = f"entry {problem.entry}" if problem.entry else f"seal {problem.seal}"
        if problem.entry and problem.seal:
            where += f" (seal {problem.seal})"
        click.echo(f"{problem.what}: {where}: {problem.why}")
    if (rest := sum(report.counts.values()) - len(report.problems)) > 0:
        click.echo(f"… and {rest} more")
    parts = [f"{_counted(report.entries, 'entry', 'entries')} in {_counted(report.seals, 'seal', 'seals')}"]
    for name, text in (("erased", "without the person"), ("others", "of other applications"), ("pruned", "pruned before"),
                       ("waiting", "not sealed yet")):  # fmt: skip
        if count := getattr(report, name):
            parts.append(f"{count:,} {text}")
    verdict = "The log is what was sealed" if report.sound else "The log is NOT what was sealed"
    click.echo(f"{verdict}: {', '.join(parts)}.")
    if report.head:
        click.echo(f"Head: {report.head.number}:{report.head.hash}")


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _fields(report: Any) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(report, enc_hook=str)
    return fields


def _entry(entry: Any) -> dict[str, Any]:
    from ximler.audit.search import details

    return {
        "id": entry.id,
        "createdAt": entry.created_at,
        "action": entry.action,
        "resource": entry.resource,
        "resourceId": entry.resource_id,
        "userId": entry.user_id,
        "address": entry.ip_address,
        "userAgent": entry.user_agent,
        "details": details(entry),
    }
