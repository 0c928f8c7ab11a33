"""`ximler up`: the whole of Ximler, running."""

import asyncio
import socket
import sys
import time
from collections import deque
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import structlog

from ximler import __version__
from ximler.cli import context, serving
from ximler.cli.context import database_options
from ximler.core.errors import XimlerError
from ximler.core.networks import is_loopback
from ximler.core.settings import Settings
from ximler.core.stopping import end
from ximler.runtime import Part, Runtime, Shutdown

if TYPE_CHECKING:
    from ximler.embedded.server import Server

_log = structlog.get_logger("ximler")
_MOST_DEATHS = 5
_MOST_DEATHS_IN_S = 60
_STOP_START_S = 3.0

T = TypeVar("T")


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

    The embedded database lives in --data-dir and ends with this process. Ctrl-C or SIGTERM lets running
    requests finish, for ten seconds at most (XIMLER_DRAIN_SECONDS), then stops the database, and the exit
    code is 0. A start that is interrupted exits with 130 or 143.
    """
    settings = context.load(
        serves=True, host=host, port=port, workers=workers, data_dir=data_dir, mongodb_uri=mongodb_uri
    ).with_secret()
    if settings.trusted_proxies:  # here, and not in each of the workers
        from ximler.http.requests import TrustedProxies

        TrustedProxies(settings.trusted_proxies)
    serving.raise_file_limit()
    listener = serving.bind(settings.host, settings.port)
    settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
    with serving.runner() as loop:
        loop.run(_run(settings, listener, init=init))


async def _run(settings: Settings, listener: socket.socket, *, init: bool) -> None:
    shutdown = Shutdown(settings.drain_seconds)
    shutdown.listen()
    embedded = None if settings.mongodb_uri else await _until_asked(shutdown, _start_database(settings))
    uri = embedded.uri if embedded else settings.mongodb_uri
    serves = False
    tending = Runtime([Part("mongod", partial(_tend, embedded, shutdown))] if embedded else [], shutdown=shutdown)
    try:
        tending.start()
        if uri is not None:
            await _until_asked(shutdown, _prepare(settings, uri, init=init))
        if uri is not None and not shutdown.asked.is_set():
            serves = True
            serve = serving.serve_here if settings.workers == 1 else serving.serve_in_children
            await serve(settings, uri, listener, shutdown=shutdown, started=lambda: _announce(settings))
    finally:
        shutdown.ask()
        await tending.close()
        if embedded:
            await embedded.stop()
    if shutdown.failed is not None:
        raise shutdown.failed
    if shutdown.signal is not None and not serves:
        raise click.exceptions.Exit(128 + shutdown.signal)


async def _until_asked(shutdown: Shutdown, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work, which is cancelled when shutdown is requested first; None if it then has no
    result.
    """
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    asking: asyncio.Future[Any] = asyncio.ensure_future(shutdown.asked.wait())
    both: list[asyncio.Future[Any]] = [working, asking]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    await end([asking])
    if working.done():
        return working.result()
    working.cancel()  # once: a database that is starting is stopped before the task ends
    await asyncio.wait([working], timeout=_STOP_START_S)
    await end([working])
    if working.cancelled() or working.exception() is not None:
        return None
    return working.result()  # it was too late to cancel


async def _start_database(settings: Settings) -> "Server":
    from ximler.embedded import server

    # The application's imports take as long as mongod's start: run them concurrently.
    starting = asyncio.ensure_future(
        server.start(settings.data_path, mongod=settings.mongod, cache_mb=settings.mongod_cache_mb)
    )
    await asyncio.to_thread(__import__, "ximler.app")
    return await starting


async def _tend(embedded: "Server", shutdown: Shutdown, stop: asyncio.Event) -> None:
    """Restart a mongod that died; requests fail until it is back. Give up if it keeps dying."""
    deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
    while not stop.is_set():
        dying = asyncio.ensure_future(embedded.wait())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([dying, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([stopping, dying])
        if stop.is_set():
            return
        reason = embedded.why()
        _log.error("database died", reason=reason.message if reason else "it was stopped")
        deaths.append(time.monotonic())
        try:
            if reason and len(deaths) == _MOST_DEATHS and deaths[-1] - deaths[0] < _MOST_DEATHS_IN_S:
                raise reason
            await embedded.restart()
        except XimlerError as problem:
            shutdown.failed = problem
            shutdown.ask()
            return
        _log.info("database restarted", pid=embedded.pids[0])


async def _prepare(settings: Settings, uri: str, *, init: bool) -> None:
    """Bring the database up to date, or warn about differences."""
    from ximler import setup
    from ximler.database import connect, sync

    database = await connect(uri, settings=settings, quiet=True)
    try:
        if not is_loopback(settings.host):
            from ximler.cli.doctor import mongod_release

            build = await database.client.admin.command("buildInfo")
            found = mongod_release(settings, build["version"])
            if found.state != "ok":
                _log.warning("MongoDB should be newer", problem=found.detail, remedy=found.remedy)
        if await sync.check_version(database):
            return
        if init:
            sync.require_safe(await setup.initialise(database))
        else:
            # Not more than a warning: a newer map of the same version may have been applied.
            _log.warning("database is not up to date", remedy="ximler db init")
    finally:
        await database.close()


def _announce(settings: Settings) -> None:
    from ximler.http.mailbox import PATH, folder_of

    where = "MONGODB_URI" if settings.mongodb_uri else str(settings.data_path)
    url = settings.base_url
    mailbox = f"  E-mails   {url}{PATH} (they are not sent)\n" if folder_of(settings) else ""
    click.echo(
        f"\nXimler {__version__} is running.\n"
        f"  GraphQL   {url}/graphql\n"
        f"  API docs  {url}/docs\n"
        f"{mailbox}"
        f"  Health    {url}/readyz\n"
        f"  Database  {where}\n"
        "Ctrl-C stops it.\n",
        file=sys.stderr,
    )
    from ximler.cli.doctor import folder_mode, proxies

    if (folder := folder_mode(settings.data_path)).state != "ok":
        _log.warning("the data folder is open", problem=folder.detail, remedy=folder.remedy)
    if (found := proxies(settings)).state != "ok":
        _log.warning("clients share an address", problem=found.detail, remedy=found.remedy)
    if settings.public_url is None and not (settings.development and is_loopback(settings.host)):
        _log.warning("links in e-mails lead to this machine only", url=url, remedy="set XIMLER_PUBLIC_URL")
