"""The meter, in one process and in several: never one unit over, none stranded, each counted once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.metering.conftest import Subscribe

from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Invalid, LimitExceeded, Unauthenticated, Unavailable
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering import entitlements
from ximler.metering.meter import Meter

Ledger = list[dict[str, Any]]


async def quota(database: Database, actor: Actor) -> dict[str, Any]:
    found = await database.raw["quotas"].find({"userId": actor.user_id}).sort("periodStart", -1).to_list()
    return found[0]


async def ledger(database: Database, actor: Actor) -> Ledger:
    return await database.raw["usage"].find({"userId": actor.user_id}).sort("periodStart", 1).to_list()


def balanced(document: dict[str, Any]) -> bool:
    held = sum(lease["n"] for lease in document["leases"].values())
    return document["granted"] == document["settled"] + document["forfeited"] + held


async def spend(meter: Meter, actor: Actor, times: int, **more: Any) -> int:
    """How many of so many calls were served."""
    served = 0
    for _ in range(times):
        try:
            await meter.consume(actor, **more)
            served += 1
        except LimitExceeded:
            break
    return served


@pytest.fixture
async def meter(database: Database) -> AsyncIterator[Meter]:
    meter = Meter(database)
    yield meter
    await meter.close()


async def test_exactly_the_limit_is_served_and_accounted_for(database: Database, person: Actor, meter: Meter) -> None:
    assert await spend(meter, person, 1100) == 1000
    with pytest.raises(LimitExceeded, match="1,000 API calls") as refused:
        await meter.consume(person)
    assert refused.value.code == "QUOTA_EXCEEDED"
    await meter.close()
    document = await quota(database, person)
    assert (document["granted"], document["settled"], document["leases"]) == (1000, 1000, {})
    assert sum(row["amount"] for row in await ledger(database, person)) == 1000
