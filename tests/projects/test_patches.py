"""Record patches: last writer wins per property, delete wins over edit, one command, applied once."""

import asyncio
import copy
import json
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, LimitExceeded, NotFound
from ximler.core.stopping import end
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import canvas, patches, projects, records, storage
from ximler.projects.canvas import WritesByOthers
from ximler.projects.live import Event, Live
from ximler.projects.patches import Outcome, Saver, SeqPassed
from ximler.projects.projects import RevisionConflict


class Canvas:
    """A project of Ada's, and the process that saves it."""

    def __init__(self, database: Database, ada: Actor, project: ObjectId) -> None:
        self.database, self.ada, self.id = database, ada, project
        self.saver = Saver(database)
        self._seq = 0

    async def save(self, client: str = "tab", seq: int | None = None, **change: Any) -> Outcome:
        self._seq += 1
        patch = {"client": client, "seq": seq or self._seq, **change}
        return await self.saver.save(self.ada, self.id, patch)

    async def read(self) -> Any:
        return (await canvas.read(self.database, self.ada, self.id)).canvas_data

    async def records(self) -> dict[str, Any]:
        return {record["id"]: record for record in (await self.read()).get("elements", [])}

    async def stored(self) -> dict[str, Any]:
        found = await self.database.raw["projects"].find_one({"_id": self.id})
        assert found is not None
        return found

    async def charged(self) -> tuple[int, int]:
        """The gauge, and the bytes that count for the project."""
        gauge = await self.database.raw["gauges"].find_one({"_id": self.ada.user_id})
        stored = await self.stored()
        assert gauge is not None
        return gauge["storageBytes"], stored["storageSize"] + stored.get("storageRoom", 0)


@pytest.fixture
async def drawing(database: Database, ada: Actor) -> Canvas:
    shapes = [{"id": name, "x": 0, "y": 0} for name in ("a", "b", "c")]
    made = await projects.create(database, ada, name="P", canvas_data={"elements": shapes, "appState": {"zoom": 1}})
    return Canvas(database, ada, made.id)


async def test_a_patch_puts_sets_and_removes_records(drawing: Canvas) -> None:
    assert await drawing.save(set={"a": {"x": 5}}) == Outcome(1)
    assert await drawing.save(put=[{"id": "d", "x": 1}]) == Outcome(2)
    assert await drawing.save(remove=["b"]) == Outcome(3)
    assert await drawing.save(put=[{"id": "a", "z": 1}, {"id": "e"}], set={"c": {"y": 2}}, remove=["d"]) == Outcome(4)
    assert await drawing.read() == {
        "elements": [{"id": "a", "z": 1}, {"id": "c", "x": 0, "y": 2}, {"id": "e"}],
        "appState": {"zoom": 1},
    }
    with pytest.raises(NotFound):
        await drawing.saver.save(Actor(kind="user", user_id=ObjectId()), drawing.id, {"client": "x", "seq": 1})


async def test_a_deleted_record_stays_deleted_and_the_rest_of_the_patch_holds(drawing: Canvas) -> None:
    await drawing.save("one", remove=["a"])
    assert await drawing.save("two", set={"a": {"x": 9}, "b": {"x": 9}}) == Outcome(2, ["a"])
    assert await drawing.records() == {"b": {"id": "b", "x": 9, "y": 0}, "c": {"id": "c", "x": 0, "y": 0}}


@pytest.mark.parametrize("first", ["raise", "move"])
async def test_two_editors_changes_of_different_properties_both_hold(drawing: Canvas, first: str) -> None:
    changes = {"raise": {"a": {"index": "a9"}}, "move": {"b": {"x": 7}}}
    for name in sorted(changes, key=lambda name: name != first):
        await drawing.save(name, set=changes[name])
    now = await drawing.records()
    assert (now["a"]["index"], now["b"]["x"]) == ("a9", 7)


async def test_a_small_patch_is_one_command_of_less_than_a_kilobyte_whatever_the_canvas(drawing: Canvas) -> None:
    await drawing.save(set={"a": {"x": 1}})
    for change in ({"set": {"b": {"x": 2.5, "y": 3.5, "color": "#ff0000"}}}, {"put": [{"id": "n"}]}, {"remove": ["n"]}):
        with round_trips() as trips:
            await drawing.save(**change)
        assert trips == [("update", "projects")]


async def test_patches_that_wait_at_the_same_time_go_as_one_command(drawing: Canvas) -> None:
    await asyncio.gather(*(drawing.save(f"tab{n}", 1, set={"a": {f"p{n}": n}}) for n in range(20)))
    with round_trips() as trips:
        saved = await asyncio.gather(*(drawing.save(f"tab{n}", 2, set={"a": {f"p{n}": -n}}) for n in range(20)))
    assert len(trips) <= 2
    assert {outcome.revision for outcome in saved} <= {(await drawing.stored())["canvasRevision"] - n for n in (0, 1)}
    assert (await drawing.records())["a"] == {"id": "a", "x": 0, "y": 0} | {f"p{n}": -n for n in range(20)}


async def test_records_of_many_editors_are_set_by_their_places(drawing: Canvas) -> None:
    names = [f"n{number}" for number in range(30)]
    await drawing.save(put=[{"id": name} for name in names])

    async def move(x: int, moved: list[str]) -> int:
        with round_trips() as trips:
            await asyncio.gather(*(drawing.save(f"tab-{each}", x, set={each: {"x": x}}) for each in moved))
        return len(trips)

    await move(1, names)
    assert await move(2, names) == 1
    await drawing.save(remove=["n0", "a"])  # the others move up
    await move(3, names[1:])
    other = Canvas(drawing.database, drawing.ada, drawing.id)
    await other.save("other", 1, remove=["n1"])
    await move(4, names[2:])
    found = await drawing.records()
    assert [found[name]["x"] for name in names[2:]] == [4] * 28
    # Another application turns the list round, at the same revision:
    # the places that this process knows are wrong.
    elements = (await drawing.read())["elements"]
    await drawing.database.raw["projects"].update_one(
        {"_id": drawing.id}, {"$set": {"canvasData.elements": elements[::-1]}}
    )
    await move(5, names[2:])
    found = await drawing.records()
    assert [found[name]["x"] for name in names[2:]] == [5] * 28
    assert "x" not in found["b"] or found["b"]["x"] == 0
    gone = await drawing.save("late", 1, set={"n5": {"x": 6}, "n1": {"x": 6}})
    assert gone.rejected == ["n1"]
    assert (await drawing.records())["n5"]["x"] == 6


@pytest.mark.slow
async def test_the_same_patch_again_is_answered_as_before_and_applied_once(drawing: Canvas) -> None:
    first = await drawing.save("one", 1, set={"a": {"x": 1}, "gone": {"x": 1}})
    for n in range(patches.LOGGED + 1):
        await drawing.save("two", set={"a": {"x": n + 10}})
    assert await drawing.save("one", 1, set={"a": {"x": 1}, "gone": {"x": 1}}) == first == Outcome(1, ["gone"])
    drawing.saver = Saver(drawing.database)  # as after a restart, or in another process
    assert await drawing.save("one", 1, set={"a": {"x": 1}, "gone": {"x": 1}}) == first
    assert (await drawing.records())["a"]["x"] == patches.LOGGED + 10
    assert len((await drawing.stored())["canvasLog"]) == patches.LOGGED


async def test_an_earlier_patch_again_is_answered_from_the_log_and_applied_once(drawing: Canvas) -> None:
    long = {f"{n:_<190}": {"x": 1} for n in range(30)}
    given_: list[dict[str, Any]] = [
        {"set": {"a": {"x": 1}, "gone": {"x": 1}}},  # by the pipeline
        {"put": [{"id": "big", "text": "y" * patches.MAX_LOGGED}]},  # too large for the log
        {"remove": ["b"], "set": {"b2": {"x": 1}}},
        {"set": {"a": {"x": 4}}},
        {"set": long},  # more ids in vain than the log keeps
        {"set": {"a": {"x": 6}}},
    ]
    first = [await drawing.save("one", seq, **change) for seq, change in enumerate(given_, 1)]
    assert [outcome.rejected for outcome in first] == [["gone"], [], ["b2"], [], list(long), []]
    together = await asyncio.gather(*(drawing.save(f"tab{n}", 1, set={"a": {"x": 7}, f"g{n}": {}}) for n in range(30)))
    await canvas.patch(drawing.database, drawing.ada, drawing.id, [], based_on=None)
    await canvas.replace(drawing.database, drawing.ada, drawing.id, await drawing.read(), based_on=None)
    await drawing.save("two", 1, set={"a": {"x": 8}})
    await asyncio.gather(*(drawing.save(f"tab{n}", 2, set={"a": {"x": 8}}) for n in range(30)))
    before = await drawing.stored()
    for _ in range(2):
        for seq in (1, 2, 3, 4, 6):
            assert await drawing.save("one", seq, set={"a": {"x": 0}}) == first[seq - 1]
        with pytest.raises(SeqPassed):
            await drawing.save("one", 5, **given_[4])
        again = await asyncio.gather(*(drawing.save(f"tab{n}", 1, set={"a": {"x": 0}}) for n in range(30)))
        assert again == together
        drawing.saver = Saver(drawing.database)  # as after a kill, or in another process
    assert await drawing.stored() == before
    for n in range(patches.LOGGED):
        await drawing.save("two", 2 + n, set={"a": {"x": n}})
    with pytest.raises(SeqPassed):
        await drawing.save("one", 4, **given_[3])


@pytest.mark.slow
async def test_followers_receive_patches_that_are_alike_in_each_place_of_the_log(drawing: Canvas) -> None:
    feed, stop = Feed(drawing.database), asyncio.Event()
    live = Live(drawing.database, feed, drawing.saver.recent)
    running = [asyncio.create_task(feed.run(stop))]
    await feed.caught_up()
    large = {"text": "y" * patches.MAX_LOGGED}
    alike = [
        {"set": {"a": {"x": 1}, "gone": {"x": 1}}},
        {"put": [{"id": "a", **large}], "set": {"b": {"x": 1}, "c": {}}},
    ]
    with live.follow(drawing.ada, drawing.id) as follower:
        await live.begin(follower, 0)
        for seq in range(1, 2 * patches.LOGGED + 3):
            await drawing.save("tab", seq, **alike[seq % 2])
        await feed.caught_up()
        events = await follower.events(1)
    stop.set()
    await end(running, patience_s=5)
    assert [event.revision for event in events] == list(range(1, 2 * patches.LOGGED + 3))
    told = [json.loads(event.patch or b"{}") for event in events]
    assert [each.pop("by", None) for each in told] == [[["tab", seq]] for seq in range(1, 2 * patches.LOGGED + 3)]
    assert all({k: v for k, v in each.items() if k != "revision"} == alike[each["revision"] % 2] for each in told)


async def test_a_client_that_is_forgotten_is_still_known_from_the_log(drawing: Canvas) -> None:
    count = 2 * patches.MAX_CLIENTS

    def all_of_them() -> Any:
        return asyncio.gather(*(drawing.save(f"tab{n}", 2, put=[{"id": f"n{n}"}]) for n in range(count)))

    first = await all_of_them()
    await drawing.save("late", 1, remove=[f"n{n}" for n in range(count)])
    assert len((await drawing.stored())["canvasClients"]) < patches.MAX_CLIENTS
    drawing.saver = Saver(drawing.database)
    assert await all_of_them() == first
    assert len(await drawing.records()) == 3
    with pytest.raises(SeqPassed):
        await drawing.save("tab0", 1, put=[{"id": "n0"}])
    assert (await drawing.save("tab0", 3, put=[{"id": "n0"}])).revision == max(each.revision for each in first) + 2


@pytest.mark.slow
async def test_savers_of_several_processes_and_other_changes_take_turns(drawing: Canvas) -> None:
    others = [Saver(drawing.database) for _ in range(3)]

    async def edit(n: int) -> None:
        for seq in range(1, 9):
            patch = {"client": f"tab{n}", "seq": seq, "set": {"a": {f"p{n}": seq}}, "put": [{"id": f"{n}-{seq}"}]}
            await others[n % 3].save(drawing.ada, drawing.id, patch)

    async def rename() -> None:
        for n in range(5):
            await projects.update(drawing.database, drawing.ada, drawing.id, {"settings": {"n": n}})

    await asyncio.gather(*map(edit, range(6)), rename())
    now = await drawing.records()
    assert now["a"] == {"id": "a", "x": 0, "y": 0} | {f"p{n}": 8 for n in range(6)}
    assert now.keys() - {"a", "b", "c"} == {f"{n}-{seq}" for n in range(6) for seq in range(1, 9)}
    gauge, charged = await drawing.charged()
    assert gauge == charged


async def test_storage_is_reserved_ahead_and_exact_at_rest(drawing: Canvas) -> None:
    for n in range(3):
        await drawing.save(put=[{"id": f"n{n}", "text": "y" * 30_000}])
        gauge, charged = await drawing.charged()
        assert gauge == charged
    await drawing.save(remove=["n1"])
    await drawing.saver.close()
    gauge, charged = await drawing.charged()
    stored = await drawing.stored()
    measured = sum(storage.size_of(name, stored[name]) for name in ("canvasData", "canvasLog", "canvasClients"))
    assert gauge == charged == stored["storageSize"] == measured + 5
    await canvas.replace(drawing.database, drawing.ada, drawing.id, {}, based_on=None)
    kept = 10 + sum(storage.size_of(name, stored[name]) for name in ("canvasLog", "canvasClients"))
    assert await drawing.charged() == (kept, kept)


async def test_ids_that_are_set_in_vain_count_as_storage(drawing: Canvas) -> None:
    missing = {f"{n:_<200}": {"x": 1} for n in range(100)}
    for client in ("a", "b"):
        await drawing.saver.save(drawing.ada, drawing.id, {"client": client, "seq": 1, "set": missing})
        gauge, charged = await drawing.charged()
        assert gauge == charged
    await drawing.saver.close()
    assert (await drawing.charged())[0] > 2 * 100 * 200


@pytest.mark.slow
async def test_a_patch_beyond_the_plan_is_refused_alone_and_removing_is_always_possible(drawing: Canvas) -> None:
    await drawing.save(put=[{"id": "big", "text": "y" * 20_000}])
    await drawing.saver.close()
    gauge, _ = await drawing.charged()
    plans = drawing.database.raw["plans"]
    await plans.update_one({"id": "free"}, {"$set": {"limits.storage": (gauge + 1000) / 1e9}})
    results = await asyncio.gather(
        drawing.save("one", put=[{"id": "more", "text": "y" * 2000}]),
        drawing.save("two", set={"a": {"x": 1}}),
        return_exceptions=True,
    )
    assert isinstance(results[0], QuotaExceeded)
    assert isinstance(results[1], Outcome)
    await plans.update_one({"id": "free"}, {"$set": {"limits.storage": 0}})
    drawing.saver = Saver(drawing.database)
    await drawing.saver.close()
    await storage.resize(drawing.database, drawing.ada.require_user(), drawing.id, room=0)
    with pytest.raises(QuotaExceeded):
        await drawing.save("two", set={"b": {"x": 1}})
    shorter = [{"op": "remove", "path": "/elements/0"}]  # by less than it takes in the log
    await canvas.patch(drawing.database, drawing.ada, drawing.id, shorter, based_on=None)
    await drawing.save("two", remove=["big"])
    await drawing.saver.close()
    gauge, charged = await drawing.charged()
    assert gauge == charged < 2000


@pytest.mark.parametrize(
    ("data", "declaration", "change", "expected"),
    [
        ({}, None, {"put": [{"id": "n"}]}, {"elements": [{"id": "n"}]}),
        ({"k": 1}, None, {"put": [{"id": "n"}], "set": {"m": {"x": 1}}}, {"k": 1, "elements": [{"id": "n"}]}),
        ({}, {"list": "shapes", "id": "key"}, {"put": [{"key": "n"}]}, {"shapes": [{"key": "n"}]}),
        ({"elements": [1, [{"id": "n"}], {"id": 5}, None]}, None, {"set": {"n": {"x": 1}}, "remove": ["5"]}, None),
        ({"elements": [{"id": "n"}]}, None, {"set": {"n": {"": 1, "0": 2, "a b": "$x"}}},
         {"elements": [{"id": "n", "": 1, "0": 2, "a b": "$x"}]}),
        ({"elements": [{"id": "$n"}]}, None, {"set": {"$n": {"x": "$id"}, "a.b": {"x": 1}}, "put": [{"id": "$$ROOT"}]},
         {"elements": [{"id": "$n", "x": "$id"}, {"id": "$$ROOT"}]}),
    ],
)  # fmt: skip
async def test_any_canvas_and_any_id_can_be_patched(
    database: Database, ada: Actor, data: Any, declaration: Any, change: Any, expected: Any
) -> None:
    kept = {} if declaration is None else {"records": declaration}
    made = await projects.create(database, ada, name="P", canvas_data=data, settings=kept)
    drawing = Canvas(database, ada, made.id)
    assert (await drawing.save(**change)).revision == 1
    assert await drawing.read() == (data if expected is None else expected)


@pytest.mark.parametrize("data", [[{"elements": []}], {"elements": {"a": 1}}, {"elements": 5}])
async def test_a_canvas_without_a_list_of_records_is_left_as_it_is(database: Database, ada: Actor, data: Any) -> None:
    made = await projects.create(database, ada, name="P", canvas_data=data)
    drawing = Canvas(database, ada, made.id)
    for change in ({"put": [{"id": "n"}]}, {"set": {"a": {"x": 1}}}, {"put": [{"id": "n"}], "remove": ["a"]}):
        with pytest.raises(Invalid, match="list 'elements'"):
            await drawing.save(**change)
    assert await drawing.read() == data


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"put": {}}, "put"),
        ({"put": [1]}, "put/0"),
        ({"put": [{"x": 1}]}, "put/0/id"),
        ({"put": [{"id": "a"}], "remove": ["a"]}, "remove/0"),
        ({"set": {"a": 1}}, "set/a"),
        ({"set": {"a": {"id": "b"}}}, "set/a"),
        ({"set": {"a": {"x.y": 1}}}, "set"),
        ({"set": {"a": {"$inc": 1}}}, "set"),
        ({"put": [{"id": "a", "b": {"$x": 1}}]}, "put"),
        ({"remove": [1]}, "remove/0"),
        ({"remove": [""]}, "remove/0"),
        ({"remove": ["x"] * 1001}, "patch"),
        ({"client": "a.b"}, "client"),
        ({"client": "$a"}, "client"),
        ({"seq": 0}, "seq"),
        ({"seq": True}, "seq"),
        ({"unset": {}}, "unset"),
    ],
)  # fmt: skip
def test_a_malformed_patch_is_refused_with_its_place(change: Any, place: str) -> None:
    with pytest.raises(Invalid) as refused:
        records.parse({"client": "tab", "seq": 1, **change})
    assert next(iter(refused.value.fields)).startswith(place)


names = st.sampled_from(["a", "b", "c", "d"])
properties = st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 3), min_size=1)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    kinds = draw(st.dictionaries(names, st.sampled_from(["put", "set", "remove"]), min_size=1))
    made: dict[str, Any] = {"put": [], "set": {}, "remove": []}
    for name, kind in kinds.items():
        if kind == "put":
            made["put"].append({"id": name, **draw(properties)})
        elif kind == "set":
            made["set"][name] = draw(properties)
        else:
            made["remove"].append(name)
    return made


def applied(state: dict[str, Any], change: dict[str, Any]) -> list[str]:
    """The model: the state is changed in place; returns the rejected ids."""
    for name in change["remove"]:
        state.pop(name, None)
    for record in change["put"]:
        state[record["id"]] = record
    for name, values in change["set"].items():
        if name in state:
            state[name] = state[name] | values
    return [name for name in change["set"] if name not in state]


@pytest.mark.slow
@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # generating takes seconds beside busy processors
@given(st.lists(changes(), min_size=1, max_size=6), st.sets(names))
def test_composed_patches_have_the_effect_of_one_after_the_other(given_: list[dict[str, Any]], first: set[str]) -> None:
    state = {name: {"id": name, "x": 9} for name in sorted(first)}
    start = copy.deepcopy(state)
    rejected = [applied(state, change) for change in given_]
    composed = records.compose([records.parse({"client": "t", "seq": 1, **change}) for change in given_])
    together = copy.deepcopy(start)
    applied(together, {"put": list(composed.put.values()), "set": composed.set, "remove": composed.remove})
    assert together == state
    told = zip(composed.depends, composed.rejected, strict=True)
    assert [set(gone) for gone in rejected] == [
        {name for name in depends if name not in start} | set(always) for depends, always in told
    ]


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(batches=st.lists(st.lists(changes(), min_size=1, max_size=3), min_size=1, max_size=5))
async def test_the_database_has_the_effect_of_the_model(
    database: Database, ada: Actor, batches: list[list[dict[str, Any]]]
) -> None:
    await database.raw["projects"].delete_many({})
    await database.raw["gauges"].delete_many({})
    made = await projects.create(database, ada, name="P", canvas_data={"elements": [{"id": "a"}, {"id": "b"}]})
    drawing = Canvas(database, ada, made.id)
    state: dict[str, Any] = {"a": {"id": "a"}, "b": {"id": "b"}}
    for number, batch in enumerate(batches, 1):
        waiting = (drawing.save(f"tab{n}", number, **change) for n, change in enumerate(batch))
        outcomes = await asyncio.gather(*waiting)
        assert [set(outcome.rejected) for outcome in outcomes] == [set(applied(state, change)) for change in batch]
        assert await drawing.records() == state


async def test_the_records_of_a_patch_are_fewer_in_a_large_canvas(
    drawing: Canvas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "_MAX_COMPARED", 60)  # 20 at once of 3 records
    await drawing.save(put=[{"id": f"n{number}"} for number in range(17)])
    with pytest.raises(Invalid, match="names 9 records: 8 at once"):
        await drawing.save(put=[{"id": f"m{number}"} for number in range(9)])
    changes = (drawing.save(f"tab{tab}", 1, put=[{"id": f"{tab}-{each}"} for each in range(8)]) for tab in range(3))
    await asyncio.gather(*changes)  # one after the other
    assert len(await drawing.records()) == 3 + 17 + 24


async def test_large_patches_do_not_pile_up(drawing: Canvas) -> None:
    patch = {"client": "tab", "seq": 1, "put": [{"id": "n"}]}
    waiting = [drawing.saver.save(drawing.ada, drawing.id, patch | {"seq": seq}, size=15_000_000) for seq in (1, 2, 3)]
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in found] == [Outcome, Outcome, LimitExceeded]


ODD = [
    {"canvasLog": "text"},
    {"canvasLog": [1, 2]},
    {"canvasLog": None, "canvasClients": None},
    {"canvasClients": 5},
    {
        "canvasClients": {"tab": 5, "two": {"s": "x"}},
        "canvasLog": {"0": 1, "1": {"r": "x"}, "2": {"p": b"{}"}, "x": None},
    },
]


@pytest.mark.parametrize("odd", ODD, ids=str)
async def test_a_log_that_another_application_wrote_is_read_as_none(drawing: Canvas, odd: dict[str, Any]) -> None:
    await drawing.save(set={"a": {"x": 1}})
    await drawing.database.raw["projects"].update_one({"_id": drawing.id}, {"$set": odd})
    live = Live(drawing.database, Feed(drawing.database))
    with live.follow(drawing.ada, drawing.id) as follower:
        await live.begin(follower, 0)
        (event,) = await follower.events(1)
        assert event == Event(1) or "canvasLog" not in odd
    drawing.saver = Saver(drawing.database)
    assert await drawing.save(set={"a": {"x": 2}}) == Outcome(2)
    await drawing.saver.close()
    for revision, path in [(3, "/title"), (4, "/elements/0")]:  # one by its path, one applied to the value
        await drawing.database.raw["projects"].update_one({"_id": drawing.id}, {"$set": odd})
        operations = [{"op": "add", "path": path, "value": {}}]
        saved = await canvas.patch(drawing.database, drawing.ada, drawing.id, operations, based_on={revision - 1})
        assert saved == revision
    gauge, charged = await drawing.charged()
    assert gauge == charged
    assert await canvas.replace(drawing.database, drawing.ada, drawing.id, {}, based_on=None) == 5


async def test_releases_take_entries_of_each_others_logs_as_none(drawing: Canvas) -> None:
    projects = drawing.database.raw["projects"]
    await drawing.save(set={"a": {"x": 1}})
    stored = await projects.find_one({"_id": drawing.id})
    assert stored is not None
    assert stored["canvasLog"]["1"].keys() == {"r", "b", "q"}  # the earlier release reads `p`, without its last byte
    earlier = {"r": 2, "p": b'{"revision":2,"by":[["tab",2]],"set":{"a":{"x":2}}}'}
    feed, stop = Feed(drawing.database), asyncio.Event()
    live, running = Live(drawing.database, feed), asyncio.create_task(feed.run(stop))
    await feed.caught_up()
    with live.follow(drawing.ada, drawing.id) as following, live.follow(drawing.ada, drawing.id) as late:
        await live.begin(following, 1)
        await projects.update_one({"_id": drawing.id}, {"$set": {"canvasRevision": 2, "canvasLog.2": earlier}})
        await feed.caught_up()
        assert await following.events(5) == [Event(2)]
        await live.begin(late, 0)
        assert await late.events(5) == [Event(2)]
    stop.set()
    await end([running], patience_s=5)


@pytest.mark.parametrize("followed", [False, True])
async def test_no_revision_is_used_again_after_another_application_replaced_the_project(
    drawing: Canvas, followed: bool
) -> None:
    database = drawing.database
    feed, stop = Feed(database), asyncio.Event()
    live, others = Live(database, feed), WritesByOthers(database, feed)
    running = [asyncio.create_task(run(stop)) for run in (feed.run, others.run)] if followed else []
    if followed:
        await feed.caught_up()
    for n in range(3):
        await drawing.save(set={"a": {"x": n}})
    with live.follow(drawing.ada, drawing.id) as follower:
        await live.begin(follower, 3)
        theirs = {"userId": drawing.ada.user_id, "name": "P", "canvasData": {"elements": [{"id": "z", "x": 1}]}}
        await database.raw["projects"].replace_one({"_id": drawing.id}, theirs)
        saved = await drawing.save(set={"z": {"y": 2}, "a": {"x": 9}})
        assert (saved.revision > 3, saved.rejected) == (True, ["a"])
        if followed:
            await feed.caught_up()
            assert any(event.patch is None for event in await follower.events(1))  # the canvas is to be read again
    assert await drawing.records() == {"z": {"id": "z", "x": 1, "y": 2}}
    again = await drawing.save(set={"z": {"y": 3}})
    assert again.revision > saved.revision
    with pytest.raises(RevisionConflict):
        await canvas.replace(database, drawing.ada, drawing.id, {}, based_on={0, 1, 2, 3, saved.revision})
    stop.set()
    await end(running, patience_s=5)
