"""Makes and deletes projects, and settles, until killed:
`python -m tests.metering.ledger.maker URI DATABASE USER_ID`."""

import asyncio
import random
import sys

from bson import ObjectId

from ximler.core import logs
from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, NotFound, Unavailable
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.metering.ledger import changes
from ximler.projects import projects, trash


async def make(database: Database, actor: Actor) -> None:
    while True:
        made = await database.projects.find({"userId": actor.user_id}, deleted=True)
        try:
            if random.random() < 0.5 or not made:
                await projects.create(database, actor, name="n", canvas_data={"x": "y" * random.randrange(300)})
            elif (one := random.choice(made)).deleted_at is None:
                await projects.delete(database, actor, one.id)
            elif random.random() < 0.5:
                await projects.restore(database, actor, one.id)
            else:
                await trash.purge(database, actor, one.id)
        except (LimitExceeded, NotFound, Unavailable):
            await asyncio.sleep(0.01)


async def settle(database: Database) -> None:
    while True:
        await changes.settle(database)


async def main(uri: str, name: str, user_id: str) -> None:
    logs.configure(Settings(log_level="error"))  # to standard error
    database = await connect(uri, name=name)
    actor = Actor(kind="user", via="session", user_id=ObjectId(user_id))
    print("begun", flush=True)
    await asyncio.gather(make(database, actor), settle(database), make(database, actor))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
