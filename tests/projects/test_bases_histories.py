"""Large canvases after crashes between any two commands, and after random histories."""

import copy
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.billing.killing import Killer
from tests.projects.drawings import TEXT, Drawing, shapes

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import canvas, compaction, projects, storage, trash, versions
from ximler.projects.patches import Saver
from ximler.schema.canvas_part import CANVAS_PARTS

Act = Callable[[Drawing], Awaitable[object]]


async def _keep(drawing: Drawing) -> object:
    return await versions.create(drawing.database, drawing.ada, drawing.id)


async def _restore(drawing: Drawing) -> object:
    (oldest, *_) = reversed((await versions.page(drawing.database, drawing.ada, drawing.id)).items)
    return await versions.restore(drawing.database, drawing.ada, drawing.id, oldest.id)


def _replace(data: Any) -> Act:
    return lambda drawing: canvas.replace(drawing.database, drawing.ada, drawing.id, data, based_on=None)


def _patch(**change: Any) -> Act:
    return lambda drawing: drawing.save(**copy.deepcopy(change))


async def _compact(drawing: Drawing) -> object:
    return await compaction.compact(compaction.Due(project_id=drawing.id), database=drawing.database)


# One after the other, each killed before each of its commands until it is done.
ACTS: dict[str, Act] = {
    "keep a version": _keep,
    "patch": _patch(set={"s1": {"x": 5}}, remove=["s2"]),
    "patch by position": lambda drawing: canvas.patch(
        drawing.database, drawing.ada, drawing.id, [{"op": "add", "path": "/elements/0/y", "value": 1}], based_on=None
    ),
    "compact": _compact,
    "patch more than a tail holds": _patch(put=[{"id": "n", "text": TEXT * 12}]),
    "store another": _replace(shapes(12)),
    "patch again": _patch(remove=[f"s{n}" for n in range(11)]),
    "become small": _compact,
    "become large": _patch(put=[{"id": f"p{n}", "text": TEXT} for n in range(8)]),
    "store a small one": _replace({"elements": []}),
    "restore": _restore,
}


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
async def test_a_crash_before_any_command_leaves_the_old_or_the_new(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    killer = Killer(monkeypatch)
    for name, act in ACTS.items():
        old = await drawing.state()
        for commands in range(random.randrange(every), 60, every):
            drawing.saver = Saver(drawing.database)
            killed = await killer.run(lambda act=act: act(drawing), commands=commands)  # type: ignore[misc]
            await drawing.expect_whole()
            now = await drawing.state()
            if now.canvas != old.canvas or (name != "restore" and now != old):  # a restoration keeps a version first
                break
            assert killed, name
        else:
            raise AssertionError(name)
        await storage.resize(drawing.database, drawing.ada.require_user(), drawing.id, room=0)
        await drawing.expect_exact()
    assert await drawing.read() == shapes(10)


@pytest.mark.slow
async def test_a_purge_that_is_killed_leaves_all_or_nothing(drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = Killer(monkeypatch)
    await _keep(drawing)
    await projects.delete(drawing.database, drawing.ada, drawing.id)
    before = await drawing.database[CANVAS_PARTS].count({})
    commands = 0
    while await killer.run(lambda: trash.purge(drawing.database, drawing.ada, drawing.id), commands=commands):
        left = await drawing.database[CANVAS_PARTS].count({})
        assert left == (before if await drawing.database.raw["projects"].count_documents({}) else 0)
        if not left:
            break
        commands += 1
    assert await drawing.database[CANVAS_PARTS].count({}) == 0


CANVASES = st.sampled_from([{}, {"elements": []}, shapes(3), shapes(8), shapes(12)])
NAMES = st.sampled_from(["s0", "s1", "s5", "new"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), CANVASES),
        st.tuples(st.just("records"), NAMES),
        st.tuples(st.just("remove"), NAMES),
        st.tuples(st.just("large"), NAMES),
        st.tuples(st.just("json"), st.integers(0, 9)),
        st.tuples(st.just("theirs"), CANVASES),
        st.tuples(st.sampled_from(["compact", "keep", "restore", "trash", "rest"]), st.none()),
    ),
    max_size=12,
)


@pytest.mark.slow
@pytest.mark.usefixtures("low_limits")
@given(steps=STEPS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_history_leaves_the_canvas_of_the_model_and_exact_storage(
    database: Database, ada: Actor, steps: list[tuple[str, Any]]
) -> None:
    actor = Actor(kind="user", via="session", user_id=ObjectId())
    await database.raw["users"].insert_one(
        {"_id": actor.user_id, "name": "A", "email": f"{actor.user_id}@x.org", "password": "-"}
    )
    made = await projects.create(database, actor, name="P", canvas_data=shapes(8))
    drawing, model, kept = Drawing(database, actor, made.id), shapes(8), list[Any]()
    for step, value in steps:
        elements = model.get("elements", [])
        match step:
            case "put":
                await _replace(value)(drawing)
                model = copy.deepcopy(value)
            case "theirs":
                await database.raw["projects"].update_one({"_id": made.id}, {"$set": {"canvasData": value}})
                model = copy.deepcopy(value)
            case "records" | "large" | "remove":
                record = {"id": value, "text": TEXT * (12 if step == "large" else 1)}
                await drawing.save(**({"remove": [value]} if step == "remove" else {"put": [record]}))
                at = next((n for n, each in enumerate(elements) if each["id"] == value), None)
                if step == "remove":
                    elements = [each for each in elements if each["id"] != value]
                else:
                    elements = [*elements, record] if at is None else [*elements[:at], record, *elements[at + 1 :]]
                if elements or "elements" in model:
                    model["elements"] = elements
            case "json" if value % 2:
                await canvas.merge(database, actor, made.id, {"n": value}, based_on=None)
                model["n"] = value
            case "json":
                operations = [{"op": "add", "path": "/n", "value": value}]
                await canvas.patch(database, actor, made.id, operations, based_on=None)
                model["n"] = value
            case "compact":
                await _compact(drawing)
            case "keep":
                await _keep(drawing)
                kept.append(copy.deepcopy(model))
            case "restore" if kept:
                await _restore(drawing)
                model = copy.deepcopy(kept[0])
            case "trash":
                await projects.delete(database, actor, made.id)
                await projects.restore(database, actor, made.id)
            case "rest":
                await drawing.saver.close()
        found = await drawing.read()
        assert found == model or {"elements": [], **found} == {"elements": [], **model}
    await storage.resize(database, actor.require_user(), made.id, room=0)
    await drawing.expect_exact()
