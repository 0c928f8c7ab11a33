"""The life of a project: what is kept, what is refused, what it weighs."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import bson
import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound, Unauthenticated
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.metering.limits.plans import NoFreePlan
from ximler.projects import projects, search
from ximler.projects.storage import MAX_CONTENT
from ximler.schema.project import Project


async def whole(database: Database, project_id: ObjectId) -> Project:
    return await database.projects.get({"_id": project_id}, deleted=True)


def weight(*values: Any) -> int:
    """Bytes of values as MongoDB keeps them: the size of a document of each, less that of one with an empty
    key.
    """
    return sum(len(bson.encode({"": value})) - len(bson.encode({"": None})) for value in values)


async def test_a_new_project_has_the_given_values(database: Database, ada: Actor) -> None:
    canvas = {"shapes": [1, 2.5, None, {"r": "ü"}]}
    made = await projects.create(
        database, ada, name="  Bridge ", description="of sighs", settings={"grid": True}, canvas_data=canvas
    )
    assert (made.name, made.description, made.settings, made.canvas_data) == (
        "Bridge",
        "of sighs",
        {"grid": True},
        canvas,
    )
    assert made.user_id == ada.user_id
    assert made.created_at == made.updated_at
    assert made.storage_size == weight(canvas, {"grid": True})
    assert await whole(database, made.id) == made
    bare = await projects.create(database, ada, name="bare")
    assert (bare.settings, bare.canvas_data, bare.storage_size) == ({}, {}, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [None, {}, [], "text", 5, 2.5, True, {"": 1}, {"a": {"b": [[], {}]}}, "nul \0 inside", [None], {"ключ": "ё"}],
)
async def test_any_json_is_stored_and_measured_consistently(database: Database, ada: Actor, value: Any) -> None:
    kept = {} if value is None else value
    made = await projects.create(database, ada, name="a", canvas_data=value)
    assert (await whole(database, made.id)).canvas_data == kept
    other = await projects.create(database, ada, name="b", canvas_data={"x": "y" * 50})
    changed = await projects.update(database, ada, other.id, {"canvas_data": value})
    assert (await whole(database, other.id)).canvas_data == kept
    measured = await projects.update(database, ada, made.id, {"settings": {}})  # the canvas is measured by the server
    assert made.storage_size == changed.storage_size == measured.storage_size == weight(kept) + 5


async def test_an_update_changes_only_the_given_fields(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="n", description="d", settings={"s": 1}, canvas_data={"c": 1})
    await database.raw["projects"].update_one({"_id": made.id}, {"$set": {"theirs": 7, "canvasData.more": 1}})
    changed = await projects.update(database, ada, made.id, {"name": " m "})
    assert (changed.name, changed.description) == ("m", "d")
    assert changed.updated_at > made.updated_at
    assert changed.created_at == made.created_at
    await projects.update(database, ada, made.id, {"settings": None, "description": None})
    raw = await database.raw["projects"].find_one({"_id": made.id})
    assert raw is not None
    assert raw["theirs"] == 7
    assert raw["canvasData"] == {"c": 1, "more": 1}
    assert raw["settings"] == {}
    assert "description" not in raw
    assert raw["searchTerms"] == ["=m", "m"]
    assert (await projects.update(database, ada, made.id, {})).name == "m"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " \n "}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": None}, "name"),
        ({"description": "a\0b"}, "description"),
        ({"description": "x" * 5001}, "description"),
        ({"settings": {"$a": 1}}, "settings"),
        ({"settings": {"a": {"b.c": 1}}}, "settings.a"),
        ({"canvas_data": {"a": [{"b": {"$c": 1}}]}}, "canvasData.a.0.b"),
        ({"canvas_data": {"a\0": 1}}, "canvasData"),
        ({"canvas_data": {"a": 2**63}}, "canvasData.a"),
        ({"canvas_data": {"a": "\ud800"}}, "canvasData.a"),
        ({"canvas_data": {"\ud800": 1}}, "canvasData"),
        ({"canvas_data": {"a": object()}}, "canvasData.a"),
        ({"canvas_data": {"a": datetime(2026, 1, 1)}}, "canvasData.a"),  # noqa: DTZ001 (the rejected input)
        ({"canvas_data": {1: "one"}}, "canvasData"),
    ],
)
async def test_unstorable_values_are_rejected_by_name_and_nothing_is_stored(
    database: Database, ada: Actor, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await projects.create(database, ada, **({"name": "n"} | given))
    assert list(refused.value.fields) == [field]
    assert await database.raw["projects"].count_documents({}) == 0
    assert await database.raw["gauges"].count_documents({}) == 0
    made = await projects.create(database, ada, name="n", canvas_data={"a": 1})
    with pytest.raises(Invalid) as refused:
        await projects.update(database, ada, made.id, given)
    assert list(refused.value.fields) == [field]
    assert await whole(database, made.id) == made


async def test_a_canvas_nests_as_deep_as_mongodb_allows_and_no_deeper(database: Database, ada: Actor) -> None:
    def nest(levels: int) -> dict[str, Any]:
        canvas: dict[str, Any] = {}
        for _ in range(levels - 1):
            canvas = {"a": canvas}
        return canvas

    made = await projects.create(database, ada, name="deep", canvas_data=nest(97))
    assert (await whole(database, made.id)).canvas_data == nest(97)
    for levels in (98, 99, 150, 10_000):
        with pytest.raises(Invalid) as refused:
            await projects.create(database, ada, name="deeper", canvas_data=nest(levels))
        assert list(refused.value.fields) == ["canvasData"]


@pytest.mark.slow
async def test_settings_of_up_to_16_megabytes_are_kept_and_more_is_refused_by_name(
    database: Database, ada: Actor
) -> None:
    most = {"x": "y" * (MAX_CONTENT - 13 - 5)}
    made = await projects.create(
        database, ada, name="ü" * 200, description="ü" * 5000, settings=most
    )  # beside the largest texts
    assert made.storage_size == MAX_CONTENT
    grown = {"x": most["x"] + "y"}
    for attempt in (
        projects.create(database, ada, name="n", settings=grown),
        projects.update(database, ada, made.id, {"settings": grown}),
        projects.update(database, ada, made.id, {"canvas_data": {"a": 1}}),
        projects.create(database, ada, name="n", settings={"x": "y" * 17_000_000}),
    ):
        with pytest.raises(Invalid, match="16,000,000") as refused:
            await attempt
        assert list(refused.value.fields) == ["settings"]
    assert await database.projects.count({}) == 1
    smaller = await projects.update(database, ada, made.id, {"settings": None, "canvas_data": {"x": "y" * 15_000_000}})
    assert smaller.storage_size == 15_000_013 + 5
    with pytest.raises(Invalid, match="63,999,000") as refused:
        await projects.create(database, ada, name="n", canvas_data={"x": ["y" * 16_000_000] * 4})
    assert list(refused.value.fields) == ["canvasData"]


async def test_an_unknown_field_of_an_update_is_refused(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="n")
    for name in ("user_id", "storage_size", "_id", "$set", "deleted_at"):
        with pytest.raises(Invalid) as refused:
            await projects.update(database, ada, made.id, {name: 1})
        assert list(refused.value.fields) == [name]


async def test_deleting_hides_and_restoring_brings_back_everything(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="n", description="d", canvas_data={"a": 1})
    gone = await projects.delete(database, ada, made.id)
    assert gone.deleted_at is not None
    assert (await projects.page(database, ada)).items == []
    for attempt in (
        projects.get(database, ada, made.id),
        projects.delete(database, ada, made.id),
        projects.update(database, ada, made.id, {"name": "m"}),
    ):
        with pytest.raises(NotFound):
            await attempt
    back = await projects.restore(database, ada, made.id)
    assert (back.name, back.deleted_at) == ("n", None)
    assert (await whole(database, made.id)).canvas_data == {"a": 1}
    with pytest.raises(NotFound):
        await projects.restore(database, ada, made.id)


@pytest.mark.slow
async def test_projects_of_other_users_are_not_found_by_any_operation(
    database: Database, ada: Actor, bob: Actor
) -> None:
    made = await projects.create(database, ada, name="n", canvas_data={"a": 1})
    gone = await projects.create(database, ada, name="g")
    await projects.delete(database, ada, gone.id)
    before = await database.raw["projects"].find({}).sort("_id").to_list()
    for attempt in (
        projects.get(database, bob, made.id),
        projects.update(database, bob, made.id, {"name": "taken"}),
        projects.update(database, bob, made.id, {"canvas_data": {}}),
        projects.delete(database, bob, made.id),
        projects.restore(database, bob, gone.id),
    ):
        with pytest.raises(NotFound, match="No such project"):
            await attempt
    assert await projects.canvases(database, bob, [made.id]) == {}
    assert await projects.settings_of(database, bob, [made.id]) == {}
    assert (await projects.page(database, bob)).items == []
    assert await database.raw["projects"].find({}).sort("_id").to_list() == before


async def test_anonymous_callers_have_no_projects(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="n")
    for attempt in (
        projects.create(database, Actor(), name="n"),
        projects.get(database, Actor(), made.id),
        projects.update(database, Actor(), made.id, {"name": "m"}),
        projects.delete(database, Actor(), made.id),
        projects.restore(database, Actor(), made.id),
        projects.page(database, Actor()),
        projects.canvases(database, Actor(), [made.id]),
        projects.settings_of(database, Actor(), [made.id]),
    ):
        with pytest.raises(Unauthenticated):
            await attempt


async def test_a_missing_free_plan_is_reported_with_the_remedy(database: Database, ada: Actor) -> None:
    await database.raw["plans"].delete_one({"id": "free"})
    with pytest.raises(NoFreePlan, match="ximler db seed"):
        await projects.create(database, ada, name="n")


async def test_changes_that_race_on_one_project_all_count(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="n")
    await asyncio.gather(
        projects.update(database, ada, made.id, {"name": "renamed"}),
        projects.update(database, ada, made.id, {"description": "described"}),
        projects.update(database, ada, made.id, {"settings": {"a": "b"}}),
        projects.update(database, ada, made.id, {"canvas_data": {"c": "d"}}),
    )
    after = await whole(database, made.id)
    assert (after.name, after.description, after.settings, after.canvas_data) == (
        "renamed",
        "described",
        {"a": "b"},
        {"c": "d"},
    )
    assert after.search_terms == ["=renamed", "renamed", "described"]
    assert after.storage_size == weight({"a": "b"}, {"c": "d"})


async def test_a_project_that_another_application_wrote_lives_the_same_life(database: Database, ada: Actor) -> None:
    """No timestamps, no sizes, no terms, a double for a number."""
    raw = {"userId": ada.user_id, "name": "theirs", "canvasData": {"a": 1}, "storageSize": 12.0, "__v": 0}
    project_id = (await database.raw["projects"].insert_one(raw)).inserted_id
    assert (await projects.get(database, ada, project_id)).storage_size == 12
    assert (await projects.canvases(database, ada, [project_id]))[project_id] == {"a": 1}
    changed = await projects.update(database, ada, project_id, {"settings": {"b": 1}})
    assert changed.storage_size == weight({"a": 1}, {"b": 1})
    await projects.update(database, ada, project_id, {"description": "ours"})
    await projects.delete(database, ada, project_id)
    await projects.restore(database, ada, project_id)
    kept = await database.raw["projects"].find_one({"_id": project_id})
    assert kept is not None
    assert (kept["__v"], kept["canvasData"], kept["searchTerms"]) == (0, {"a": 1}, ["=theirs", "theirs", "ours"])


async def test_a_project_that_cannot_be_read_fails_alone(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="readable")
    broken = {"userId": ada.user_id, "name": ["not", "a", "text"]}
    broken_id = (await database.raw["projects"].insert_one(broken, bypass_document_validation=True)).inserted_id
    assert [project.id for project in (await projects.page(database, ada)).items] == [made.id]
    for attempt in (
        projects.get(database, ada, broken_id),
        projects.update(database, ada, broken_id, {"description": "d"}),
        projects.delete(database, ada, broken_id),
    ):
        with pytest.raises(Conflict, match="Repair it"):
            await attempt


async def test_pages_contain_every_project_once(database: Database, ada: Actor, bob: Actor) -> None:
    """Equal times, missing times, and a project that appears while one reads."""
    now = database.clock.now()
    for owner in (ada, bob):
        await database.raw["projects"].insert_many(
            [{"userId": owner.user_id, "name": f"{n}", "createdAt": now - timedelta(seconds=n // 4)} for n in range(13)]
            + [{"userId": owner.user_id, "name": f"timeless {n}"} for n in range(4)]
        )
    expected = {found["_id"] async for found in database.raw["projects"].find({"userId": ada.user_id})}
    for size in (1, 2, 3, 5, 100):
        seen: list[ObjectId] = []
        after = None
        while True:
            page = await projects.page(database, ada, first=size, after=after)
            seen += [project.id for project in page.items]
            if not page.has_next:
                break
            assert page.end_cursor is not None
            after = decode_cursor(page.end_cursor)
        assert len(seen) == len(expected)
        assert set(seen) == expected


@pytest.mark.parametrize("first", [0, -1, 101, 2**40])
async def test_a_page_of_another_size_is_refused(database: Database, ada: Actor, first: int) -> None:
    with pytest.raises(Invalid) as refused:
        await projects.page(database, ada, first=first)
    assert list(refused.value.fields) == ["first"]


async def test_tags_and_a_star_filter_the_list(database: Database, ada: Actor, bob: Actor) -> None:
    one = await projects.create(database, ada, name="one", tags=["  Client  A ", "DRAFT", "draft"], starred=True)
    two = await projects.create(database, ada, name="two", tags=["draft"])
    await projects.create(database, bob, name="three", tags=["draft"], starred=True)
    assert (one.tags, one.starred, two.starred) == (["client a", "draft"], True, None)

    async def listed(**filters: Any) -> list[str]:
        return [each.name for each in (await projects.page(database, ada, **filters)).items]

    assert await listed(tagged=["Draft"]) == ["two", "one"]
    assert await listed(tagged=["draft", "client a"]) == ["one"]
    assert await listed(starred=True) == ["one"]
    assert await listed(starred=False, query="t") == ["two"]
    changed = await projects.update(database, ada, one.id, {"tags": None, "starred": False})
    assert (changed.tags, changed.starred) == ([], False)
    assert (await listed(tagged=["client a"]), await listed(starred=True)) == ([], [])
    stored = await database.raw["projects"].find_one({"_id": one.id})
    assert stored is not None
    assert not stored.keys() & {"tags", "starred"}
    wrong_types = {"$set": {"tags": ["x", 5], "starred": "yes", "description": 5}}
    await database.raw["projects"].update_one({"_id": two.id}, wrong_types, bypass_document_validation=True)
    assert [(each.tags, each.starred) for each in (await projects.page(database, ada)).items] == [([], False)] * 2
    for wrong in ([""], ["a" * 41], ["http://x.y"], [str(n) for n in range(21)]):
        with pytest.raises(Invalid):
            await projects.update(database, ada, one.id, {"tags": wrong})


async def test_a_project_is_restored_whose_settings_would_be_refused_today(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="old")
    refused = {"a.b": {"$c": "x" * 100}}
    await database.raw["projects"].update_one(
        {"_id": made.id}, [{"$set": {"settings": {"$literal": refused}, "name": "x" * 300}}]
    )
    await projects.delete(database, ada, made.id)
    await projects.restore(database, ada, made.id)
    assert (await projects.settings_of(database, ada, [made.id]))[made.id] == refused


async def test_projects_are_sorted_by_change_and_by_name(database: Database, ada: Actor) -> None:
    for name in ("plan 10", "Éclair", "Plan 2", "bridge", "Eclair plan", "plan 2", "Zoo", "apple"):
        words = search.terms(name)
        await database.projects.insert(Project(user_id=ada.require_user(), name=name, search_terms=words))
    zoo = (await projects.page(database, ada, query="zoo")).items[0]
    await projects.update(database, ada, zoo.id, {"description": "changed"})
    await database.raw["projects"].insert_one({"userId": ada.user_id, "name": "Old"})  # another application's: no times

    async def listed(sort: str, query: str | None = None) -> list[str]:
        order, found, after = projects.order_of(sort), list[str](), None
        while True:
            page = await projects.page(database, ada, query=query, first=2, after=order.decoded(after), sort=sort)
            found += [each.name for each in page.items]
            if not page.has_next:
                return found
            after = page.end_cursor

    by_name = ["apple", "bridge", "Éclair", "Eclair plan", "Old", "Plan 2", "plan 2", "plan 10", "Zoo"]
    assert sorted(await listed("NAME")) == sorted(by_name)
    assert await listed("NAME") == by_name
    assert (await listed("UPDATED"))[:2] == ["Zoo", "apple"]
    assert (await listed("UPDATED"))[-1] == (await listed("CREATED"))[-1] == "Old"
    assert (await listed("CREATED"))[0] == "apple"
    assert await listed("NAME", "plan") == ["Eclair plan", "Plan 2", "plan 2", "plan 10"]
    assert await listed("UPDATED", "plan") == ["plan 2", "Eclair plan", "Plan 2", "plan 10"]
    page = await projects.page(database, ada, first=1, sort="UPDATED")
    for other in (None, "CREATED", "NAME"):
        with pytest.raises(Invalid, match="cursor"):
            projects.order_of(other).decoded(page.end_cursor)
