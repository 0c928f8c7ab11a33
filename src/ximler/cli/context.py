"""Common parts of commands: options, a connected database, and output for people or programs.

    @keys.command()
    @click.argument("who")
    @connected(json="Print them as JSON.")
    async def show(run: Run, who: str) -> None: ...

`connected` adds `--data-dir`, `--mongodb-uri` and `--json`, loads the settings and opens the database. Errors
become one line and an exit code in `ximler.cli.main`.
"""

import asyncio
import functools
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import structlog

from ximler.core import logs, settings
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound, XimlerError
from ximler.core.extended_json import plain
from ximler.core.ids import Position, decode_cursor, object_id
from ximler.core.settings import Settings

if TYPE_CHECKING:
    from ximler.accounts.keyring import Keyring
    from ximler.database import Database
    from ximler.database.collection import Page
    from ximler.schema.user import User

__all__ = [
    "Cursor", "Id", "Run", "connected", "counted", "database", "database_options", "fields", "load", "minute", "paged",
    "print_json", "print_table", "progress_bar", "run",
]  # fmt: skip

_log = structlog.get_logger("ximler")
_ENDLESS = 10_000  # columns

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Run:
    """One command under way: its settings, its database, and how it prints its result. It acts as an
    operator.
    """

    actor = Actor(kind="operator", via="cli")

    def __init__(self, loaded: Settings, connected: "Database", *, as_json: bool) -> None:
        self.settings = loaded
        self.database = connected
        self.as_json = as_json

    @functools.cached_property
    def keyring(self) -> "Keyring":
        from ximler.accounts.keyring import Keyring

        return Keyring(self.settings)

    async def user(self, who: str, *, closed: bool = False) -> "User":
        """The user with this id or e-mail address, in any form in which the address may be stored;
        with `closed`, also a closed account. Raises NotFound, Invalid.
        """
        from ximler.accounts import addresses

        if "@" in who:
            found = await addresses.holder(self.database, who, {} if closed else {"deletedAt": None})
        else:
            found = await self.database.users.find_one({"_id": _user_id(who)}, deleted=closed)
        if found is None:
            raise NotFound(f"There is no user {who}")
        return found

    async def user_id(self, who: str) -> Any:
        """The same as `user`, closed or not: its id."""
        return (await self.user(who, closed=True)).id

    async def key_of(self, who: str) -> Any:
        """The id of a user whose document may be gone: an id is not looked up, an address is."""
        return await self.user_id(who) if "@" in who else _user_id(who)

    def show(self, value: object, text: str | Callable[[], object]) -> None:
        """Print the value as JSON with `--json`, else the text or the function's output."""
        if self.as_json:
            print_json(value)
        elif callable(text):
            text()
        else:
            click.echo(text)

    def show_list(
        self,
        found: "Sequence[T] | Page[T]",
        *,
        row: Callable[[T], dict[str, Any]],
        columns: dict[str, Callable[[T], object]],
        empty: str,
    ) -> None:
        """Print a list: with `--json` as `{"items": […], "next": cursor or null}`, else as a table."""
        page: Any = found
        items: Sequence[T] = getattr(page, "items", page)
        following = page.end_cursor if getattr(page, "has_next", False) else None
        if self.as_json:
            print_json({"items": [row(item) for item in items], "next": following})
            return
        if items:
            print_table(list(columns), [[cell(item) for cell in columns.values()] for item in items])
        else:
            click.echo(empty)
        if following:
            click.echo(f"More: the same command with --after {following}")


def connected(
    *, json: str | None = None, secret: bool = False, first: Callable[..., dict[str, Any] | None] | None = None
) -> Callable[[Callable[..., Coroutine[Any, Any, Any]]], Callable[..., Any]]:
    """Make `async def command(run, **options)` a command with a database. It returns its exit code, or None.

    `json` is the help of `--json`; without it there is no such option. `secret` requires the secret key.
    `first(**options)` runs before the database is opened, to check options or to prompt; options that it
    returns replace those given.
    """

    def decorate(work: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @functools.wraps(work)
        def command(*, data_dir: Path | None, mongodb_uri: str | None, as_json: bool = False, **given: Any) -> Any:
            forms = [form for form in ("csv", "plot") if given.get(f"as_{form}")] + ["json"] * as_json
            if len(forms) > 1:
                raise click.UsageError(f"--{forms[0]} and --{forms[1]} exclude each other: give one.")
            loaded = load(data_dir=data_dir, mongodb_uri=mongodb_uri)
            if secret:
                loaded = loaded.with_secret()
            if first is not None:
                with _named_options():
                    given |= first(**given) or {}

            async def go() -> Any:
                async with database(loaded) as opened:
                    started = Run(loaded, opened, as_json=as_json)
                    try:
                        with _named_options():
                            return await work(started, **given)
                    finally:
                        if "keyring" in vars(started):
                            started.keyring.close()

            return run(go())

        with_options = database_options(command)
        return click.option("--json", "as_json", is_flag=True, help=json)(with_options) if json else with_options

    return decorate


@contextmanager
def _named_options() -> Iterator[None]:
    """Make errors name the options and arguments that were typed instead of the fields that they fill."""
    try:
        yield
    except XimlerError as problem:
        _name_options(problem, click.get_current_context().command)
        raise


def _name_options(problem: XimlerError, command: click.Command) -> None:
    typed = {}
    for param in command.params:
        shown = param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name
        for name in (param.name or "", shown.lower(), *(opt.lstrip("-").replace("-", "_") for opt in param.opts)):
            typed[name] = typed[f"{name}_id"] = shown
    for field in problem.fields:
        head, dot, rest = field.partition(".")
        name = re.sub(r"(?=[A-Z])", "_", head).lower()
        known = typed.get(name) or typed.get(name.removesuffix("_minor"))
        if known is not None:
            named = re.compile(rf"(?:^|(?<=; )){re.escape(field)}: ")
            problem.message = named.sub(f"{known}{dot}{rest}: ", problem.message)


def database_options(command: F) -> F:
    """`--data-dir` and `--mongodb-uri`, for every command that needs a database."""
    command = click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the embedded database (XIMLER_DATA_DIR).",
    )(command)
    return click.option("--mongodb-uri", metavar="URI", help="Use this server instead (MONGODB_URI).")(command)


def paged(command: F) -> F:
    """`--limit` and `--after`, for lists that have pages."""
    command = click.option("--after", type=Cursor(), help="Continue after the cursor of the previous page.")(command)
    return click.option(
        "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many, newest first."
    )(command)


class Id(click.ParamType[Any]):
    """24 hexadecimal digits."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if not isinstance(value, str) else _or_fail(self, object_id, value.strip().lower(), param, ctx)


class Cursor(click.ParamType[Position]):
    """The end of an earlier page."""

    name = "cursor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Position:
        return value if isinstance(value, tuple) else _or_fail(self, decode_cursor, value, param, ctx)


def _user_id(who: str) -> Any:
    try:
        return object_id(who.strip().lower())
    except Invalid:
        raise Invalid.field("user", f"{who!r} is not an id (24 hexadecimal digits) or e-mail address") from None


def _or_fail(
    kind: click.ParamType[T], parse: Callable[[str], T], text: str, param: click.Parameter | None, ctx: Any
) -> T:
    try:
        return parse(text)
    except Invalid as problem:
        kind.fail(str(next(iter(problem.fields.values()))), param, ctx)


def load(*, serves: bool = False, warns: bool = True, **overrides: object) -> Settings:
    """The settings, with logging set up. A command that does not serve prints its result, and logs warnings
    and errors only. It `warns` of unknown variables.
    """
    loaded = settings.load(overrides=overrides)
    if serves:
        logs.survive_closed_streams()
    quiet = not serves and loaded.log_level == "info"
    logs.configure(msgspec.structs.replace(loaded, log_level="warning") if quiet else loaded)
    for variable, resembled in settings.unknown_variables().items() if warns else ():
        _log.warning("unknown variable is ignored", variable=variable, remedy=resembled or "remove it")
    return loaded


@asynccontextmanager
async def database(loaded: Settings) -> "AsyncIterator[Database]":
    """A connected database: yours, the running embedded one,
    or one started for the duration of the command."""
    from ximler.database import connect
    from ximler.embedded import server

    if loaded.mongodb_uri:
        connected = await connect(loaded.mongodb_uri, settings=loaded)
        try:
            yield connected
        finally:
            await connected.close()
        return
    if not (loaded.data_path / "mongodb").exists():
        where = f"There is no database in {loaded.data_path} yet: this command creates one"
        click.echo(f"{where}. For another folder, set XIMLER_DATA_DIR or --data-dir.", err=True)
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
    """For people. Cells are plain text: markup and control characters that others stored have no effect.

    Nothing is cut off or folded, because ids and remedies are copied: where the terminal is too narrow for
    the table, each row is a record, a line a column; a pipe or file gets one line a row.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    cells = [["".join(c if c.isprintable() else "\ufffd" for c in str(cell)) for cell in row] for row in rows]
    console = Console(width=None if sys.stdout.isatty() else _ENDLESS)
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    if Measurement.get(console, console.options.update(max_width=_ENDLESS), table).maximum <= console.width:
        console.print(table)
        return
    width = max(map(len, columns))
    for number, row in enumerate(cells):
        if number:
            click.echo()
        for column, cell in zip(columns, row, strict=True):
            if cell:
                click.echo(f"{column:<{width}}  {cell}")


@contextmanager
def progress_bar(task: str, unit: str, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how many `unit` were processed: call the result with their count."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn(f"{{task.description}}: {{task.completed:,.0f}} {unit}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        shown = bar.add_task(task, total=None)
        yield lambda count: bar.update(shown, completed=count)


def print_json(value: object) -> None:
    """One JSON document, ids as hexadecimal text, times as RFC 3339."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=plain), indent=2)
    click.echo(text.decode())


def fields(thing: object, names: str) -> dict[str, Any]:
    """Attributes for JSON: `fields(key, "id last_used")` is `{"id": …, "lastUsed": …}`."""
    return {camel(name): getattr(thing, name) for name in names.split()}


def camel(name: str) -> str:
    """`lastUsed` for `last_used`."""
    return re.sub("_(.)", lambda found: found[1].upper(), name)


def minute(moment: datetime | None, otherwise: str = "") -> str:
    """A time in a table, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M") if moment else otherwise


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 entry`, `7 entries`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
