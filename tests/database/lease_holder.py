"""A process that holds a lease and reports its work under it: `lease_holder.py URI DATABASE TTL_MS`."""

import asyncio
import contextlib
import sys
from datetime import timedelta

from ximler.core import logs
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.database import connect, leases


async def work(uri: str, name: str, ttl: timedelta) -> None:
    database = await connect(uri, name=name)
    async with leases.hold(database, "work", stop=asyncio.Event(), ttl=ttl) as lease:
        assert lease is not None
        print("held", lease.fence, flush=True)

        async def act(transaction):
            await lease.guard(transaction)
            await transaction.raw["acts"].insert_one({"fence": lease.fence}, session=transaction.session)

        with contextlib.suppress(leases.LeaseLost):  # by the server's word, where that comes before our own clock's
            while not await pause(lease.ended, 0.01):
                await database.transaction(act)
    print("lost", flush=True)
    await database.close()


logs.configure(Settings())
asyncio.run(work(sys.argv[1], sys.argv[2], timedelta(milliseconds=int(sys.argv[3]))))
