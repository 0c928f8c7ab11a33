"""Sum the days of recurring revenue again, because reports read the sums of months,
which earlier releases did not write."""

from typing import Any

from ximler.analytics import rollups
from ximler.database import Database
from ximler.database.migrating import Migration, Step

__all__ = ["MIGRATION"]


async def _batch(transaction: Database, place: dict[str, Any]) -> Step:  # noqa: ARG001 (of every migration)
    return Step(await rollups.mark_all(transaction), None)


async def _count(database: Database) -> int:
    return await rollups.unsummed(database)


MIGRATION = Migration(version=5, name="0005_revenue_months", safe=True, count=_count, batch=_batch)
