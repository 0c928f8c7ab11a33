"""What the tests of quotas share: spending, and what the database has of it afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.database.following import end

from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded
from ximler.database import Database
from ximler.metering.quota.meter import Meter

OPERATOR = Actor(kind="operator", via="cli")
HOUR_MS = 3_600_000


async def quota(database: Database, actor: Actor) -> dict[str, Any]:
    """The newest."""
    found = await database.raw["quotas"].find({"userId": actor.user_id}).sort("periodStart", -1).to_list()
    return found[0]


async def rows(database: Database, actor: Actor) -> list[dict[str, Any]]:
    return await database.raw["usage"].find({"userId": actor.user_id}).sort("periodStart", 1).to_list()


def held(document: dict[str, Any]) -> int:
    return sum(lease["n"] for lease in document["leases"].values())


async def spend(meter: Meter, actor: Actor, times: int, **more: Any) -> int:
    """How many of so many calls were served before the first was refused."""
    for served in range(times):
        try:
            await meter.consume(actor, **more)
        except LimitExceeded:
            return served
    return times


async def spend_all(meter: Meter, actor: Actor) -> int:
    """Take all available units, in ever smaller amounts; returns how many."""
    served = 0
    for units in (1000, 300, 100, 30, 10, 3, 1):
        served += units * await spend(meter, actor, 10_000, units=units)
    return served


async def until(meter: Meter, actor: Actor, *, within_s: float) -> bool:
    """Whether a call is served within that time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if await spend(meter, actor, 1):
            return True
        await asyncio.sleep(0.02)
    return False


@asynccontextmanager
async def process(database: Database, **more: Any) -> AsyncIterator[Meter]:
    """A running meter, as in a separate process."""
    meter = Meter(database, **more)
    running = asyncio.create_task(meter.run(asyncio.Event()))
    try:
        yield meter
    finally:
        await end(running)
        await meter.close()


def grow_old(meter: Meter) -> None:
    """Simulate an idle period."""
    for tally in meter._all():
        tally.last_use -= 60
        tally.seen_at -= 2
