"""Patches by path have the effect of those that are applied to the value, or none."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ximler.core.actor import Actor
from ximler.core.errors import XimlerError
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.projects import canvas, paths, positional, projects, storage

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.sampled_from([None, 0, 1.5, "x", [], {}, ["y"], [{"a": 1}]]),
    lambda inner: st.dictionaries(NAMES, inner),
    max_leaves=4,
)
OBJECTS = st.dictionaries(NAMES, VALUES, min_size=1)
POINTERS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "".join(f"/{name}" for name in names))
OPERATIONS = st.lists(
    st.builds(lambda op, path, value: {"op": op, "path": path, "value": value},
              st.sampled_from(["add", "replace", "remove"]), POINTERS, VALUES),
    min_size=1, max_size=3,
)  # fmt: skip


@pytest.mark.slow
@given(data=OBJECTS, change=st.tuples(st.just("patch"), OPERATIONS) | st.tuples(st.just("merge"), OBJECTS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_database_has_the_effect_of_the_value(
    database: Database, ada: Actor, data: Any, change: tuple[Any, Any]
) -> None:
    kind, given_ = change
    await database.raw["projects"].delete_many({})
    await database.raw["gauges"].delete_many({})
    project_id = (await projects.create(database, ada, name="p", canvas_data={})).id
    await canvas.replace(database, ada, project_id, data, based_on={0})
    apply, save = (positional.patched, canvas.patch) if kind == "patch" else (positional.merged, canvas.merge)
    try:
        expected = apply(copy.deepcopy(data), given_)
    except XimlerError:
        expected = data
        with pytest.raises(XimlerError):
            await save(database, ada, project_id, given_, based_on={1})
    else:
        assert await save(database, ada, project_id, given_, based_on={1}) == 2
    assert (await canvas.read(database, ada, project_id)).canvas_data == expected
    size = (await projects.get(database, ada, project_id)).storage_size
    await storage.resize(database, ada.require_user(), project_id, room=0)
    assert (await projects.get(database, ada, project_id)).storage_size == size


async def test_a_patch_of_properties_is_one_update_and_does_not_read_the_canvas(database: Database, ada: Actor) -> None:
    project_id = (await projects.create(database, ada, name="p", canvas_data={})).id
    data = {"state": {"zoom": 1, "old": 1}, "elements": [{"text": "x" * 300}] * 100}
    await canvas.replace(database, ada, project_id, data, based_on=None)
    operations = [{"op": "replace", "path": "/state/zoom", "value": {"n": 2}}, {"op": "remove", "path": "/state/old"}]
    with round_trips() as trips:
        assert await canvas.patch(database, ada, project_id, operations, based_on={1}) == 2
    assert ("find", "projects") not in trips
    assert (await canvas.read(database, ada, project_id)).canvas_data == data | {"state": {"zoom": {"n": 2}}}


@pytest.mark.parametrize(
    "change",
    [
        [{"op": "add", "path": "/a/0", "value": 1}],
        [{"op": "add", "path": "/a/-", "value": 1}],
        [{"op": "add", "path": "/$set", "value": 1}],
        [{"op": "add", "path": "/a.b", "value": 1}],
        [{"op": "add", "path": "/a~1b", "value": 1}],
        [{"op": "add", "path": "/", "value": 1}],
        [{"op": "add", "path": "", "value": {}}],
        [{"op": "add", "path": "/a", "value": {"$x": 1}}],
        [{"op": "add", "path": "/a", "value": 2**64}],
        [{"op": "add", "path": "/a", "value": {}}, {"op": "add", "path": "/a/b", "value": 1}],
        [{"op": "test", "path": "/a", "value": 1}],
        [{"op": "add", "path": "/a"}],
        [],
        None,
    ],
)
def test_other_patches_are_applied_to_the_value(change: Any) -> None:
    assert paths.by_path("patch", change) is None


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "add", "path": "nonsense/bar", "value": 1},
        {"op": "replace", "path": "a", "value": 1},
        {"op": "remove", "path": "#/a"},
        {"op": "move", "path": "/b", "from": "nonsense/a"},
        {"op": "copy", "path": "b/c", "from": "/a"},
        {"op": "test", "path": "x/a", "value": 1},
    ],
)
async def test_a_pointer_is_empty_or_starts_with_a_slash(
    database: Database, ada: Actor, operation: dict[str, Any]
) -> None:
    project_id = (await projects.create(database, ada, name="p", canvas_data={"a": 1})).id
    await canvas.replace(database, ada, project_id, {"a": 1}, based_on=None)
    with pytest.raises(XimlerError, match="must start with /"):
        await canvas.patch(database, ada, project_id, [operation], based_on={1})
    assert (await canvas.read(database, ada, project_id)).canvas_data == {"a": 1}
