"""Gauges of an earlier release do not count what is in the trash."""

import asyncio

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database, migrating
from ximler.metering import corrections
from ximler.metering.ledger import changes
from ximler.migrations import m0003_trash
from ximler.migrations.m0003_trash import MIGRATION
from ximler.projects import projects, trash
from ximler.schema.gauge import GAUGES
from ximler.schema.meta import META
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")


async def customer(database: Database, *, deleted: int, kept: int = 0) -> Actor:
    """With projects of the size of 10, as the earlier release left them:
    it released the bytes of deleted ones."""
    user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
    actor = Actor(kind="user", via="session", user_id=user.id)
    for _ in range(kept):
        await projects.create(database, actor, name="kept")
    for _ in range(deleted):
        made = await projects.create(database, actor, name="deleted")
        await projects.delete(database, actor, made.id)
    hour = next(iter((await database[GAUGES].get(user.id)).hours))
    released = {"storageBytes": -10 * deleted, f"hours.{hour}.storage": -10 * deleted}
    await database.raw["gauges"].update_one({"_id": user.id}, {"$inc": released})
    return actor


@pytest.mark.slow
async def test_gauges_and_ledger_of_users_with_deleted_projects_are_counted_again_once(database: Database) -> None:
    some = [await customer(database, deleted=n % 3, kept=1) for n in range(12)]
    await database.raw["users"].insert_one({"_id": (silent := ObjectId()), "name": "n", "email": "n", "password": "-"})
    gone = {"userId": silent, "name": "theirs", "storageSize": 5, "deletedAt": database.clock.now()}
    await database.raw["projects"].insert_one(gone)  # of a user without a gauge: counted when there is one
    await changes.settle(database)
    await database[META].patch({"_id": "schema"}, {"$set": {"version": 2}})
    assert await migrating.plan(database, [MIGRATION]) == [(MIGRATION, 8)]
    outcomes = await asyncio.gather(*(migrating.migrate(database, [MIGRATION]) for _ in range(2)))
    assert [(each.changed, each.remaining) for outcome in outcomes for each in outcome] == [(8, 0)]
    await changes.settle(database)
    for n, actor in enumerate(some):
        assert actor.user_id is not None
        gauge = await database[GAUGES].get(actor.user_id)
        assert (gauge.projects, gauge.storage_bytes) == (1, 10 + 10 * (n % 3))
        assert await corrections.rebuild(database, OPERATOR, actor.user_id) == []
        await trash.empty(database, actor)
        assert (await database[GAUGES].get(actor.user_id)).storage_bytes == 10
    assert await database[GAUGES].find_one({"_id": silent}) is None


@pytest.mark.slow
async def test_more_gauges_than_a_batch_are_looked_at(database: Database) -> None:
    now = database.clock.now()
    ids = [ObjectId() for _ in range(250)]
    await database.raw["gauges"].insert_many(
        [{"_id": each, "projects": 0, "storageBytes": 0, "createdAt": now, "updatedAt": now} for each in ids]
    )
    await database.raw["projects"].insert_many(
        [{"userId": each, "name": "n", "storageSize": 7, "deletedAt": now} for each in ids[::50]]
    )
    assert await m0003_trash.MIGRATION.count(database) == 5
    await database[META].patch({"_id": "schema"}, {"$set": {"version": 2}})
    await migrating.migrate(database, [MIGRATION])
    assert await database.raw["gauges"].count_documents({"storageBytes": 7}) == 5
