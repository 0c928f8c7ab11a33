"""JSON Patch and JSON Merge Patch on canvases, and revisions."""

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import bson
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import OperationFailure

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound, Unavailable
from ximler.core.stopping import end
from ximler.database import Database, leases
from ximler.database.changes import Callback, Change, Feed
from ximler.projects import canvas, projects
from ximler.projects.canvas import WritesByOthers
from ximler.projects.live import Live
from ximler.projects.positional import merged, patched
from ximler.projects.projects import RevisionConflict

EXACT = 2**53 + 1


@pytest.mark.parametrize(
    ("data", "operations", "expected"),
    [
        ({}, [{"op": "add", "path": "/p", "value": []}, {"op": "add", "path": "/p/-", "value": 1},
              {"op": "replace", "path": "/p/0", "value": 2}], {"p": [2]}),
        ({"foo": 1, "foobar": {}}, [{"op": "move", "from": "/foo", "path": "/foobar/x"}], {"foobar": {"x": 1}}),
        ({"~1": 1}, [{"op": "replace", "path": "/~01", "value": 2}], {"~1": 2}),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}],
         {"a": [1], "b": [1, 2]}),
        ({"a": EXACT}, [{"op": "test", "path": "/a", "value": EXACT}], {"a": EXACT}),
        ({"e": {"1": "x"}}, [{"op": "remove", "path": "/e/1"}], {"e": {}}),
        ({"a.b": {"$set": 1}}, [{"op": "replace", "path": "/a.b/$set", "value": 2}], {"a.b": {"$set": 2}}),
        ([1], [{"op": "replace", "path": "", "value": {"whole": True}}], {"whole": True}),
    ],
    ids=["in order", "sibling's prefix", "escape", "no alias", "exact integer", "object's key", "no operator", "whole"],
)  # fmt: skip
def test_a_patch_is_applied_as_rfc_6902_says(data: Any, operations: Any, expected: Any) -> None:
    assert patched(data, operations) == expected


@pytest.mark.parametrize("index", ["01", "1_0", "٢", "１", "²", "1e1", "+1", "-1", "1\n", "", "-", "2", "~2", "1~"])
@pytest.mark.parametrize("op", ["remove", "replace", "test"])
def test_what_is_no_index_of_an_array_is_refused(op: str, index: str) -> None:
    with pytest.raises(Invalid, match=r"^patch/0: "):
        patched({"a": [1, 2]}, [{"op": op, "path": f"/a/{index}", "value": 1}])


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/one", "value": True},
        {"op": "test", "path": "/one", "value": "1"},
        {"op": "test", "path": "/exact", "value": float(2**53)},
        {"op": "add", "path": "/text/0", "value": "x"},
        {"op": "test", "path": "/text/0", "value": "x"},
        {"op": "move", "from": "/in", "path": "/in/own/child"},
        {"op": "copy", "from": "/none", "path": "/x"},
        {"op": "copy", "path": "/x"},
        {"op": "add", "path": "/x"},
        {"op": "add", "path": "x", "value": 1},
        {"op": "add", "path": 1, "value": 1},
        {"op": "plus", "path": "/x"},
        {"path": "/x"},
        [],
        "add",
        None,
    ],
    ids=repr,
)
def test_an_operation_that_does_not_apply_is_named(operation: Any) -> None:
    data = {"one": 1, "exact": EXACT, "text": "xy", "in": {"own": {}}}
    with pytest.raises(Invalid) as refused:
        patched(data, [{"op": "add", "path": "/y", "value": 1}, operation])
    assert list(refused.value.fields) == ["patch/1"]


@pytest.mark.slow
def test_a_patch_that_doubles_what_it_copies_is_refused_before_it_fills_the_memory() -> None:
    doubling = [{"op": "copy", "from": "/a", "path": f"/a/k{n}"} for n in range(60)]
    with pytest.raises(Invalid, match="bytes, together"):
        patched({"a": {"x": "y" * 100}}, doubling)


@pytest.mark.slow
def test_a_patch_has_limits_of_operations_and_of_elements_that_it_shifts() -> None:
    with pytest.raises(Invalid, match="10,001 operations"):
        patched({}, [{"op": "test", "path": "", "value": {}}] * 10_001)
    long, short = {"a": [0] * 1_000_000}, {"a": [0] * 5_000}
    for operation in ({"op": "add", "path": "/a/0", "value": 1}, {"op": "move", "from": "/a/0", "path": "/a/-"}):
        with pytest.raises(Invalid, match="long arrays") as refused:
            patched(copy.deepcopy(long), [operation] * 10_000)
        assert 100 < int(next(iter(refused.value.fields)).removeprefix("patch/")) < 400
        assert len(patched(copy.deepcopy(short), [operation] * 2_000)["a"]) >= 5_000


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab~/", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab01~/", max_size=2), inner, max_size=3),
    max_leaves=8,
)
pointers = st.lists(st.sampled_from(["a", "b", "0", "1", "-", "~0", "~1", "~", "01"]), max_size=3).map(
    lambda parts: "".join(f"/{part}" for part in parts)
)
operations = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": pointers | values},
    optional={"value": values, "from": pointers | values},
)


@pytest.mark.slow
@given(values, st.lists(operations, max_size=5))
def test_any_patch_is_applied_or_refused(data: Any, patch: Any) -> None:
    with contextlib.suppress(Invalid):
        patched(data, patch)


@pytest.mark.parametrize(
    ("data", "change", "expected"),
    [
        ({}, {"n": {"x": None, "y": [1, None]}}, {"n": {"y": [1, None]}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1, 2]}, {"a": {"0": 9}}, {"a": {"0": 9}}),
        ([1], {"a": 1}, {"a": 1}),
        ({"a": 1}, [2], [2]),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
    ],
)
def test_a_merge_patch_is_applied_as_rfc_7396_says(data: Any, change: Any, expected: Any) -> None:
    before = copy.deepcopy(change)
    assert merged(data, change) == expected
    assert change == before


async def test_each_change_has_a_revision_and_the_storage_is_exact(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"a": [1]})
    assert (await canvas.read(database, ada, made.id)).canvas_revision == 0
    assert await canvas.patch(database, ada, made.id, [{"op": "add", "path": "/a/-", "value": 2}], based_on={0}) == 1
    assert await canvas.merge(database, ada, made.id, {"b": "text"}, based_on=None) == 2
    now = await canvas.read(database, ada, made.id)
    assert (now.canvas_revision, now.canvas_data) == (2, {"a": [1, 2], "b": "text"})
    with pytest.raises(RevisionConflict) as refused:
        await canvas.replace(database, ada, made.id, {}, based_on={1})
    assert refused.value.revision == 2
    assert await canvas.replace(database, ada, made.id, [], based_on={2}) == 3
    renamed = await projects.update(database, ada, made.id, {"name": "Q"})
    assert renamed.canvas_revision == 3
    gauge = await database.raw["gauges"].find_one({"_id": ada.user_id})
    assert gauge is not None
    log = len(bson.encode((await database.raw["projects"].find_one({"_id": made.id}) or {})["canvasLog"]))
    assert gauge["storageBytes"] == renamed.storage_size == made.storage_size - len("a") - 14 + log
    with pytest.raises(NotFound):
        await canvas.read(database, Actor(kind="user", user_id=made.id), made.id)


async def test_of_changes_that_race_on_one_revision_one_holds(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={})

    async def change(n: int) -> bool:
        try:
            await canvas.patch(database, ada, made.id, [{"op": "add", "path": f"/k{n}", "value": n}], based_on={0})
        except RevisionConflict:
            return False
        return True

    held = await asyncio.gather(*(change(n) for n in range(8)))
    assert held.count(True) == 1
    now = await canvas.read(database, ada, made.id)
    assert (now.canvas_revision, now.canvas_data) == (1, {f"k{held.index(True)}": held.index(True)})


async def test_a_write_by_another_application_is_a_revision_too(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"a": 1})
    feed, stop = Feed(database), asyncio.Event()
    others = WritesByOthers(database, feed)
    running = [asyncio.create_task(run(stop)) for run in (feed.run, others.run)]
    await feed.caught_up()
    await canvas.replace(database, ada, made.id, {"a": 2}, based_on={0})
    await projects.update(database, ada, made.id, {"name": "Q"})
    # A project that refuses the increment does not hold up the others.
    refusing = {"_id": ObjectId(), "canvasData": {}, "canvasRevision": "x"}
    await database.raw["projects"].insert_one(refusing, bypass_document_validation=True)
    for project_id in (refusing["_id"], made.id):
        change = {"$set": {"canvasData": {"a": 3}}}
        await database.raw["projects"].update_one({"_id": project_id}, change, bypass_document_validation=True)
    async with asyncio.timeout(20):
        while (await canvas.read(database, ada, made.id)).canvas_revision < 2:  # noqa: ASYNC110 (it comes from elsewhere)
            await asyncio.sleep(0.02)
    await feed.caught_up()
    with pytest.raises(RevisionConflict):
        await canvas.replace(database, ada, made.id, {}, based_on={1})
    assert await canvas.replace(database, ada, made.id, {}, based_on={2}) == 3
    stop.set()
    await end(running, patience_s=5)


async def test_a_slow_search_for_missed_writes_delays_no_others_and_continues_where_it_failed(
    database: Database, ada: Actor
) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"a": 1})
    feed, stop, fails = Feed(database), asyncio.Event(), asyncio.Event()
    others = WritesByOthers(database, feed)
    asked: list[object] = []

    async def slow(collection: str, since: object, callback: Callback) -> bool:
        asked.append(since)
        if len(asked) == 1:
            found = {"canvasData": {}}
            callback(Change(collection=collection, operation="update", id=made.id, updated=found, position="reached"))
            await fails.wait()
            raise Unavailable("The server is still reading")
        return True

    async def wait(true: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while not await true():  # noqa: ASYNC110 (it comes from elsewhere)
                await asyncio.sleep(0.01)

    async def revised(to: int) -> bool:
        return (await canvas.read(database, ada, made.id)).canvas_revision == to

    with patch.object(feed, "replay", slow), patch.object(canvas, "_AGAIN_S", 0.01):
        others._miss("lost")
        running = [asyncio.create_task(run(stop)) for run in (feed.run, others.run)]
        await wait(lambda: revised(1))
        await feed.caught_up()
        await database.raw["projects"].update_one({"_id": made.id}, {"$set": {"canvasData": {"a": 3}}})
        await wait(lambda: revised(2))
        assert asked == ["lost"]
        fails.set()
        await wait(lambda: asyncio.sleep(0, len(asked) == 2))
        assert asked == ["lost", "reached"]
        stop.set()
        await asyncio.wait(running, timeout=5)
    assert [task.result() for task in running] == [None, None]


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_write_by_another_application_is_found_after_a_gap(
    database: Database, ada: Actor, restarted: bool
) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"a": 1})

    async def follow(act: Callable[[Feed], Awaitable[object]]) -> None:
        feed, stop = Feed(database), asyncio.Event()
        others = WritesByOthers(database, feed)
        async with leases.hold(database, "test", stop=stop) as lease:
            assert lease is not None
            others.granted(lease)
            running = [asyncio.create_task(feed.run(stop)), asyncio.create_task(others.run(stop))]
            await feed.caught_up()
            await act(feed)
            stop.set()
            await end(running, patience_s=5)

    async def write() -> None:
        await database.raw["projects"].update_one({"_id": made.id}, {"$set": {"canvasData": {"a": 3}}})

    async def save(feed: Feed) -> None:
        assert await canvas.replace(database, ada, made.id, {"a": 2}, based_on={0}) == 1
        await feed.caught_up()

    async def found(feed: Feed) -> None:
        async with asyncio.timeout(20):
            while (await canvas.read(database, ada, made.id)).canvas_revision < 2:  # noqa: ASYNC110 (it comes from elsewhere)
                await asyncio.sleep(0.02)

    async def lose(feed: Feed) -> None:
        await save(feed)
        feed._proven = False

        async def refused(*args: Any, **options: Any) -> Any:
            """The write, and a server that no longer has the position before it."""
            await write()
            raise OperationFailure("history lost", 286)

        with patch.object(database.raw, "watch", refused):
            feed.subscribe(["another"], print)  # the stream is opened again
            async with asyncio.timeout(5):
                while not feed.lost_after:  # noqa: ASYNC110 (it comes from elsewhere)
                    await asyncio.sleep(0.001)
        await found(feed)

    if restarted:
        await follow(save)
        await write()
        await follow(found)
    else:
        await follow(lose)
    live = Live(database, Feed(database))
    with live.follow(ada, made.id) as follower:
        await live.begin(follower, 1)
        (event,) = await follower.events(1)
        assert event.patch is None
    with pytest.raises(RevisionConflict):
        await canvas.replace(database, ada, made.id, {}, based_on={1})
