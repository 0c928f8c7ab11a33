"""`ximler worker`: run jobs, in a process of its own."""

import asyncio
import contextlib
import signal
from pathlib import Path

import click

from ximler.cli import context
from ximler.cli.context import database_options


@click.command()
@click.option("--once", is_flag=True, help="Run what is due now, then end.")
@database_options
def worker(once: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Run jobs (mail, …) apart from `ximler up`.

    Any number may run at once, on any number of machines. Ctrl-C or SIGTERM stops it; a job under way is taken up by another.
    """
    settings = context.load(serves=not once, data_dir=data_dir, mongodb_uri=mongodb_uri).with_secret()

    async def work() -> None:
        from ximler.accounts.keyring import Keyring
        from ximler.audit import keys
        from ximler.database import sync
        from ximler.database.changes import Feed
        from ximler.metering.ledger import changes
        from ximler.metering.ledger.settlement import Settler
        from ximler.metering.limits.follower import Follower
        from ximler.notifications.email import mailer
        from ximler.worker import Tools, Worker

        keyring = Keyring(settings)
        try:
            async with context.database(settings) as database:
                await sync.check_version(database)
                tools = Tools(
                    database=database,
                    settings=settings,
                    keyring=keyring,
                    mailer=mailer(settings),
                    seal_keys=keys.find(settings),
                )
                if once:
                    click.echo(f"{await Worker(tools).run_due()} jobs run")
                    return
                feed = Feed(database)
                follower = Follower(database, feed)
                settler = Settler(database, feed, thresholds=settings.usage_alerts)
                parts = (feed, follower, settler, Worker(tools, feed=feed))
                running = asyncio.gather(*(part.run() for part in parts), changes.keep_settling(database))
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, running.cancel)
                click.echo("The worker is running. Ctrl-C stops it.", err=True)
                with contextlib.suppress(asyncio.CancelledError):
                    await running
        finally:
            keyring.close()

    context.run(work())
