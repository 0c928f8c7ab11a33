"""`ximler`: the entry point, the list of commands, and how errors leave the process.

Exit codes: 0: done, 1: a check failed or something differs (`db status`), 2: usage or invalid input, 3:
unauthenticated, 4: forbidden, 5: not found, 6: conflict, 7: limit exceeded, 8: unavailable (database, port,
embedded server, a full disk), 70: internal error, 130: interrupted, or a prompt was declined.
"""

import errno
import os
import sys
from importlib import import_module
from typing import Any

import click

from ximler import __version__
from ximler.core.errors import (
    Conflict,
    Forbidden,
    Invalid,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unavailable,
    XimlerError,
)

__all__ = ["cli", "main", "report"]

_EXIT_CODES: dict[type[XimlerError], int] = {
    Invalid: 2,
    Unauthenticated: 3,
    Forbidden: 4,
    NotFound: 5,
    Conflict: 6,
    LimitExceeded: 7,
    Unavailable: 8,
}
_BUG = 70
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# name → (module, attribute, line in the help): listed here, so that the help needs no imports.
_COMMANDS = {
    "up": ("ximler.cli.up", "up", "Start Ximler, with its database unless MONGODB_URI is set."),
    "doctor": ("ximler.cli.doctor", "doctor", "Check settings, database, mail, keys and disk, with remedies."),
    "demo": ("ximler.cli.demo", "demo", "Make an account with a history to look at, beside your data."),
    "db": ("ximler.cli.db", "db", "Create, check and seed the database."),
    "worker": ("ximler.cli.worker", "worker", "Run jobs (mail, …) apart from `ximler up`."),
    "jobs": ("ximler.cli.jobs", "jobs", "List, retry and cancel jobs."),
    "users": ("ximler.cli.users", "users", "Create, find and lock accounts; grant roles."),
    "secrets": ("ximler.cli.secrets", "secrets", "Re-encrypt stored secrets with a new secret key."),
    "usage": ("ximler.cli.usage", "usage", "Show, limit, record and correct usage."),
    "billing": ("ximler.cli.billing", "billing", "Run due work, and manage users' refunds, credit and coupons."),
    "reports": ("ximler.cli.reports_customers", "reports", "Revenue, cash, usage, sign-ups and coupons."),
    "audit": ("ximler.cli.audit", "audit", "Verify, search, export and prune the audit log."),
    "keys": ("ximler.cli.keys", "keys", "Create, list, rotate and revoke API keys."),
    "projects": ("ximler.cli.projects", "projects", "List projects; export, import and restore canvases."),
    "shell": ("ximler.cli.shell", "shell", "Python with a connected database."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's signature)
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's signature)
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="ximler %(version)s")
def cli() -> None:
    """The complete backend of a canvas SaaS, on a real MongoDB.

    Settings come from the environment (XIMLER_…, MONGODB_URI) and from the TOML file that XIMLER_CONFIG
    names; the README lists them all. Every command explains itself with --help.
    """


def report(problem: XimlerError) -> int:
    """Print the error in one line; returns the exit code."""
    click.echo(f"error: {problem.message}", err=True)
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(problem, kind)), 1)


def _discard_output() -> None:
    """Prevent a second failure at the flush on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run a command. Errors become one line and an exit code; a traceback only with XIMLER_DEBUG=1."""
    try:
        result: Any = cli.main(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("aborted", err=True)
        code = 130
    except click.ClickException as problem:
        problem.show()
        code = problem.exit_code
    except XimlerError as problem:
        code = report(problem)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output (head, less) has ended: that is no error.
        _discard_output()
        code = 0
    except Exception as bug:
        if os.environ.get("XIMLER_DEBUG"):
            raise
        if isinstance(bug, OSError) and bug.errno in _FULL:
            _discard_output()
            sys.exit(report(Unavailable(f"The output was not written: {bug.strerror}")))
        click.echo(
            f"internal error: {type(bug).__name__}: {bug}\nThis is a bug. XIMLER_DEBUG=1 shows where it happened.",
            err=True,
        )
        code = _BUG
    sys.exit(code)
