"""`ximler db`: create, check and seed the database."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ximler.cli import context
from ximler.cli.context import Run, connected, counted, database_options

if TYPE_CHECKING:
    from ximler.database.sync import Difference


@click.group()
def db() -> None:
    """Create, check and seed the database.

    Each command uses MONGODB_URI, else the embedded server: the running one, or one started for its own
    duration.
    """


@db.command()
@click.option("--repair", is_flag=True, help="Also rebuild changed indexes and replace changed validators.")
@connected(json="Print the remaining differences as JSON.")
async def init(run: Run, repair: bool) -> int:
    """Create collections, validators, indexes and seeds.

    Safe to repeat, also by several processes at once. Nothing is dropped or rebuilt without --repair. Exit
    code 1: something still differs afterwards. Indexes of your own are listed, and are no failure.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ximler import setup
    from ximler.schema import CATALOGUE

    quiet = run.as_json or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("Collections and indexes", total=len(CATALOGUE))
        differences = await setup.initialise(run.database, repair=repair, progress=lambda _: bar.advance(task))
    _show(run, differences, "The database is ready.")
    return int(any(found.state != "extra" for found in differences))


@db.command()
@connected(json="Print the differences as JSON.")
async def status(run: Run) -> int:
    """List missing, extra and changed parts of the database.

    Exit code 0 when nothing differs, 1 when something does. Changes nothing.
    """
    from ximler import setup
    from ximler.database import sync

    await sync.check_version(run.database)
    differences = await setup.status(run.database)
    _show(run, differences, "The database is complete and unchanged.")
    return int(bool(differences))


@db.command()
@connected(json="Print the inserted names as JSON.")
async def seed(run: Run) -> None:
    """Insert default plans and sample coupons that are missing.

    An existing plan or coupon is left unchanged.
    """
    from ximler.billing.seeds import SEEDS
    from ximler.database import seeding

    seeded = await seeding.insert(run.database, SEEDS)
    lines = [f"{collection}: {', '.join(names) or 'nothing to insert'}" for collection, names in seeded.items()]
    run.show(seeded, "\n".join(lines))


@db.command()
@connected(json="Print the number of documents as JSON.")
async def adopt(run: Run) -> None:
    """Move the documents of `usages` into `usage`.

    A Mongoose model named Usage writes to `usages` unless it is bound to the collection `usage`. Safe to
    interrupt and repeat.
    """
    from ximler.database import sync

    moved = await sync.adopt(run.database)
    text = f"{counted(moved, 'document')} moved from usages to usage." if moved else "There is nothing to move."
    run.show({"moved": moved}, text)


@db.command()
@click.option("--dry-run", is_flag=True, help="Count the documents to change; change nothing.")
@connected(json="Print the migrations and counts as JSON.")
async def migrate(run: Run, dry_run: bool) -> None:
    """Apply the pending migrations of the data, in batches.

    Idempotent; safe to interrupt and to run concurrently. 'ximler up' runs those that are safe.
    """
    from ximler.database import migrating, sync
    from ximler.migrations import MIGRATIONS

    await sync.check_version(run.database)
    if dry_run:
        found = [
            {"name": each.name, "documents": count} for each, count in await migrating.plan(run.database, MIGRATIONS)
        ]
        lines = [f"{each['name']}: {each['documents']:,} documents to change" for each in found]
    else:

        def progress(migration: migrating.Migration, changed: int) -> None:
            if not run.as_json:
                click.echo(f"{migration.name}: {changed:,} documents changed", err=True)

        done = await migrating.migrate(run.database, MIGRATIONS, progress=progress)
        found = [{"name": each.name, "documents": each.changed, "remaining": each.remaining} for each in done]
        lines = [f"{each.name}: finished, {each.changed:,} documents changed" for each in done]
    run.show({"migrations": found}, "\n".join(lines) or "There is nothing to migrate.")


@db.command()
@click.option("--dry-run", is_flag=True, help="Count the nulls; change nothing.")
@connected(json="Print the counts as JSON.")
async def repair(run: Run, dry_run: bool) -> None:
    """Remove nulls of other applications that stop updates.

    A null in place of a sub-document, list or number reads as the default, but MongoDB does not update
    through it. Scans the collections; safe to repeat.
    """
    from ximler.database.repair import remove_nulls

    found = await remove_nulls(run.database, dry_run=dry_run)
    lines = [f"{path}: {count:,} {'found' if dry_run else 'removed'}" for path, count in found.items()]
    run.show({"nulls": found, "removed": not dry_run}, "\n".join(lines) or "There are no nulls to remove.")


@db.command()
@click.option("--apply", is_flag=True, help="Create or update them, as an administrator.")
@click.option("--json", "as_json", is_flag=True, help="Print the roles as JSON.")
@database_options
def roles(apply: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Print or create the roles for a MongoDB of your own. The application's role can only append to the
    audit log.

    ximlerApplication is for Ximler itself (MONGODB_URI), ximlerAuditMaintenance for erasing and pruning
    (XIMLER_AUDIT_MONGODB_URI). Run 'ximler db init' as an administrator first, and both again after an
    upgrade.
    """
    from ximler.audit import roles as definitions

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


@db.command("shard-plan")
@click.option("--database", "name", default="ximler", show_default=True, help="The database's name.")
@click.option("--json", "as_json", is_flag=True, help="Print each collection's key and reason as JSON.")
def shard_plan(name: str, as_json: bool) -> None:
    """Print mongosh commands that shard the collections of a cluster. Nothing is changed."""
    from ximler.database import sharding

    if as_json:
        context.print_json({"items": msgspec.to_builtins(sharding.placements()), "next": None})
    else:
        click.echo(sharding.commands(name), nl=False)


def _show(run: Run, differences: "list[Difference]", complete: str) -> None:
    run.show_list(
        differences,
        row=msgspec.to_builtins,
        columns={
            "Collection": lambda found: found.collection,
            "Part": lambda found: found.what,
            "Name": lambda found: found.name,
            "State": lambda found: found.state,
            "Remedy": lambda found: found.remedy,
        },
        empty=complete,
    )
