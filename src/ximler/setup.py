"""Brings a database up to date: collections, validators, indexes, and the seeds of the domains."""

from collections.abc import Callable

from ximler.billing.seeds import SEEDS
from ximler.database import Database, sync
from ximler.database.sync import Difference

__all__ = ["initialise", "status"]


async def initialise(
    database: Database, *, repair: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[Difference]:
    """Create everything that is missing; returns what still differs. See `sync.initialise`."""
    return await sync.initialise(database, seeds=SEEDS, repair=repair, progress=progress)


async def status(database: Database) -> list[Difference]:
    """Every difference between the database and this version of Ximler. Reads only."""
    return await sync.status(database, seeds=SEEDS)
