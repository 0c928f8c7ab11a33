"""`ximler worker`: run jobs and other background work, in a process of its own."""

from pathlib import Path

import click

from ximler.cli import context, serving
from ximler.cli.context import database_options


@click.command()
@click.option("--once", is_flag=True, help="Run the jobs that are due now, then end.")
@database_options
def worker(once: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Run jobs (mail, …) apart from `ximler up`.

    Any number may run at once, on any number of machines. Ctrl-C or SIGTERM stops it when the jobs under way
    are done, after ten seconds at most (XIMLER_DRAIN_SECONDS); another takes up those that are not.
    """
    settings = context.load(serves=not once, data_dir=data_dir, mongodb_uri=mongodb_uri).with_secret()

    async def work() -> None:
        from ximler.database import sync
        from ximler.database.changes import Feed
        from ximler.runtime import Part, Runtime, Shutdown, Stage
        from ximler.worker import Worker, background_parts, equip

        shutdown = Shutdown(settings.drain_seconds)
        tools_on = equip(settings)
        async with context.database(settings) as database:
            await sync.check_version(database)
            if once:
                click.echo(f"{await Worker(tools_on(database=database)).run_due()} jobs run")
                return
            shutdown.listen()
            feed = Feed(database)
            parts = [
                Part("feed", feed.run, stage=Stage.FEED),
                *background_parts(tools_on(database=database, feed=feed)),
            ]
            runtime = Runtime(parts, database=database, shutdown=shutdown)
            runtime.start()
            click.echo("The worker is running. Ctrl-C stops it.", err=True)
            await shutdown.asked.wait()
            await runtime.close()

    with serving.runner() as loop:
        loop.run(work())
