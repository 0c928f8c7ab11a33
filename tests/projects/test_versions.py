"""Versions of canvases: kept, compared, restored, metered."""

import asyncio
import copy
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, LimitExceeded, NotFound
from ximler.core.settings import Settings
from ximler.core.stopping import end
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.metering.quota import gauges
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import canvas, contents, projects, storage, trash, versions
from ximler.projects.patches import Saver
from ximler.projects.projects import RevisionConflict
from ximler.projects.versions import Automatic, Due
from ximler.schema.asset import ASSETS, Asset
from ximler.schema.canvas_version import CANVAS_CONTENTS, CANVAS_VERSIONS

KEPT = Settings(canvas_versions=3)


async def _made(database: Database, actor: Actor, data: Any = None) -> ObjectId:
    return (await projects.create(database, actor, name="p", canvas_data={"a": 1} if data is None else data)).id


async def _names(database: Database, actor: Actor, project_id: ObjectId) -> list[str | None]:
    return [each.name for each in (await versions.page(database, actor, project_id)).items]


async def _expect_exact(database: Database, actor: Actor) -> int:
    """The gauge has the bytes of settings, canvases and versions; returns those of versions."""
    contents = await database[CANVAS_CONTENTS].aggregate(
        [{"$group": {"_id": None, "bytes": {"$sum": {"$binarySize": "$data"}}}}]
    )
    total: int = contents[0]["bytes"] if contents else 0
    expected = total
    async for raw in database.raw["projects"].find({"userId": actor.user_id}):
        apart = raw["canvasData"] is None
        expected += raw["canvasBase"]["bytes"] if apart else len(bson.encode(raw["canvasData"]))
        expected += len(bson.encode(raw["settings"])) + raw.get("storageRoom", 0)
        expected += sum(len(bson.encode(raw[name])) for name in ("canvasLog", "canvasClients") if name in raw)
        expected += len(bson.encode({"v": raw["canvasTail"]})) - 8 if "canvasTail" in raw else 0
    gauge = await database.raw["gauges"].find_one({"_id": actor.user_id})
    assert gauge is not None
    assert gauge["storageBytes"] == expected
    was, now = await database.transaction(lambda t: gauges.recount(t, actor.require_user()))
    assert was.storage_bytes == now.storage_bytes
    return total


async def test_a_version_is_kept_compared_and_restored(database: Database, ada: Actor) -> None:
    project_id = await _made(database, ada, {"elements": [{"id": "a", "x": 1}]})
    first = await versions.create(database, ada, project_id, name=" first ")
    assert (first.name, first.pinned, first.automatic, first.revision) == ("first", True, False, 0)
    await canvas.replace(database, ada, project_id, {"elements": [{"id": "a", "x": 2}]}, based_on=None)
    second = await versions.create(database, ada, project_id)
    await canvas.replace(database, ada, project_id, {"elements": []}, based_on=None)

    assert await versions.content(database, ada, project_id, first.id) == {"elements": [{"id": "a", "x": 1}]}
    to_second = await versions.changes(database, ada, project_id, first.id, to=second.id)
    assert to_second == [{"op": "replace", "path": "/elements/0/x", "value": 2}]
    assert await versions.changes(database, ada, project_id, first.id) == [{"op": "remove", "path": "/elements/0"}]

    assert await versions.restore(database, ada, project_id, first.id) == 3
    assert (await canvas.read(database, ada, project_id)).canvas_data == {"elements": [{"id": "a", "x": 1}]}
    newest = (await versions.page(database, ada, project_id, first=1)).items[0]
    assert (newest.automatic, newest.revision) == (True, 2)
    assert await versions.content(database, ada, project_id, newest.id) == {"elements": []}
    assert await _expect_exact(database, ada)


async def test_a_restoration_over_a_base_fails_where_somebody_else_has_saved(database: Database, ada: Actor) -> None:
    project_id = await _made(database, ada)
    version = await versions.create(database, ada, project_id)
    await canvas.replace(database, ada, project_id, {"b": 1}, based_on=None)
    with pytest.raises(RevisionConflict):
        await versions.restore(database, ada, project_id, version.id, based_on=(0,))
    saves = [canvas.replace(database, ada, project_id, {"b": n}, based_on=None) for n in range(4)]
    await asyncio.gather(versions.restore(database, ada, project_id, version.id), *saves)
    await _expect_exact(database, ada)


@pytest.mark.slow
async def test_equal_content_is_stored_once_and_released_with_its_last_version(database: Database, ada: Actor) -> None:
    project_id = await _made(database, ada)
    made = await asyncio.gather(*(versions.create(database, ada, project_id) for _ in range(4)))
    assert await database[CANVAS_CONTENTS].count({}) == 1
    assert await _expect_exact(database, ada) == made[0].stored_bytes
    await asyncio.gather(*(versions.delete(database, ada, project_id, each.id) for each in made[:3]))
    assert await versions.content(database, ada, project_id, made[3].id) == {"a": 1}
    await asyncio.gather(
        versions.delete(database, ada, project_id, made[3].id), versions.create(database, ada, project_id)
    )
    left = (await versions.page(database, ada, project_id)).items[0]
    assert await versions.content(database, ada, project_id, left.id) == {"a": 1}
    await versions.delete(database, ada, project_id, left.id)
    assert await _expect_exact(database, ada) == 0
    with pytest.raises(NotFound):
        await versions.delete(database, ada, project_id, left.id)


@pytest.mark.slow
async def test_versions_are_differences_from_full_copies_which_stay_as_long_as_they_are_needed(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_MOST_USES", 4)
    chance = random.Random(1)
    shapes = [{"id": f"s{n}", "x": chance.random(), "seed": chance.getrandbits(60)} for n in range(300)]
    project_id, expected = await _made(database, ada, {"elements": shapes}), {}
    for n in range(11):
        shapes[n * 7]["x"] = n
        await canvas.replace(database, ada, project_id, {"elements": shapes}, based_on=None)
        kept = await versions.create(database, ada, project_id)
        expected[kept.id] = copy.deepcopy(shapes)
    stored = await database[CANVAS_CONTENTS].find({"projectId": project_id})
    full = [each.stored_bytes for each in stored if each.base is None]
    assert (len(full), len(stored)) == (3, 11)
    assert sum(each.stored_bytes for each in stored) < 1.2 * sum(full)
    assert await _expect_exact(database, ada)
    while expected:
        for version_id, shown in expected.items():
            assert await versions.content(database, ada, project_id, version_id) == {"elements": shown}
        for _ in range(min(4, len(expected))):
            gone = chance.choice(list(expected))
            del expected[gone]
            await versions.delete(database, ada, project_id, gone)
        assert bool(await _expect_exact(database, ada)) == bool(expected)


async def test_a_version_whose_full_copy_is_deleted_meanwhile_is_kept_whole(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"a": random.Random(1).randbytes(500).hex()}
    project_id = await _made(database, ada, data)
    first = await versions.create(database, ada, project_id)
    await canvas.replace(database, ada, project_id, data | {"b": 1}, based_on=None)
    packed = contents.packed

    async def and_then_deleted(*given: Any, **named: Any) -> Any:
        made = await packed(*given, **named)
        if not named:
            assert made.base is not None
            await versions.delete(database, ada, project_id, first.id)
        return made

    monkeypatch.setattr(contents, "packed", and_then_deleted)
    second = await versions.create(database, ada, project_id)
    assert await versions.content(database, ada, project_id, second.id) == data | {"b": 1}
    assert await _expect_exact(database, ada) == second.stored_bytes


async def test_a_version_lists_the_assets_that_it_shows(database: Database, ada: Actor) -> None:
    project_id = await _made(database, ada)
    fields = {"name": "a", "content_type": "image/png", "size_bytes": 1, "digest": b"d"}
    shown, hidden = [
        await database[ASSETS].insert(
            Asset(user_id=ada.require_user(), project_id=project_id, file_id=ObjectId(), **fields)  # type: ignore[arg-type]  # strict
        )
        for _ in "12"
    ]
    link = f"/v1/projects/{project_id}/assets/{shown.id}"
    data = {"elements": [{"link": link}], "other": [str(hidden.id)[:-1], str(ObjectId())]}
    await canvas.replace(database, ada, project_id, data, based_on=None)
    assert (await versions.create(database, ada, project_id)).assets == [shown.id]


async def test_a_save_keeps_the_bytes_of_versions_and_the_trash_counts_them(database: Database, ada: Actor) -> None:
    project_id = await _made(database, ada)
    await versions.create(database, ada, project_id)
    await canvas.replace(database, ada, project_id, {"b": "x" * 500}, based_on=None)
    assert await _expect_exact(database, ada)
    await storage.resize(database, ada.require_user(), project_id, room=700)
    await versions.create(database, ada, project_id)
    assert await _expect_exact(database, ada)
    await projects.delete(database, ada, project_id)
    assert await _expect_exact(database, ada)
    with pytest.raises(NotFound):
        await versions.page(database, ada, project_id)
    await trash.purge(database, ada, project_id)
    assert await _expect_exact(database, ada) == 0
    assert await database[CANVAS_VERSIONS].count({}) == 0


async def test_no_version_is_kept_beyond_the_plan(database: Database, ada: Actor) -> None:
    project_id = await _made(database, ada)
    await database.raw["plans"].update_many({}, {"$set": {"limits.storage": 25 / 10**9}})
    with pytest.raises(QuotaExceeded):
        await versions.create(database, ada, project_id)
    await versions.keep_automatically(Due(project_id=project_id), database=database, settings=KEPT)
    assert await database[CANVAS_CONTENTS].count({}) == 0


async def test_versions_that_race_are_no_more_than_the_limit(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "MOST", 5)
    project_id = await _made(database, ada)
    for n in range(3):
        await canvas.replace(database, ada, project_id, {"a": n % 2}, based_on=None)
        await versions.create(database, ada, project_id)
    made = await asyncio.gather(*(versions.create(database, ada, project_id) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(each, LimitExceeded) for each in made) == 3
    assert len(await _names(database, ada, project_id)) == 5
    await _expect_exact(database, ada)


@pytest.mark.slow
async def test_automatic_versions_are_idempotent_and_old_ones_removed_unless_pinned(
    database: Database, ada: Actor
) -> None:
    project_id = await _made(database, ada)
    pinned = await versions.create(database, ada, project_id, name="pinned")
    for n in range(5):
        await canvas.replace(database, ada, project_id, {"n": n}, based_on=None)
        jobs = (versions.keep_automatically(Due(project_id=project_id), database=database, settings=KEPT) for _ in "12")
        await asyncio.gather(*jobs)
        await versions.keep_automatically(Due(project_id=project_id), database=database, settings=KEPT)
    kept = (await versions.page(database, ada, project_id)).items
    assert [each.revision for each in kept] == [5, 4, 3, 0]
    assert kept[-1].id == pinned.id
    await versions.update(database, ada, project_id, pinned.id, {"pinned": False, "name": None})
    await versions.keep_automatically(Due(project_id=project_id), database=database, settings=KEPT)
    assert await _names(database, ada, project_id) == [None, None, None]
    await versions.update(database, ada, project_id, kept[0].id, {"name": "stays"})
    by_plan = Settings(canvas_versions=3, canvas_versions_by_plan=("Free=1", "Pro=9"))
    await versions.keep_automatically(Due(project_id=project_id), database=database, settings=by_plan)
    assert await _names(database, ada, project_id) == ["stays", None]
    none = Settings(canvas_versions=9, canvas_versions_by_plan=("Free=0",))
    await canvas.replace(database, ada, project_id, {"more": 1}, based_on=None)
    await versions.keep_automatically(Due(project_id=project_id), database=database, settings=none)
    assert await _names(database, ada, project_id) == ["stays", None]
    await _expect_exact(database, ada)


@pytest.mark.parametrize(("kept", "by_plan", "made"), [(0, ("Pro=200",), True), (0, ("Pro=0",), False), (1, (), True)])
def test_versions_are_made_if_those_of_any_plan_are_kept(kept: int, by_plan: tuple[str, ...], made: bool) -> None:
    assert Settings(canvas_versions=kept, canvas_versions_by_plan=by_plan).keeps_versions is made


@pytest.mark.slow
async def test_a_change_enqueues_one_version_for_its_interval_and_one_for_many_revisions(
    database: Database, ada: Actor
) -> None:
    settings = Settings(canvas_version_revisions=10, canvas_version_minutes=1440)  # an interval that seldom ends here
    feed, stop = Feed(database), asyncio.Event()
    watchers = [Automatic(database, feed, settings) for _ in range(2)]  # as in two processes
    running = [asyncio.create_task(each.run(stop)) for each in (feed, *watchers)]
    project_id = await _made(database, ada)
    await feed.caught_up()
    foreign = {"_id": "an id of another kind", "canvasData": {}}
    await database.raw["projects"].insert_one(foreign, bypass_document_validation=True)
    change = {"$set": {"canvasData": {"a": 1}}}
    await database.raw["projects"].update_one({"_id": foreign["_id"]}, change, bypass_document_validation=True)
    for n in range(9):
        await canvas.replace(database, ada, project_id, {"n": n}, based_on=None)
    await _jobs(database, feed, 1)
    waiting = await database.raw["outbox"].find_one({"kind": "projects.keep_version"})
    assert waiting is not None
    assert waiting["payload"] == {"projectId": project_id}
    now = database.clock.now()
    assert timedelta(0) < waiting["runAt"].replace(tzinfo=now.tzinfo) - now <= timedelta(days=1)
    await canvas.replace(database, ada, project_id, {}, based_on=None)
    await _jobs(database, feed, 2, at_least=True)
    stop.set()
    await end(running, patience_s=5)


async def _jobs(database: Database, feed: Feed, count: int, *, at_least: bool = False) -> None:
    await feed.caught_up()
    async with asyncio.timeout(10):
        while (  # noqa: ASYNC110 (jobs have no event)
            found := await database.raw["outbox"].count_documents({"kind": "projects.keep_version"})
        ) < count:
            await asyncio.sleep(0.01)
    assert at_least or found == count


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\0b", 5])
async def test_names_that_are_none_are_refused(database: Database, ada: Actor, name: Any) -> None:
    project_id = await _made(database, ada)
    with pytest.raises(Invalid, match=r"^name: "):
        await versions.create(database, ada, project_id, name=name)


async def test_nobody_reaches_the_versions_of_others(database: Database, ada: Actor, bob: Actor) -> None:
    project_id, other = await _made(database, ada), await _made(database, bob)
    version = await versions.create(database, ada, project_id)
    for place in (project_id, other):
        for attempt in (
            versions.get(database, bob, place, version.id),
            versions.content(database, bob, place, version.id),
            versions.changes(database, bob, place, version.id),
            versions.update(database, bob, place, version.id, {"name": "x"}),
            versions.delete(database, bob, place, version.id),
            versions.restore(database, bob, place, version.id),
        ):
            with pytest.raises(NotFound):
                await attempt
    assert (await versions.page(database, ada, project_id)).items[0].name is None


@pytest.mark.parametrize("count", [30, pytest.param(450, marks=pytest.mark.soak)])
async def test_a_large_drawing_is_saved_patched_reloaded_and_restored(
    database: Database, ada: Actor, count: int
) -> None:
    strokes = [
        {"id": f"s{n}", "type": "freedraw", "points": [[n + x / 7, x / 3] for x in range(200)]} for n in range(count)
    ]
    drawing = {"elements": strokes}
    project_id = await _made(database, ada, drawing)
    version = await versions.create(database, ada, project_id)
    saver = Saver(database)
    given = {"client": "tab", "seq": 1, "set": {"s7": {"x": 5}}, "remove": ["s8"]}
    await saver.save(ada, project_id, given)
    await canvas.patch(database, ada, project_id, [{"op": "remove", "path": "/elements/0/points/199"}], based_on=(1,))
    now = (await canvas.read(database, ada, project_id)).canvas_data["elements"]
    assert (len(now), len(now[0]["points"]), now[7]["x"]) == (count - 1, 199, 5)
    assert len(await versions.changes(database, ada, project_id, version.id)) == 3
    assert await versions.restore(database, ada, project_id, version.id) == 3
    assert (await canvas.read(database, ada, project_id)).canvas_data == drawing
    assert await _expect_exact(database, ada)


async def test_a_restoration_over_a_write_by_another_application_keeps_that_write(
    database: Database, ada: Actor
) -> None:
    project_id = await _made(database, ada)
    version = await versions.create(database, ada, project_id)
    theirs = {"theirs": datetime(2026, 1, 1, tzinfo=UTC), "id": ObjectId()}
    await database.raw["projects"].update_one({"_id": project_id}, {"$set": {"canvasData": theirs}})
    await versions.restore(database, ada, project_id, version.id)
    kept = (await versions.page(database, ada, project_id, first=1)).items[0]
    assert await versions.content(database, ada, project_id, kept.id) == theirs


async def test_restoring_keeps_no_more_versions_than_a_project_may_have(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "MOST", 1)
    project_id = await _made(database, ada)
    kept = await versions.create(database, ada, project_id)
    await canvas.replace(database, ada, project_id, {"a": 2}, based_on=None)
    with pytest.raises(LimitExceeded):
        await versions.restore(database, ada, project_id, kept.id)


async def test_a_user_compares_one_after_the_other(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id = await _made(database, ada)
    kept = await versions.create(database, ada, project_id)
    at_once = most = 0

    async def read(*given: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        found = await content(*given)
        at_once -= 1
        return found

    content = versions.content
    monkeypatch.setattr(versions, "content", read)
    assert await asyncio.gather(*(versions.changes(database, ada, project_id, kept.id) for _ in range(3))) == [[]] * 3
    assert most == 1


@pytest.mark.soak
async def test_a_hundred_versions_of_a_megabyte_take_the_space_of_a_few(database: Database, ada: Actor) -> None:
    chance = random.Random(1)
    shapes = [
        {"id": f"s{n}", "x": chance.random(), "y": chance.random(), "seed": chance.getrandbits(31), "index": f"a{n:05}",
         "points": [[chance.randrange(1000) / 8, chance.randrange(1000) / 8] for _ in range(10)], "type": "freedraw"}
        for n in range(2_600)
    ]  # fmt: skip
    project_id = await _made(database, ada, {"elements": shapes})
    saver, seq = Saver(database), 0
    kept: dict[ObjectId, bytes] = {}
    for number in range(100):
        for shape in chance.sample(shapes, 5) if number % 10 else []:  # else as before
            seq += 1
            shape |= {"x": chance.random(), "y": chance.random()}
            await saver.save(
                ada, project_id, {"client": "tab", "seq": seq, "set": {shape["id"]: {"x": shape["x"], "y": shape["y"]}}}
            )
        made = await versions.create(database, ada, project_id)
        kept[made.id] = bson.encode({"elements": shapes})
    await saver.close()
    stored = await database[CANVAS_CONTENTS].find({"projectId": project_id})
    total = sum(each.stored_bytes for each in stored)
    assert len(kept[made.id]) > 1_000_000
    assert len(stored) == 91  # equal content once
    assert await _expect_exact(database, ada) == total < 1_200_000
    for version_id in chance.sample(sorted(kept), 5):
        expected = bson.decode(kept[version_id])
        assert await versions.content(database, ada, project_id, version_id) == expected
        await versions.restore(database, ada, project_id, version_id)
        assert (await canvas.read(database, ada, project_id)).canvas_data == expected
    await _expect_exact(database, ada)
