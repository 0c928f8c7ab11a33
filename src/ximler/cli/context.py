"""What commands share: settings with the common options, a connected database, and output for people or programs."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from ximler.core import logs, settings
from ximler.core.settings import Settings

if TYPE_CHECKING:
    from ximler.database import Database

__all__ = ["database", "database_options", "load", "print_json", "print_table", "run"]

_ENDLESS = 10_000  # columns

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def database_options(command: F) -> F:
    """`--data-dir` and `--mongodb-uri`, for every command that needs a database."""
    command = click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the embedded database (XIMLER_DATA_DIR).",
    )(command)
    return click.option("--mongodb-uri", metavar="URI", help="Use this server instead (MONGODB_URI).")(command)


def load(*, serves: bool = False, **overrides: object) -> Settings:
    """The settings, logging set up by them. A command that does one thing tells its result, and logs only what is wrong."""
    loaded = settings.load(overrides=overrides)
    quiet = not serves and loaded.log_level == "info"
    logs.configure(msgspec.structs.replace(loaded, log_level="warning") if quiet else loaded)
    return loaded


@asynccontextmanager
async def database(loaded: Settings) -> "AsyncIterator[Database]":
    """A connected database: yours, the running embedded one, or one started for as long as this takes."""
    from ximler.database import connect
    from ximler.embedded import server

    if loaded.mongodb_uri:
        connected = await connect(loaded.mongodb_uri, settings=loaded)
        try:
            yield connected
        finally:
            await connected.close()
        return
    loaded = loaded.with_secret()
    async with server.running(loaded.data_path, mongod=loaded.mongod, cache_mb=loaded.mongod_cache_mb) as uri:
        connected = await connect(uri, settings=loaded)
        try:
            yield connected
        finally:
            await connected.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """For people. Cells are text as it is: what others stored is neither markup nor control characters.

    Nothing is cut off, because ids and remedies are there to be copied: a narrow terminal folds them, all but
    the first column, and a pipe or file, which has no width, gets one line a row.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*(Text("".join(c if c.isprintable() else "\ufffd" for c in str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else _ENDLESS).print(table)


def print_json(value: object) -> None:
    """One JSON document, ids as hexadecimal text, times as RFC 3339."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    click.echo(text.decode())
