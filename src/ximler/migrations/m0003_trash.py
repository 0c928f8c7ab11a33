"""Count the bytes of deleted projects in their owners' gauges: they count until the projects are purged."""

from typing import Any

from ximler.database import Database
from ximler.database.migrating import Migration, Step
from ximler.metering.quota import gauges

__all__ = ["MIGRATION"]

_BATCH = 100


async def _batch(transaction: Database, place: dict[str, Any]) -> Step:
    wrong, last = await gauges.miscounted(transaction, after=place.get("after"), limit=_BATCH)
    for user_id in wrong:
        await gauges.recount(transaction, user_id)
    return Step(len(wrong), None if last is None else {"after": last})


async def _count(database: Database) -> int:
    count, last = 0, None
    while True:
        wrong, last = await gauges.miscounted(database, after=last, limit=_BATCH)
        if last is None:
            return count
        count += len(wrong)


MIGRATION = Migration(version=3, name="0003_trash", safe=True, count=_count, batch=_batch)
