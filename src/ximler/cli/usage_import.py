"""`ximler usage import`: events from a file into the ledger."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor

if TYPE_CHECKING:
    from ximler.metering.ledger.ingest import Report

_CHUNK = 1 << 20
_SHOWN = 20


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@database_options
def import_events(file: IO[bytes], as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> int:
    """Record the events in FILE ('-' is standard input), one JSON object a line, each once.

    {"id": "…", "at": "2026-01-31T12:00:00Z", "userId": "…", "amount": 1, "source": "gateway"}

    Safe to interrupt and repeat: what was counted is known. Exit code 1: some lines were refused.
    """
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> Any:
        from ximler.database import sync
        from ximler.metering.ledger import settlement
        from ximler.metering.ledger.ingest import ingest

        async with context.database(settings) as database:
            await sync.require_ready(database)
            actor = Actor(kind="operator", via="cli")
            report = await ingest(database, actor, _chunks(file), progress=_progress(quiet=as_json))
            await settlement.settle(database, thresholds=settings.usage_alerts)
            return report

    report: Report = context.run(work())
    if as_json:
        context.print_json(msgspec.to_builtins(report))
    else:
        _tell(report)
    return 1 if report.refused else 0


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Read where it is: the database works on one batch meanwhile."""
    while chunk := file.read(_CHUNK):
        yield chunk


def _progress(*, quiet: bool) -> Any:
    shown = not quiet and sys.stderr.isatty()

    def progress(report: "Report") -> None:
        if shown:
            click.echo(f"\r{report.lines:,} lines read", err=True, nl=False)

    return progress


def _tell(report: "Report") -> None:
    if sys.stderr.isatty():
        click.echo("", err=True)
    click.echo(
        f"{report.accepted:,} events recorded, {report.duplicates:,} known already, {len(report.refused):,} refused."
    )
    for refusal in report.refused[:_SHOWN]:
        click.echo(f"line {refusal.line}: {refusal.reason}", err=True)
    if len(report.refused) > _SHOWN:
        click.echo(f"… and {len(report.refused) - _SHOWN:,} more: --json lists them all", err=True)
    if not report.complete:
        click.echo(f"Too many lines were refused: reading stopped after line {report.lines:,}.", err=True)
