"""`ximler jobs`: the outbox, for operators."""

from typing import Any

import click

from ximler.cli.context import Id, Run, connected, fields, paged


@click.group()
def jobs() -> None:
    """List, retry and cancel jobs."""


@jobs.command("list")
@click.option(
    "--status",
    type=click.Choice(["PENDING", "RUNNING", "DONE", "DEAD", "CANCELLED"], case_sensitive=False),
    help="Only these.",
)
@paged
@connected(json="Print jobs and the next cursor as JSON.")
async def list_jobs(run: Run, status: Any, limit: int, after: Any) -> None:
    """List jobs, newest first. Finished jobs are kept for a week."""
    from ximler.database import outbox

    run.show_list(
        await outbox.page(run.database, status=status, first=limit, after=after),
        row=_row,
        columns={
            "Id": lambda job: job.id,
            "Kind": lambda job: job.kind,
            "Status": lambda job: job.status,
            "Attempts": lambda job: job.attempts,
            "Due": lambda job: job.run_at.strftime("%Y-%m-%d %H:%M:%S"),
            "Last error": lambda job: job.last_error or "",
        },
        empty="There are no jobs.",
    )


@jobs.command()
@click.argument("job_id", metavar="ID", type=Id())
@connected(json="Print the job as JSON.")
async def retry(run: Run, job_id: Any) -> None:
    """Make a dead, cancelled or waiting job due now."""
    from ximler.database import outbox

    _show(run, await outbox.retry(run.database, job_id))


@jobs.command()
@click.argument("job_id", metavar="ID", type=Id())
@connected(json="Print the job as JSON.")
async def cancel(run: Run, job_id: Any) -> None:
    """Cancel a waiting or dead job."""
    from ximler.database import outbox

    _show(run, await outbox.cancel(run.database, job_id))


def _show(run: Run, job: Any) -> None:
    run.show(_row(job), f"{job.id} ({job.kind}) is {job.status.lower()}.")


def _row(job: Any) -> dict[str, Any]:
    return fields(job, "id kind status attempts last_error created_at") | {"dueAt": job.run_at}
