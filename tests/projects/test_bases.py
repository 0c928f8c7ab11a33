"""Large canvases: a base and the patches since, which readers see as one value."""

import asyncio
from typing import Any

import bson
import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.quota import gauges
from ximler.projects import bases, canvas, compaction, edits, patches, projects, trash, versions
from ximler.projects.patches import Outcome, Saver
from ximler.projects.projects import RevisionConflict
from ximler.schema.canvas_part import CANVAS_PARTS
from ximler.schema.canvas_version import CANVAS_CONTENTS

TEXT = "x" * 300


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "LIMIT", 2000)
    monkeypatch.setattr(bases, "_PART", 100)
    monkeypatch.setattr(compaction, "_SMALL", 1000)
    monkeypatch.setattr(edits, "MAX_TAIL", 3000)
    monkeypatch.setattr(patches, "COMPACTED", 1000)
    monkeypatch.setattr(versions, "_INSIDE", 100)


def shapes(count: int) -> dict[str, Any]:
    return {"elements": [{"id": f"s{n}", "x": n, "text": TEXT} for n in range(count)], "appState": {"zoom": 1}}


class Drawing:
    def __init__(self, database: Database, ada: Actor, project: ObjectId) -> None:
        self.database, self.ada, self.id = database, ada, project
        self.saver = Saver(database)
        self._seq = 0

    async def save(self, client: str = "tab", **change: Any) -> Outcome:
        self._seq += 1
        return await self.saver.save(self.ada, self.id, {"client": client, "seq": self._seq, **change})

    async def read(self) -> dict[str, Any]:
        data: dict[str, Any] = (await canvas.read(self.database, self.ada, self.id)).canvas_data
        return data

    async def record(self, name: str) -> Any:
        return next((each for each in (await self.read())["elements"] if each["id"] == name), None)

    async def stored(self) -> dict[str, Any]:
        found = await self.database.raw["projects"].find_one({"_id": self.id})
        assert found is not None
        return found

    async def expect_exact(self) -> None:
        """`storageSize` is measured anew from what is stored; the gauge has it."""
        raw = await self.stored()
        canvas = len(bson.encode({"v": raw["canvasData"] or {}})) - 8
        if raw["canvasData"] is None and raw.get("canvasBase"):
            canvas = raw["canvasBase"]["bytes"]
            canvas += len(bson.encode({"v": raw["canvasTail"]})) - 8 if "canvasTail" in raw else 0
            packed = await self.database[CANVAS_PARTS].find({"projectId": self.id})
            assert (
                len([part for part in packed if part.id[:-2] == raw["canvasBase"]["id"].binary])
                == (raw["canvasBase"]["parts"])
            )
        contents = await self.database[CANVAS_CONTENTS].find({"projectId": self.id})
        total = canvas + sum(each.stored_bytes for each in contents)
        total += sum(len(bson.encode(raw[name])) for name in ("settings", "canvasLog", "canvasClients") if name in raw)
        assert raw["storageSize"] == total
        gauge = await self.database.raw["gauges"].find_one({"_id": self.ada.user_id})
        assert gauge is not None
        assert gauge["storageBytes"] == total + raw.get("storageRoom", 0)
        used = {raw["canvasBase"]["id"].binary} if raw.get("canvasBase") else set()
        used |= {each.id for each in contents if each.parts}
        assert {part.id[:-2] for part in await self.database[CANVAS_PARTS].find({})} == used


@pytest.fixture
async def drawing(database: Database, ada: Actor) -> Drawing:
    made = await projects.create(database, ada, name="P", canvas_data=shapes(10))
    assert made.canvas_data == shapes(10)
    return Drawing(database, ada, made.id)


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


async def test_positional_patches_and_whole_saves_have_their_base(drawing: Drawing) -> None:
    operations = [{"op": "replace", "path": "/elements/0/x", "value": 7}]
    assert await canvas.patch(drawing.database, drawing.ada, drawing.id, operations, based_on={0}) == 1
    assert (await drawing.record("s0"))["x"] == 7
    with pytest.raises(RevisionConflict):
        await canvas.merge(drawing.database, drawing.ada, drawing.id, {"a": 1}, based_on={0})
    assert await canvas.merge(drawing.database, drawing.ada, drawing.id, {"a": 1}, based_on={1}) == 2
    await drawing.save(set={"s0": {"x": 8}})
    assert (await drawing.read())["a"] == 1
    await projects.update(drawing.database, drawing.ada, drawing.id, {"settings": {"a": 1}, "name": "Q"})
    assert (await drawing.record("s0"))["x"] == 8
    await canvas.replace(drawing.database, drawing.ada, drawing.id, [TEXT] * 20, based_on=None)
    with pytest.raises(Invalid):
        await drawing.save(set={"s0": {"x": 8}})
    await drawing.saver.close()
    await drawing.expect_exact()


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


async def test_a_canvas_that_another_application_writes_replaces_the_base(drawing: Drawing) -> None:
    await drawing.save(set={"s1": {"x": 5}})
    theirs = {"elements": [{"id": "z"}]}
    await drawing.database.raw["projects"].update_one({"_id": drawing.id}, {"$set": {"canvasData": theirs}})
    assert await drawing.read() == theirs
    assert (await drawing.save(set={"z": {"y": 1}, "s1": {"x": 6}})).rejected == ["s1"]
    assert await drawing.read() == {"elements": [{"id": "z", "y": 1}]}
    await drawing.saver.close()
    await drawing.expect_exact()
    assert "canvasBase" not in await drawing.stored()


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
