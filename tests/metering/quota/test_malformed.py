"""Quotas, plans and subscriptions that another application wrote with values of
wrong types stop nothing but themselves."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.metering.conftest import Subscribe
from tests.metering.quota.spending import quota

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering.limits import entitlements
from ximler.metering.quota import leases
from ximler.metering.quota.meter import Meter
from ximler.metering.quota.reaping import Reaper
from ximler.schema.user import User

PATIENCE = timedelta(milliseconds=300)
WRONG: list[Any] = ["x", 5, 1.5, True, None, [], ["x"], {}, {"x": {}}]
PATHS = (
    "leases", "leases.ID", "leases.ID.n", "leases.ID.seq", "leases.ID.grants", "leases.ID.at", "holders", "steps", "hours",
    "hours.HOUR", "detail", "detail.HOUR", "granted", "settled", "forfeited", "ingested", "foreign", "limit", "limitUntil",
    "limitThen", "planId", "userId", "periodEnd", "opened", "superseded", "lookAt", "alerted", "updatedAt",
)  # fmt: skip


async def crowd(database: Database, count: int) -> list[Actor]:
    users = [
        await database.users.insert(User(name="n", email=f"{ObjectId()}@example.com", password="-"))
        for _ in range(count)
    ]
    return [Actor(kind="user", via="session", user_id=user.id) for user in users]


async def spoil(database: Database, people: list[Actor], turn: int) -> None:
    """Each one's quota in another place."""
    for number, (person, path) in enumerate(zip(people, PATHS, strict=True)):
        value = WRONG[(number + turn) % len(WRONG)]
        document = await quota(database, person)
        (lease_id,) = document["leases"]
        (hour,) = document["hours"] or ["h1"]
        where = path.replace("ID", lease_id).replace("HOUR", hour)
        await database.raw["quotas"].update_one(
            {"_id": document["_id"]}, {"$set": {where: value}}, bypass_document_validation=True
        )


# In nine turns, every path gets every value.
@pytest.mark.parametrize("turn", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, len(WRONG)))])
async def test_a_damaged_quota_does_not_block_reports_returns_or_forfeitures_of_others(
    database: Database, person: Actor, turn: int
) -> None:
    people = await crowd(database, len(PATHS))
    meter, reaper = Meter(database, valid_for=PATIENCE), Reaper(database, valid_for=PATIENCE)
    await asyncio.gather(*(meter.consume(one) for one in [*people, person]))
    await meter.sweep()
    await asyncio.gather(*(meter.consume(one) for one in [*people, person]))
    await spoil(database, people, turn)
    await meter.sweep()
    document = await quota(database, person)
    assert document["settled"] == 2
    tally = meter._tallies[person.user_id]  # type: ignore[index]
    tally.give_up()
    await meter.sweep()
    assert (await quota(database, person))["leases"] == {}

    await meter.consume(person)
    await leases.adopt(database)
    async with asyncio.timeout(20):
        while not (await quota(database, person))["forfeited"]:
            await reaper.reap()
            await asyncio.sleep(0.05)
    assert (await quota(database, person))["leases"] == {}


@pytest.mark.slow
async def test_invalid_plans_and_subscriptions_do_not_block_new_limits_of_others(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    values = [value for value in WRONG if value != ["x"]]  # the index on plan ids takes it for "x"
    people = await crowd(database, len(values))
    for one in [*people, person]:
        await entitlements.open_quota(database, one.user_id, database.clock.now())  # type: ignore[arg-type]
        await subscribe(one, "pro", start_date=database.clock.now().replace(day=1))
    for one, value in zip(people, values, strict=True):
        await database.raw["subscriptions"].update_one(
            {"userId": one.user_id}, {"$set": {"planId": value, "startDate": value}}, bypass_document_validation=True
        )
        plan = {"name": value, "limits": value} | ({} if value is None else {"id": value})
        await database.raw["plans"].insert_one(plan, bypass_document_validation=True)
    await entitlements.heal_all(database)
    assert (await quota(database, person))["limit"] == 100_000
