"""Large canvases: a base and the patches since, which readers see as one value."""

import asyncio
import time
from typing import Any

import pytest
from bson import ObjectId
from tests.projects.drawings import TEXT, Drawing, shapes

from ximler.core import strict_json
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.core.stopping import end
from ximler.database.changes import Feed
from ximler.database.mixed import MAX_CONTAINERS, MAX_VALUES
from ximler.database.monitoring import round_trips
from ximler.metering.quota import gauges
from ximler.projects import bases, canvas, compaction, packing, projects, storage, trash, versions
from ximler.projects.canvas import WritesByOthers
from ximler.projects.patches import Outcome, Saver
from ximler.projects.projects import RevisionConflict
from ximler.schema.canvas_part import CANVAS_PARTS

pytestmark = pytest.mark.usefixtures("low_limits")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "size"),
    [
        (b"[123.4567890123,-76.54321098765]", 9_000_000),
        pytest.param(b"[123.4567890123,-76.54321098765]", 17_200_000, marks=pytest.mark.soak),
        pytest.param(b"[12,-3]", 17_200_000, marks=pytest.mark.soak),
    ],
)
def test_megabytes_of_strokes_are_within_the_limits_of_time_and_memory(point: bytes, size: int) -> None:
    stroke = b'{"type":"freedraw","points":[' + b",".join([point] * 200) + b"]}"
    body = b'{"elements":[' + b",".join([stroke] * (size // len(stroke))) + b"]}"
    began = time.process_time()
    value = strict_json.decode(body, values=MAX_VALUES, containers=MAX_CONTAINERS)
    _, fresh = storage.canvas_of(value)
    assert fresh is not None
    assert packing.unpack(fresh.packed) == value
    assert time.process_time() - began < size / 600_000


async def test_it_is_read_and_patched_as_a_small_one(drawing: Drawing) -> None:
    assert (await drawing.stored())["canvasData"] is None
    assert await drawing.read() == shapes(10)
    await drawing.expect_exact()
    assert await drawing.save(set={"s1": {"x": 5}, "gone": {"x": 5}}) == Outcome(1, ["gone"])
    assert await drawing.save(put=[{"id": "n", "x": 1}, {"id": "s2", "z": 1}], remove=["s3"]) == Outcome(2)
    assert await drawing.save(set={"n": {"y": 2}, "s3": {"x": 9}}) == Outcome(3, ["s3"])
    drawing.saver, other = Saver(drawing.database), drawing.saver  # as in another process
    assert await drawing.save("two", remove=["n"], set={"s4": {"x": 4}}) == Outcome(4)
    drawing.saver = other
    assert await drawing.save(set={"n": {"x": 1}}) == Outcome(5, ["n"])
    expected = shapes(10)
    listed = expected["elements"]
    listed[1]["x"], listed[2], listed[4]["x"] = 5, {"id": "s2", "z": 1}, 4
    del listed[3]
    assert await drawing.read() == expected
    found = await projects.canvases(drawing.database, drawing.ada, [drawing.id])
    assert found == {drawing.id: expected}
    with pytest.raises(NotFound):
        await canvas.read(drawing.database, Actor(kind="user", user_id=ObjectId()), drawing.id)
    await drawing.saver.close()
    await drawing.expect_exact()


async def test_a_patch_is_one_command_of_its_own_size(drawing: Drawing) -> None:
    await drawing.save(set={"s1": {"x": 1}})
    with round_trips() as trips:
        await drawing.save(set={"s2": {"x": 2.5, "y": 3}, "gone": {"x": 1}}, put=[{"id": "n"}], remove=["s4"])
    assert trips == [("update", "projects")]


@pytest.mark.slow
async def test_a_canvas_becomes_large_and_small_again(drawing: Drawing) -> None:
    await canvas.replace(drawing.database, drawing.ada, drawing.id, shapes(4), based_on={0})
    await drawing.expect_exact()
    assert (await drawing.stored())["canvasData"] == shapes(4)
    for n in range(4):
        await drawing.save(put=[{"id": f"n{n}", "text": TEXT}], set={"gone": {"x": 1}})
    assert (await drawing.stored())["canvasData"] is None
    assert len((await drawing.read())["elements"]) == 8
    await drawing.save(remove=[f"s{n}" for n in range(4)])
    await drawing.save(remove=[f"n{n}" for n in range(4)])
    assert await compaction.compact(compaction.Due(project_id=drawing.id), database=drawing.database)
    assert (await drawing.stored())["canvasData"] == {"elements": [], "appState": {"zoom": 1}}
    await drawing.save(put=[{"id": "last"}])
    assert await drawing.read() == {"elements": [{"id": "last"}], "appState": {"zoom": 1}}
    await drawing.saver.close()
    await drawing.expect_exact()


@pytest.mark.slow
async def test_patches_become_part_of_the_base_while_others_are_saved(drawing: Drawing) -> None:
    savers = [Saver(drawing.database) for _ in range(2)]

    async def edit(n: int) -> None:
        for seq in range(1, 16):
            change = {
                "client": f"tab{n}",
                "seq": seq,
                "set": {"s1": {f"p{n}": seq}},
                "put": [{"id": f"{n}-{seq}", "t": TEXT}],
            }
            await savers[n % 2].save(drawing.ada, drawing.id, change)

    async def compact() -> None:
        for _ in range(5):
            await compaction.compact(compaction.Due(project_id=drawing.id), database=drawing.database)

    await asyncio.gather(*map(edit, range(4)), compact())
    now = {each["id"]: each for each in (await drawing.read())["elements"]}
    assert now["s1"] == {"id": "s1", "x": 1, "text": TEXT} | {f"p{n}": 15 for n in range(4)}
    assert now.keys() - {f"s{n}" for n in range(10)} == {f"{n}-{seq}" for n in range(4) for seq in range(1, 16)}
    assert await drawing.database.raw["outbox"].count_documents({"kind": "projects.compact_canvas"}) > 0
    for saver in savers:
        await saver.close()
    await drawing.expect_exact()


@pytest.mark.slow
async def test_positional_patches_and_whole_saves_have_their_base(drawing: Drawing) -> None:
    operations = [{"op": "replace", "path": "/elements/0/x", "value": 7}]
    assert await canvas.patch(drawing.database, drawing.ada, drawing.id, operations, based_on={0}) == 1
    assert (await drawing.record("s0"))["x"] == 7
    with pytest.raises(RevisionConflict):
        await canvas.merge(drawing.database, drawing.ada, drawing.id, {"a": 1}, based_on={0})
    assert await canvas.merge(drawing.database, drawing.ada, drawing.id, {"a": 1}, based_on={1}) == 2
    await drawing.save(set={"s0": {"x": 8}})
    assert (await drawing.read())["a"] == 1
    assert await canvas.patch(
        drawing.database, drawing.ada, drawing.id, [{"op": "remove", "path": "/elements/9"}], based_on={3}
    )
    assert await drawing.save(set={"s9": {"x": 1}, "s8": {"x": 8}}) == Outcome(5, ["s9"])
    assert [each.get("k") for each in (await drawing.stored())["canvasTail"]] == ["patch", "merge", None, "patch", None]
    await drawing.saver.close()
    await drawing.expect_exact()
    copied = [{"op": "copy", "from": "/elements", "path": "/more"}]  # it grows by more than its own size
    assert await canvas.patch(drawing.database, drawing.ada, drawing.id, copied, based_on=None) == 6
    assert "canvasTail" not in await drawing.stored()
    assert (await drawing.read())["more"] == (await drawing.read())["elements"]
    await drawing.expect_exact()
    await projects.update(drawing.database, drawing.ada, drawing.id, {"settings": {"a": 1}, "name": "Q"})
    assert (await drawing.record("s0"))["x"] == 8
    await canvas.replace(drawing.database, drawing.ada, drawing.id, [TEXT] * 20, based_on=None)
    with pytest.raises(Invalid):
        await drawing.save(set={"s0": {"x": 8}})
    await drawing.saver.close()
    await drawing.expect_exact()


async def test_patches_that_take_long_to_apply_are_not_appended(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "_AGAIN_US", 4000)
    data = {"a": [0] * 1000, "long": [0] * 2000}
    await canvas.replace(drawing.database, drawing.ada, drawing.id, data, based_on=None)

    async def entries(*operations: dict[str, Any]) -> int:
        await canvas.patch(drawing.database, drawing.ada, drawing.id, list(operations), based_on=None)
        return len((await drawing.stored()).get("canvasTail", []))

    remove = {"op": "remove", "path": "/b"}
    assert await entries({"op": "add", "path": "/long/0", "value": 1}) == 1
    assert await entries({"op": "move", "from": "/long", "path": "/b"}, remove) == 2
    assert await entries({"op": "copy", "from": "/a", "path": "/b"}, remove) == 3
    assert await entries(*[{"op": "copy", "from": "/a", "path": "/b"}, remove] * 3) == 0
    await drawing.expect_exact()


async def test_positional_patches_alternate_with_those_of_records_a_few_times(drawing: Drawing) -> None:
    most = 0
    for n in range(12):
        await drawing.save(set={"s0": {"x": n}})
        await canvas.patch(
            drawing.database, drawing.ada, drawing.id, [{"op": "add", "path": "/a", "value": n}], based_on=None
        )
        most = max(most, len((await drawing.stored()).get("canvasTail", [])))
    assert 10 < most < 18
    assert (await drawing.read())["a"] == 11


@pytest.mark.slow
async def test_records_of_another_list_are_patched(drawing: Drawing) -> None:
    data = {"shapes": [{"key": f"k{n}", "text": TEXT} for n in range(10)]}
    settings = {"records": {"list": "shapes", "id": "key"}}
    await projects.update(drawing.database, drawing.ada, drawing.id, {"canvas_data": data, "settings": settings})
    assert (await drawing.save(set={"k1": {"x": 1}, "s1": {"x": 1}})).rejected == ["s1"]
    await projects.update(drawing.database, drawing.ada, drawing.id, {"settings": {}})
    assert (await drawing.save(set={"k1": {"x": 1}})).rejected == ["k1"]
    await drawing.save(put=[{"id": "e"}])
    now = await drawing.read()
    assert (now["shapes"][1], now["elements"]) == ({"key": "k1", "text": TEXT, "x": 1}, [{"id": "e"}])


@pytest.mark.slow
async def test_versions_of_it_are_kept_restored_and_purged(drawing: Drawing) -> None:
    await drawing.save(set={"s1": {"x": 5}})
    kept = await versions.create(drawing.database, drawing.ada, drawing.id, name="v")
    again = await versions.create(drawing.database, drawing.ada, drawing.id, name="w")
    await canvas.replace(drawing.database, drawing.ada, drawing.id, {"elements": []}, based_on=None)
    await versions.restore(drawing.database, drawing.ada, drawing.id, kept.id)
    assert (await drawing.record("s1"))["x"] == 5
    assert (await drawing.stored())["canvasData"] is None
    await versions.delete(drawing.database, drawing.ada, drawing.id, again.id)
    assert (await versions.content(drawing.database, drawing.ada, drawing.id, kept.id))["elements"][1]["x"] == 5
    await drawing.expect_exact()
    await versions.delete(drawing.database, drawing.ada, drawing.id, kept.id)
    await drawing.expect_exact()
    await versions.create(drawing.database, drawing.ada, drawing.id)
    await projects.delete(drawing.database, drawing.ada, drawing.id)
    await projects.restore(drawing.database, drawing.ada, drawing.id)
    assert (await drawing.record("s1"))["x"] == 5
    await projects.delete(drawing.database, drawing.ada, drawing.id)
    await trash.purge(drawing.database, drawing.ada, drawing.id)
    assert await drawing.database[CANVAS_PARTS].count({}) == 0
    was, now = await drawing.database.transaction(lambda t: gauges.recount(t, drawing.ada.require_user()))
    assert (was.storage_bytes, now.storage_bytes) == (0, 0)


@pytest.mark.slow
async def test_a_canvas_that_another_application_writes_replaces_the_base(drawing: Drawing) -> None:
    await drawing.save(set={"s1": {"x": 5}})
    theirs = {"elements": [{"id": "z"}]}
    await drawing.database.raw["projects"].update_one({"_id": drawing.id}, {"$set": {"canvasData": theirs}})
    assert await drawing.read() == theirs
    # The obsolete base goes with the next save. To compact it was tried until the job failed.
    assert not await compaction.compact(compaction.Due(project_id=drawing.id), database=drawing.database)
    assert (await drawing.save(set={"z": {"y": 1}, "s1": {"x": 6}})).rejected == ["s1"]
    assert await drawing.read() == {"elements": [{"id": "z", "y": 1}]}
    await drawing.saver.close()
    await drawing.expect_exact()
    assert "canvasBase" not in await drawing.stored()


@pytest.mark.slow
async def test_a_reader_never_meets_a_base_that_is_replaced_meanwhile(drawing: Drawing) -> None:
    async def replace() -> None:
        for n in range(10):
            data = {"n": [n, TEXT * 10]}
            await canvas.replace(drawing.database, drawing.ada, drawing.id, data, based_on=None)

    async def look() -> None:
        while not replacing.done():
            found = await canvas.read(drawing.database, drawing.ada, drawing.id)
            assert found.canvas_data == (
                {"n": [found.canvas_revision - 1, TEXT * 10]} if found.canvas_revision else shapes(10)
            )

    replacing = asyncio.create_task(replace())
    await asyncio.gather(replacing, look(), look())


@pytest.mark.slow
async def test_no_change_of_our_own_is_taken_for_another_applications(drawing: Drawing) -> None:
    feed, stop = Feed(drawing.database), asyncio.Event()
    others = WritesByOthers(drawing.database, feed)
    running = [asyncio.create_task(run(stop)) for run in (feed.run, others.run)]
    await feed.caught_up()
    made = await projects.create(drawing.database, drawing.ada, name="Q", canvas_data=shapes(9))
    for size in (3, 9):
        await canvas.replace(drawing.database, drawing.ada, drawing.id, shapes(size), based_on=None)
    await drawing.save(remove=[f"s{n}" for n in range(9)])
    await compaction.compact(compaction.Due(project_id=drawing.id), database=drawing.database)
    await drawing.save(put=[{"id": f"p{n}", "text": TEXT} for n in range(8)])
    await drawing.save(put=[{"id": f"q{n}", "text": TEXT} for n in range(9)])
    # After a write that is another application's, those before it have been handled.
    await drawing.database.raw["projects"].update_one({"_id": made.id}, {"$set": {"canvasData": {"a": 1}}})
    async with asyncio.timeout(20):
        while (await canvas.read(drawing.database, drawing.ada, made.id)).canvas_revision < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await canvas.read(drawing.database, drawing.ada, made.id)).canvas_revision == 1
    assert (await canvas.read(drawing.database, drawing.ada, drawing.id)).canvas_revision == 5
    stop.set()
    await end(running, patience_s=5)
