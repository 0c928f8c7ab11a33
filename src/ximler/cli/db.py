"""`ximler db`: create, check and seed the database."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ximler.cli import context
from ximler.cli.context import database_options

if TYPE_CHECKING:
    from ximler.database.sync import Difference


@click.group()
def db() -> None:
    """Create, check and seed the database.

    Each command uses MONGODB_URI, else the embedded server: the running one, or one started for its own duration.
    """


@db.command()
@click.option("--repair", is_flag=True, help="Also rebuild changed indexes and replace changed validators.")
@click.option("--json", "as_json", is_flag=True, help="Print what still differs as JSON.")
@database_options
def init(repair: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> int:
    """Make collections, validators, indexes and seeds.

    Can be run again at any time, also by several processes at once. Nothing is dropped or rebuilt without --repair. Exit code 1
    when something still differs afterwards; an index of your own is shown, and is no failure.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ximler.database import sync
    from ximler.schema import CATALOGUE

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> list[sync.Difference]:
        async with context.database(settings) as database:
            with Progress(
                console=Console(stderr=True), transient=True, disable=as_json or not sys.stderr.isatty()
            ) as bar:
                task = bar.add_task("Collections and indexes", total=len(CATALOGUE))
                return await sync.initialise(database, repair=repair, progress=lambda _: bar.advance(task))

    differences = context.run(work())
    _report(differences, as_json, "The database is ready.")
    return int(any(found.state != "extra" for found in differences))


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@database_options
def status(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> int:
    """Say what is missing, extra or changed in the database.

    Exit code 0 when nothing differs, 1 when something does. Changes nothing.
    """
    from ximler.database import sync

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> list[sync.Difference]:
        async with context.database(settings) as database:
            await sync.check_version(database)
            return await sync.status(database)

    return _report(context.run(work()), as_json, "The database is as it should be.")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print what was inserted as JSON.")
@database_options
def seed(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Insert the default plans and sample coupons that are not there.

    A plan or coupon that exists stays exactly as it is.
    """
    from ximler.database import seeds

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> dict[str, list[str]]:
        async with context.database(settings) as database:
            return await seeds.plant(database)

    planted = context.run(work())
    if as_json:
        context.print_json(planted)
        return
    for collection, names in planted.items():
        click.echo(f"{collection}: {', '.join(names) if names else 'nothing to insert'}")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print the number of documents as JSON.")
@database_options
def adopt(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Move the documents of `usages` into `usage`.

    A Mongoose model named Usage writes to `usages` unless it is bound to the collection `usage`. Safe to interrupt and repeat.
    """
    from ximler.database import sync

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)

    async def work() -> int:
        async with context.database(settings) as database:
            return await sync.adopt(database)

    moved = context.run(work())
    if as_json:
        context.print_json({"moved": moved})
    else:
        click.echo(f"{moved} documents moved from usages to usage." if moved else "There is nothing to move.")


@db.command()
@click.option("--apply", is_flag=True, help="Make them, or bring them up to date, as an administrator.")
@click.option("--json", "as_json", is_flag=True, help="Print the roles as JSON.")
@database_options
def roles(apply: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Print or make the roles for a MongoDB of your own: with the application's, the audit log can only be appended to.

    ximlerApplication is for Ximler itself (MONGODB_URI), ximlerAuditMaintenance for erasing and pruning
    (XIMLER_AUDIT_MONGODB_URI).
    Run 'ximler db init' as an administrator first, and both again after an upgrade.
    """
    from ximler.database import roles as definitions

    settings = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    if apply:

        async def work() -> list[str]:
            async with context.database(settings) as database:
                return await definitions.create(database)

        made = context.run(work())
        if as_json:
            context.print_json({"made": made})
        else:
            click.echo(f"{' and '.join(made)} are in the database {settings.database_name!r}.")
        return
    found = definitions.definitions(settings.database_name)
    if as_json:
        context.print_json(found)
        return
    click.echo(f"use {settings.database_name}")
    for role, privileges in found.items():
        document = msgspec.json.encode({"role": role, "privileges": privileges, "roles": []}).decode()
        click.echo(f"db.createRole({document})")


@db.command()
def docs() -> None:
    """Print the reference of collections, fields and indexes (docs/schema.md)."""
    from ximler.database.describe import markdown

    click.echo(markdown(), nl=False)


def _report(differences: "list[Difference]", as_json: bool, fine: str) -> int:
    if as_json:
        context.print_json({"differences": differences})
    elif not differences:
        click.echo(fine)
    else:
        context.print_table(
            ("Collection", "What", "Name", "State", "Remedy"),
            [(found.collection, found.what, found.name, found.state, found.remedy) for found in differences],
        )
    return 1 if differences else 0
