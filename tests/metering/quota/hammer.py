"""A process that hammers a quota:
`python hammer.py URI DATABASE USER_ID TASKS PATIENCE_S VALID_S SKEW_S OFFSET_MS`.

It writes a byte 1 for every call that was served, before it asks for the next, so that what a killed process
served is known. It ends when nothing was served for PATIENCE_S; its own clock is wrong by SKEW_S, and
everybody's ahead by OFFSET_MS.
"""

import asyncio
import os
import sys
import time
from datetime import timedelta

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, Unavailable
from ximler.database import connect
from ximler.database.changes import Feed
from ximler.metering.quota.meter import Meter
from ximler.metering.quota.reaping import Reaper


async def main(uri: str, name: str, user_id: str, tasks: int, seconds: float, valid_s: float, offset_ms: int) -> None:
    database = await connect(uri, name=name)
    database.clock.offset_ms = offset_ms
    valid_for = timedelta(seconds=valid_s)
    feed = Feed(database)
    meter = Meter(database, valid_for=valid_for, feed=feed)
    stop = asyncio.Event()
    running = [
        asyncio.create_task(feed.run(stop)),
        asyncio.create_task(meter.run(stop)),
        asyncio.create_task(Reaper(database, valid_for=valid_for).run(stop)),
    ]
    actor = Actor(kind="user", via="session", user_id=ObjectId(user_id))
    latest = time.monotonic()

    async def hammer() -> None:
        nonlocal latest
        while time.monotonic() - latest < seconds:
            try:
                await meter.consume(actor)
            except LimitExceeded:
                await asyncio.sleep(0.05)
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                latest = time.monotonic()
                os.write(1, b"\x01")  # unbuffered: it is said before anything else happens
                await asyncio.sleep(0)

    await asyncio.gather(*(hammer() for _ in range(tasks)))
    stop.set()
    await asyncio.gather(*running)
    await meter.close()
    await database.close()


if __name__ == "__main__":
    uri, name, user_id, tasks, seconds, valid_s, skew_s, offset_ms = sys.argv[1:]
    if float(skew_s):  # this machine's clock is wrong
        now, shift = time.time_ns, int(float(skew_s) * 1e9)
        time.time_ns = lambda: now() + shift
    asyncio.run(main(uri, name, user_id, int(tasks), float(seconds), float(valid_s), int(offset_ms)))
