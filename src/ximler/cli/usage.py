"""`ximler usage`: usage and limits, for operators."""

import click

from ximler.cli.usage_import import import_events
from ximler.cli.usage_quotas import forgive, override, rebuild, show


@click.group()
def usage() -> None:
    """Show, limit, record and correct usage."""


for command in (show, override, rebuild, forgive, import_events):
    usage.add_command(command)
