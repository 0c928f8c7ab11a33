"""The trash: its bytes count, its places are free, and it is purged by its owner, by age,
or when it is too full."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound, Unauthenticated
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.database.outbox import SCHEDULES
from ximler.metering.reports.overview import overview
from ximler.projects import projects, trash
from ximler.schema.user import User

DAY_MS = 86_400_000


async def used(database: Database, actor: Actor) -> tuple[int, int]:
    """Projects and bytes, as the user sees them."""
    assert actor.user_id is not None
    shown = {each.resource: each.used for each in (await overview(database, actor, [actor.user_id]))[actor.user_id]}
    return shown["projects"], shown["storage"]


async def in_trash(database: Database, actor: Actor) -> list[ObjectId]:
    return [gone.id for gone in (await projects.deleted_page(database, actor)).items]


async def deleted(database: Database, actor: Actor, name: str = "n", **fields: Any) -> ObjectId:
    made = await projects.create(database, actor, name=name, **fields)
    await projects.delete(database, actor, made.id)
    return made.id


async def test_a_deleted_project_frees_its_place_and_keeps_its_bytes_until_it_is_purged(
    database: Database, ada: Actor
) -> None:
    made = await projects.create(database, ada, name="n", canvas_data={"a": "x" * 100})
    await projects.delete(database, ada, made.id)
    assert await used(database, ada) == (0, made.storage_size)
    assert await in_trash(database, ada) == [made.id]
    await trash.purge(database, ada, made.id)
    assert await used(database, ada) == (0, 0)
    assert await in_trash(database, ada) == []
    assert await database.raw["projects"].count_documents({}) == 0
    with pytest.raises(NotFound):
        await projects.restore(database, ada, made.id)
    (entry,) = await database.raw["auditlogs"].find({"action": "projects.project.purged"}).to_list()
    assert (entry["resourceId"], entry["userId"]) == (str(made.id), ada.user_id)
    assert entry["metadata"]["before"] == {"name": "n"}


async def test_only_deleted_projects_of_ones_own_are_purged(database: Database, ada: Actor, bob: Actor) -> None:
    kept = await projects.create(database, ada, name="kept")
    gone = await deleted(database, ada)
    for actor, project_id in ((ada, kept.id), (bob, gone), (bob, kept.id)):
        with pytest.raises(NotFound, match="No such deleted project"):
            await trash.purge(database, actor, project_id)
    assert await trash.empty(database, bob) == 0
    assert await in_trash(database, bob) == []
    for attempt in (trash.purge(database, Actor(), gone), trash.empty(database, Actor())):
        with pytest.raises(Unauthenticated):
            await attempt
    assert await trash.empty(database, ada) == 1
    assert [left.id for left in (await projects.page(database, ada)).items] == [kept.id]


async def test_the_trash_is_ordered_by_deletion(database: Database, ada: Actor) -> None:
    """Several were deleted at the same moment."""
    now = database.clock.now()
    raw = [
        {"userId": ada.user_id, "name": str(n), "createdAt": now, "deletedAt": now - timedelta(seconds=n // 3)}
        for n in range(11)
    ]
    await database.raw["projects"].insert_many(raw)
    by_deletion = sorted(raw, key=lambda each: (each["deletedAt"], each["_id"]), reverse=True)
    seen: list[ObjectId] = []
    after = None
    for _ in range(4):
        page = await projects.deleted_page(database, ada, first=3, after=after)
        seen += [gone.id for gone in page.items]
        assert page.end_cursor is not None
        after = decode_cursor(page.end_cursor)
    assert seen == [each["_id"] for each in by_deletion]
    assert not page.has_next
    with pytest.raises(Invalid):
        await projects.deleted_page(database, ada, first=0)


@pytest.mark.slow
async def test_the_trash_is_purged_after_thirty_days_and_no_earlier(database: Database, ada: Actor, bob: Actor) -> None:
    for actor in (ada, bob):
        await deleted(database, actor, canvas_data={"a": "x" * 50})
    database.clock.offset_ms += 29 * DAY_MS
    young = await deleted(database, ada)
    assert await trash.purge_expired(database=database) == 0
    database.clock.offset_ms += DAY_MS
    assert sum(await asyncio.gather(*(trash.purge_expired(database=database) for _ in range(3)))) == 2
    assert await in_trash(database, ada) == [young]
    assert await used(database, ada) == (0, 10)
    assert await used(database, bob) == (0, 0)
    purged = await database.audit_logs.find({"action": "projects.project.purged"})
    assert {entry.user_id for entry in purged} == {ada.user_id, bob.user_id}
    assert {entry.metadata["actor"] for entry in purged} == {"system"}


def test_purging_is_scheduled_daily() -> None:
    (schedule,) = [each for each in SCHEDULES if each.kind.name == "projects.purge"]
    assert schedule.interval == timedelta(days=1)


@pytest.mark.slow
async def test_more_than_a_batch_is_purged_once_by_two_at_a_time(database: Database, ada: Actor, bob: Actor) -> None:
    long_ago = database.clock.now() - timedelta(days=31)
    for actor, count in ((ada, 230), (bob, 120)):
        await database.raw["projects"].insert_many(
            [{"userId": actor.user_id, "name": str(n), "storageSize": 10, "deletedAt": long_ago} for n in range(count)]
        )
    counts = await asyncio.gather(
        trash.empty(database, ada), *(trash.purge_expired(database=database) for _ in range(2))
    )
    assert sum(counts) == 350
    assert await database.raw["auditlogs"].count_documents({"action": "projects.project.purged"}) == 350
    for actor in (ada, bob):
        assert await used(database, actor) == (0, 0)


async def test_the_trash_of_many_users_is_purged_together(database: Database, ada: Actor) -> None:
    people = [User(name="N", email=f"{n}@example.com", password="-") for n in range(10)]
    owners = [Actor(kind="user", user_id=(await database.users.insert(each)).id) for each in people]
    kept = []
    for owner in owners:
        for _ in range(3):
            await deleted(database, owner, canvas_data={"a": "x" * 50})
        kept.append((await projects.create(database, owner, name="kept")).id)
    await deleted(database, ada)  # alone in the next batch
    database.clock.offset_ms += 30 * DAY_MS
    with round_trips() as trips:
        assert await trash.purge_expired(database=database) == 31
    assert len(trips) < 60  # one by one: 160
    assert await database.raw["projects"].distinct("_id") == sorted(kept)
    assert await database.raw["auditlogs"].count_documents({"action": "projects.project.purged"}) == 31
    for owner in owners:
        assert await used(database, owner) == (1, 10)


async def test_a_purge_that_fails_in_between_changes_nothing(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = await deleted(database, ada, canvas_data={"a": "x" * 50})
    before = await used(database, ada)

    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(trash.gauges, "release", fail)
        with pytest.raises(RuntimeError):
            await trash.purge(database, ada, gone)
    assert await in_trash(database, ada) == [gone]
    assert await used(database, ada) == before


async def test_projects_that_another_application_wrote_badly_are_purged_too(database: Database, ada: Actor) -> None:
    long_ago = database.clock.now() - timedelta(days=31)
    await database.raw["projects"].insert_many(
        [
            {"userId": "somebody", "name": 5, "deletedAt": long_ago},
            {"name": {"$set": 1}, "deletedAt": long_ago},
            {"userId": ada.user_id, "name": ["n"], "storageSize": "large", "deletedAt": long_ago},
            # Its bytes cannot be released. The others are purged all the same.
            {"userId": (eve := ObjectId()), "storageSize": 5, "deletedAt": long_ago - timedelta(days=1)},
        ],
        bypass_document_validation=True,
    )
    await database.raw["gauges"].insert_one({"_id": eve, "storageBytes": "x"}, bypass_document_validation=True)
    assert await trash.purge_expired(database=database) == 3
    assert await database.raw["projects"].distinct("userId") == [eve]
    await database.raw["gauges"].delete_one({"_id": eve})
    assert await trash.purge_expired(database=database) == 1
    assert await used(database, ada) == (0, 0)


@pytest.mark.slow
async def test_creating_and_deleting_in_a_loop_keeps_a_bounded_trash(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "MOST", 5)
    gone = [await deleted(database, ada, description="x" * 5000) for _ in range(12)]
    assert await in_trash(database, ada) == gone[:6:-1]
    assert await database.raw["projects"].count_documents({}) == 5
    assert await used(database, ada) == (0, 50)
    made = [await projects.create(database, ada, name="n") for _ in range(3)]
    await asyncio.gather(*(projects.delete(database, ada, each.id) for each in made))
    assert set(await in_trash(database, ada)) == {*gone[-2:], *(each.id for each in made)}
    assert await used(database, ada) == (0, 50)
