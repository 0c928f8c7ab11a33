"""`ximler jobs`: the outbox, for operators."""

from pathlib import Path
from typing import Any

import click

from ximler.cli import context
from ximler.cli.context import database_options


@click.group()
def jobs() -> None:
    """List, retry and cancel jobs."""


@jobs.command("list")
@click.option(
    "--status",
    type=click.Choice(["PENDING", "RUNNING", "DONE", "DEAD", "CANCELLED"], case_sensitive=False),
    help="Only these.",
)
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first.")
@click.option("--after", metavar="CURSOR", help="Continue after the cursor that the previous page ended with.")
@click.option("--json", "as_json", is_flag=True, help="Print jobs and the next cursor as JSON.")
@database_options
def list_jobs(
    status: Any, limit: int, after: str | None, as_json: bool, data_dir: Path | None, mongodb_uri: str | None
) -> None:
    """List jobs, newest first. Finished ones are kept for a week."""
    from ximler.core.ids import decode_cursor

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    position = None if after is None else decode_cursor(after)

    async def work() -> Any:
        from ximler.database import outbox

        async with context.database(settings) as database:
            return await outbox.page(database, status=status, first=limit, after=position)

    page = context.run(work())
    if as_json:
        context.print_json(
            {"jobs": [_row(job) for job in page.items], "next": page.end_cursor if page.has_next else None}
        )
        return
    rows = [
        (job.id, job.kind, job.status, job.attempts, job.run_at.strftime("%Y-%m-%d %H:%M:%S"), job.last_error or "")
        for job in page.items
    ]
    if rows:
        context.print_table(("Id", "Kind", "Status", "Attempts", "Due", "Last error"), rows)
    else:
        click.echo("There are no jobs.")
    if page.has_next:
        click.echo(f"More: ximler jobs list --limit {limit} --after {page.end_cursor}")


@jobs.command()
@click.argument("job_id")
@database_options
def retry(job_id: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Make a dead, cancelled or waiting job due now."""
    _act("retry", job_id, data_dir, mongodb_uri)


@jobs.command()
@click.argument("job_id")
@database_options
def cancel(job_id: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Do not run a waiting or dead job."""
    _act("cancel", job_id, data_dir, mongodb_uri)


def _act(verb: str, job_id: str, data_dir: Path | None, mongodb_uri: str | None) -> None:
    from ximler.core.ids import object_id

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    oid = object_id(job_id)

    async def work() -> Any:
        from ximler.database import outbox

        async with context.database(settings) as database:
            return await {"retry": outbox.retry, "cancel": outbox.cancel}[verb](database, oid)

    job = context.run(work())
    click.echo(f"{job.id} ({job.kind}) is {job.status.lower()}.")


def _row(job: Any) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "attempts": job.attempts,
        "dueAt": job.run_at,
        "lastError": job.last_error,
        "createdAt": job.created_at,
    }
