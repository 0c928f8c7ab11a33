"""Brings a database up to date: collections, validators, indexes, the seeds of the domains, and safe
migrations.
"""

from collections.abc import Callable

from ximler.billing.seeds import SEEDS
from ximler.database import Database, migrating, sync
from ximler.database.sync import Difference, SchemaNotReady
from ximler.migrations import MIGRATIONS

__all__ = ["initialise", "status"]


async def initialise(
    database: Database, *, repair: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[Difference]:
    """Create missing parts and run the safe migrations; returns the remaining differences. See
    `sync.initialise`.

    Raises SchemaNotReady if an operator must start a migration.
    """
    differences = await sync.initialise(database, seeds=SEEDS, repair=repair, progress=progress)
    if pending := await migrating.pending(database, MIGRATIONS):
        if unsafe := [each.name for each in pending if not each.safe]:
            raise SchemaNotReady(
                f"The database {database.name!r} needs the migration {unsafe[0]}: run 'ximler db migrate' "
                "('--dry-run' counts what it changes)"
            )
        await migrating.migrate(database, pending)
    return differences


async def status(database: Database) -> list[Difference]:
    """Every difference between the database and this version of Ximler. Reads only."""
    return await sync.status(database, seeds=SEEDS)
