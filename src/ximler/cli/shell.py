"""`ximler shell`: Python with a connected database."""

import ast
import asyncio
import code
import types
from typing import Any

import click

from ximler import __version__
from ximler.cli.context import Run, connected


@click.command()
@click.option(
    "-c", "source", metavar="CODE", help="Run this instead of asking for input; `await` works at the top level."
)
@connected()
async def shell(run: Run, source: str | None) -> int:
    """Python with a connected database, in which `await` works. With -c, exit code 1 when the code raises.

    \b
    >>> await db.plans.find({})
    >>> await db.users.count({})
    """
    names = {"db": run.database, "settings": run.settings, "__name__": "ximler shell"}
    console = _Console(names, asyncio.get_running_loop())
    if source is not None:
        return 0 if await asyncio.to_thread(console.run_source, source) else 1
    banner = f"Ximler {__version__}, database {run.database.name!r}. `db` is connected; `await` works; Ctrl-D leaves."
    await asyncio.to_thread(console.interact, banner, "")
    return 0


class _Console(code.InteractiveConsole):
    """The standard console, in a thread. Coroutines run in the event loop of the database."""

    def __init__(self, names: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop = loop
        self._raised = False

    def run_source(self, source: str) -> bool:
        """False when it raised or is not valid Python; the error has been printed."""
        try:
            compiled = compile(source, "<-c>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except (SyntaxError, ValueError):
            self.showsyntaxerror("<-c>")
            return False
        self.runcode(compiled)
        return not self._raised

    def runcode(self, code: types.CodeType) -> None:
        try:
            result = types.FunctionType(code, self.locals)()
            if asyncio.iscoroutine(result):
                asyncio.run_coroutine_threadsafe(result, self._loop).result()
        except SystemExit:
            raise
        except BaseException:
            self._raised = True
            self.showtraceback()
