"""`ximler secrets`: data that is encrypted under the secret key, for operators."""

import click

from ximler.cli.context import Run, connected, counted


@click.group()
def secrets() -> None:
    """Re-encrypt stored secrets with a new secret key."""


@secrets.command()
@connected(json="Print the counts as JSON.", secret=True)
async def renew(run: Run) -> int:
    """Encrypt second factors under the newest key.

    To rotate: prepend a new key to XIMLER_SECRET_KEY (new,old) everywhere, run this, then remove the old key.
    Sessions and links that were made with the old key end with it. Exit code 1: a secret is encrypted under a
    key that is not given.
    """
    from ximler.accounts import second_factor

    done = await second_factor.renew_secrets(run.database, run.keyring, run.actor)
    run.show(
        {"renewed": done.renewed, "lost": done.lost},
        f"{counted(done.renewed, 'secret')} encrypted under the newest key.",
    )
    if done.lost and not run.as_json:
        click.echo(
            f"{counted(done.lost, 'secret')} cannot be decrypted: add the key that encrypted them to XIMLER_SECRET_KEY.",
            err=True,
        )
    return int(bool(done.lost))
