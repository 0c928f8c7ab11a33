"""Migrates until it is done: `python -m tests.database.migrator URI DATABASE`.
Says when it is inside a batch."""

import asyncio
import sys
from datetime import timedelta
from typing import Any

from ximler.core import logs
from ximler.core.settings import Settings
from ximler.database import Database, connect, migrating

TTL = timedelta(seconds=2)
BATCH = 25


async def batch(transaction: Database, place: dict[str, Any]) -> migrating.Step:
    """Add one to each document: one that is changed twice shows it."""
    where = {"_id": {"$gt": place.get("after", -1)}}
    things, session = transaction.raw["things"], transaction.session
    found = await things.find(where, session=session).sort("_id", 1).limit(BATCH).to_list()
    ids = [raw["_id"] for raw in found]
    await things.update_many({"_id": {"$in": ids}}, {"$inc": {"changed": 1}}, session=session)
    print("inside", flush=True)
    await asyncio.sleep(0.02)
    return migrating.Step(len(ids), {"after": ids[-1]} if len(ids) == BATCH else None)


async def count(database: Database) -> int:
    return await database.raw["things"].count_documents({"changed": {"$ne": 1}})


MIGRATION = migrating.Migration(version=2, name="0002_things", safe=False, count=count, batch=batch)


async def main(uri: str, name: str) -> None:
    logs.configure(Settings(log_level="error"))
    database = await connect(uri, name=name)
    for outcome in await migrating.migrate(database, [MIGRATION], ttl=TTL):
        print("finished", outcome.changed, outcome.remaining, flush=True)
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
