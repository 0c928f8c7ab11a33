"""`ximler usage`: what is used, for operators."""

import click

from ximler.cli.usage_import import import_events


@click.group()
def usage() -> None:
    """Record usage."""


usage.add_command(import_events)
