"""`ximler up`: the whole of Ximler, running."""

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path

import click
import msgspec

from ximler import __version__
from ximler.cli import context, serving
from ximler.cli.context import database_options
from ximler.core.settings import Settings


@click.command()
@click.option("--host", help="Address to listen on (XIMLER_HOST).  [default: 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one (XIMLER_PORT).  [default: 8000]",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Processes that answer requests (XIMLER_WORKERS).  [default: 1]"
)
@click.option("--init/--no-init", default=True, show_default=True, help="Bring the database up to date first.")
@database_options
def up(
    host: str | None, port: int | None, workers: int | None, init: bool, data_dir: Path | None, mongodb_uri: str | None
) -> None:
    """Start Ximler, with its database unless MONGODB_URI is set.

    The embedded database lives in --data-dir and ends with this process. Ctrl-C or SIGTERM lets running requests finish, for
    ten seconds at most (XIMLER_DRAIN_SECONDS), then stops the database.
    """
    settings = context.load(
        host=host, port=port, workers=workers, data_dir=data_dir, mongodb_uri=mongodb_uri
    ).with_secret()
    listener = serving.bind(settings.host, settings.port)
    settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
    with serving.runner() as loop:
        loop.run(_run(settings, listener, init=init))


async def _run(settings: Settings, listener: socket.socket, *, init: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked_to_stop(*_: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    # Ours before uvicorn's: it puts them back and repeats the signal when it has drained, and we still have a database to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked_to_stop)
    async with contextlib.AsyncExitStack() as stack:
        uri = settings.mongodb_uri or await _start_database(settings, stack)
        if init:
            await _initialise(settings, uri)
        if stop.is_set():
            return

        def started() -> None:
            _announce(settings)

        if settings.workers == 1:
            await serving.serve_here(settings, uri, listener, started=started)
        else:
            await serving.serve_in_children(settings, uri, listener, stop=stop, started=started)


async def _start_database(settings: Settings, stack: contextlib.AsyncExitStack) -> str:
    from ximler.database import server

    # The application's imports take as long as mongod's start: side by side.
    starting = asyncio.ensure_future(
        server.start(settings.data_path, mongod=settings.mongod, cache_mb=settings.mongod_cache_mb)
    )
    await asyncio.to_thread(__import__, "ximler.app")
    running = await starting
    stack.push_async_callback(running.stop)
    return running.uri


async def _initialise(settings: Settings, uri: str) -> None:
    from ximler.database import connect, sync

    database = await connect(uri, settings=settings)
    try:
        if not await sync.check_version(database):
            await sync.initialise(database)
    finally:
        await database.close()


def _announce(settings: Settings) -> None:
    where = "MONGODB_URI" if settings.mongodb_uri else str(settings.data_path)
    url = settings.base_url
    click.echo(
        f"\nXimler {__version__} is running.\n"
        f"  GraphQL   {url}/graphql\n"
        f"  API docs  {url}/docs\n"
        f"  Health    {url}/readyz\n"
        f"  Database  {where}\n"
        "Ctrl-C stops it.\n",
        file=sys.stderr,
    )
