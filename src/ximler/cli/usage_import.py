"""`ximler usage import`: events from a file into the ledger."""

import sys
from collections.abc import AsyncIterator
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from ximler.cli.context import Run, connected, counted

if TYPE_CHECKING:
    from ximler.metering.ledger.ingest import Report

_CHUNK = 1 << 20
_SHOWN = 20


@click.command("import")
@click.argument("file", type=click.File("rb"))
@connected(json="Print the report as JSON.")
async def import_events(run: Run, file: IO[bytes]) -> int:
    """Record the usage events in FILE ('-' is standard input), one JSON object a line, each once.

    {"id": "…", "at": "2026-01-31T12:00:00Z", "userId": "…", "amount": 1, "source": "gateway"}

    Safe to interrupt and repeat: events that were counted are recognised. Exit code 1: some lines were
    refused.
    """
    from ximler.database import sync
    from ximler.metering.ledger import settlement
    from ximler.metering.ledger.ingest import ingest

    await sync.require_ready(run.database)
    report = await ingest(run.database, run.actor, _chunks(file), progress=_progress(quiet=run.as_json))
    await settlement.settle(run.database, thresholds=run.settings.usage_alerts)
    run.show(msgspec.to_builtins(report), lambda: _print(report))
    return 1 if report.refused else 0


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Read in the event loop: the database works on a batch meanwhile."""
    while chunk := file.read(_CHUNK):
        yield chunk


def _progress(*, quiet: bool) -> Any:
    shown = not quiet and sys.stderr.isatty()

    def progress(report: "Report") -> None:
        if shown:
            click.echo(f"\r{report.lines:,} lines read", err=True, nl=False)

    return progress


def _print(report: "Report") -> None:
    if sys.stderr.isatty():
        click.echo("", err=True)
    recorded = counted(report.accepted, "event")
    click.echo(f"{recorded} recorded, {report.duplicates:,} already known, {len(report.refused):,} refused.")
    for refusal in report.refused[:_SHOWN]:
        click.echo(f"line {refusal.line}: {refusal.reason}", err=True)
    if len(report.refused) > _SHOWN:
        click.echo(f"… and {len(report.refused) - _SHOWN:,} more: --json lists them all", err=True)
    if not report.complete:
        click.echo(f"Too many lines were refused: reading stopped after line {report.lines:,}.", err=True)
