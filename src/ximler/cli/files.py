"""Files that commands write, by one rule: only their owner can read them, they appear once they are complete,
and an existing one is replaced with `--force` only.

    @output_option
    @connected()
    async def export(run: Run, output: Output) -> None:
        with output.opened() as file: ...
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from ximler.core.errors import Unavailable

__all__ = ["Output", "output_argument", "output_option"]

_FORCE = "ximler.cli.files.force"

F = TypeVar("F", bound=Callable[..., Any])


class NotWritten(Unavailable):
    code = "FILE_NOT_WRITTEN"


class Output:
    """Where a command writes: a file, or standard output where `path` is None."""

    def __init__(self, path: Path | None, *, replace: bool = False) -> None:
        self.path = path
        self._replace = replace

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file to write, in a folder that exists.
        Its name appears when the block ends without an exception.

        Devices and pipes are written to as they are. Raises NotWritten.
        """
        if self.path is None:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        try:
            with self._plain(self.path) if _is_device(self.path) else self._whole(self.path) as file:
                yield file
        except BrokenPipeError:
            raise
        except FileExistsError:
            raise NotWritten(f"{self.path} exists since a moment ago: choose another name, or give --force") from None
        except OSError as problem:
            raise NotWritten(f"{self.path} was not written: {problem.strerror or problem}") from None

    @staticmethod
    @contextmanager
    def _plain(path: Path) -> Iterator[BinaryIO]:
        with path.open("wb") as file:
            yield file

    @contextmanager
    def _whole(self, path: Path) -> Iterator[BinaryIO]:
        try:
            # Without a name, so that a killed process leaves no file.
            handle, partial = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600), None
        except (AttributeError, OSError):  # not Linux, or unsupported by the file system
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with the same mode
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if partial is None:
                    name = str(path)
                    if self._replace:
                        name = partial = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
                    os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=0)  # `src_dir_fd`: follow the link
            if partial is None:
                return
            if self._replace:
                Path(partial).replace(path)
            else:
                _rename(Path(partial), path)
        finally:
            if partial is not None:
                Path(partial).unlink(missing_ok=True)


def output_option(command: F) -> F:
    """`-o FILE` and `--force`. Without `-o`, or with `-`, the command writes to standard output."""
    option = click.option(
        "-o", "--output", metavar="FILE", default="-", callback=_checked,
        help="A new file, readable by you alone.  [default: standard output]",
    )  # fmt: skip
    return option(_force(command))


def output_argument(command: F) -> F:
    """The argument FILE, and `--force`."""
    return click.argument("output", metavar="FILE", callback=_checked)(_force(command))


def _force(command: F) -> F:
    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_FORCE] = value

    return click.option(
        "--force", is_flag=True, is_eager=True, expose_value=False, callback=keep, help="Replace an existing FILE."
    )(command)


def _checked(ctx: click.Context, param: click.Parameter, value: str) -> Output:
    """The output, before anything is read: of an existing file, or in no folder, it is a usage error."""
    if value == "-":
        if isinstance(param, click.Argument) and sys.stdout.isatty():
            raise click.BadParameter("a terminal cannot show an archive: name a file, or use a pipe", ctx, param)
        return Output(None)
    path, replace = Path(value), bool(ctx.meta[_FORCE])
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder", ctx, param)
    if not path.parent.is_dir():
        raise click.BadParameter(f"the folder {path.parent} does not exist", ctx, param)
    if os.path.lexists(path) and not replace and not _is_device(path):
        raise click.BadParameter(f"{path} exists already: choose another name, or give --force", ctx, param)
    return Output(path.resolve() if path.is_file() else path, replace=replace)


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _rename(partial: Path, path: Path) -> None:
    """Give the file its name. Raises FileExistsError if another has taken it."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with path.open("x"):
            pass
        partial.replace(path)
