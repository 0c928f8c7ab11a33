"""`ximler secrets`: what is encrypted under the secret key, for operators."""

from pathlib import Path
from typing import Any

import click

from ximler.cli import context
from ximler.cli.context import database_options
from ximler.core.actor import Actor


@click.group()
def secrets() -> None:
    """Move what is encrypted to a new secret key."""


@secrets.command()
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@database_options
def renew(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Encrypt second factors under the newest key.

    To rotate: prepend a new key to XIMLER_SECRET_KEY (new,old) everywhere, run this, then take the old key away. Sessions and
    links that the old key made end with it. Exits with 1 where something is encrypted under a key that is not given.
    """
    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri).with_secret()

    async def work() -> Any:
        from ximler.accounts import second_factor
        from ximler.accounts.keyring import Keyring

        keyring = Keyring(settings)
        try:
            async with context.database(settings) as database:
                return await second_factor.renew_secrets(database, keyring, Actor(kind="operator", via="cli"))
        finally:
            keyring.close()

    done = context.run(work())
    if as_json:
        context.print_json({"renewed": done.renewed, "lost": done.lost})
    else:
        click.echo(f"Secrets that are under the newest key now: {done.renewed}.")
        if done.lost:
            click.echo(f"Secrets that no key given here reads: {done.lost}. Add the key they were made with.", err=True)
    if done.lost:
        click.get_current_context().exit(1)
