"""Typed collections: the rules that hold on every path, paging, transactions."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.database.documents import DAY, coupon, entry, project, user
from tests.deleting import restore, soft_delete

from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.collection import TypedCollection
from ximler.database.failures import DocumentExists
from ximler.schema.gauge import GAUGES, Gauge
from ximler.schema.plan import Plan, PlanLimits
from ximler.schema.project import Project

LATER = timedelta(days=40)


async def raw_of(collection: TypedCollection[Any], key: Any) -> dict[str, Any]:
    found = await collection.raw.find_one({"_id": key})
    assert found is not None
    return found


class Clocks:
    """Sends the server's clock as this process sees it forty days ahead; `seen` is what it shows."""

    def __init__(self, database: Database) -> None:
        self._clock = database.clock

    def travel(self) -> None:
        self._clock.offset_ms = int(LATER.total_seconds() * 1000)

    def is_now(self, moment: datetime) -> bool:
        return timedelta(0) <= self._clock.now() - moment < timedelta(seconds=30)


@pytest.fixture
def clocks(database: Database) -> Clocks:
    return Clocks(database)


# Timestamps


async def test_an_insert_is_stamped_by_the_server_s_clock(database: Database, clocks: Clocks) -> None:
    clocks.travel()
    made = await database.projects.insert(project())
    await database.projects.insert_many([project("many")])
    many = await database.projects.get({"name": "many"})
    for read in (made, await database.projects.get(made.id), many):
        assert clocks.is_now(read.created_at)
        assert read.updated_at == read.created_at


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.patch({"name": "Bridge"}, {"$set": {"description": "x"}}),
        lambda c: c.patch({"name": "Bridge"}, {}),
        lambda c: c.patch({"name": "Bridge"}, {"$inc": {"storageSize": 1}}),
        lambda c: c.patch({"name": "Bridge"}, {"$unset": {"description": ""}}),
        lambda c: c.patch_many({"name": "Bridge"}, {"$set": {"description": "x"}}),
        lambda c: c.find_and_patch({"name": "Bridge"}, {"$set": {"description": "x"}}),
        lambda c: c.upsert({"name": "Bridge"}, {"$set": {"description": "x"}}, fresh=project("fresh")),
        lambda c: soft_delete(c, {"name": "Bridge"}),
    ],
    ids=["patch", "nothing", "inc", "unset", "patch_many", "find_and_patch", "upsert", "soft_delete"],
)
async def test_every_update_moves_updated_at_and_never_created_at(
    database: Database, clocks: Clocks, change: Callable[[TypedCollection[Project]], Awaitable[object]]
) -> None:
    made = await database.projects.insert(project())
    clocks.travel()
    await change(database.projects)
    read = await database.projects.get(made.id, deleted=True)
    assert read.created_at == made.created_at
    assert clocks.is_now(read.updated_at)


async def test_restoring_moves_updated_at(database: Database, clocks: Clocks) -> None:
    made = await database.projects.insert(project())
    await soft_delete(database.projects, {"_id": made.id})
    clocks.travel()
    assert await restore(database.projects, {"_id": made.id})
    read = await database.projects.get(made.id)
    assert clocks.is_now(read.updated_at)
    assert read.deleted_at is None


async def test_an_upsert_that_inserts_stamps_both(database: Database, clocks: Clocks) -> None:
    clocks.travel()
    assert await database.coupons.upsert({"code": "SPRING"}, {"$inc": {"usedCount": 1}}, fresh=coupon(created_at=DAY))
    read = await database.coupons.get({"code": "SPRING"})
    assert read.created_at == DAY, "a given time is kept"
    assert clocks.is_now(read.updated_at)


async def test_collections_without_updated_at_get_none(database: Database) -> None:
    made = await database.audit_logs.insert(entry())
    assert await database.audit_logs.patch({"_id": made.id}, {"$set": {"ipAddress": "::1"}})
    assert "updatedAt" not in await raw_of(database.audit_logs, made.id)


# Setters


async def test_setters_apply_to_filters_on_every_path(database: Database) -> None:
    """The code is stored as SPRING, and is found however it is typed."""
    coupons = database.coupons
    made = await coupons.insert(coupon("spring"))
    assert made.code == "SPRING"
    assert await coupons.find_one({"code": "Spring"})
    assert await coupons.get({"code": {"$eq": "spring"}})
    assert await coupons.find({"$and": [{"$or": [{"code": "spring"}, {"code": "x"}]}]})
    assert await coupons.find({"code": {"$in": ["spring", "y"]}})
    assert await coupons.find({"code": {"$nin": ["spring"]}, "name": made.name}) == []
    assert await coupons.find({"code": {"$ne": "spring"}, "name": made.name}) == []
    assert [found.code async for found in coupons.stream({"code": "spring"})] == ["SPRING"]
    assert await coupons.count({"code": "spring"}) == 1
    assert (await coupons.page({"code": "spring"})).items
    assert await coupons.patch({"code": "spring"}, {"$set": {"name": "x"}})
    assert await coupons.patch_many({"code": "spring"}, {"$set": {"name": "x"}}) == 1
    assert await coupons.find_and_patch({"code": "spring"}, {"$set": {"name": "x"}})
    assert not await coupons.upsert({"code": "spring"}, {"$set": {"name": "x"}}, fresh=coupon("spring"))
    assert await coupons.delete({"code": "spring"})
    await coupons.insert(coupon("spring"))
    assert await coupons.delete_many({"code": "spring"}) == 1


async def test_setters_apply_on_every_page_of_a_list(database: Database) -> None:
    await database.projects.insert_many([project("Bridge") for _ in range(3)])
    first = await database.projects.page({"name": " Bridge "}, first=2)
    assert first.end_cursor
    second = await database.projects.page({"name": " Bridge "}, first=2, after=decode_cursor(first.end_cursor))
    assert len(second.items) == 1


async def test_setters_apply_when_a_deleted_document_is_restored(database: Database) -> None:
    await database.users.insert(user("ada@example.com"))
    assert await soft_delete(database.users, {"email": "ADA@example.com"})
    assert await restore(database.users, {"email": "ADA@example.com"})


async def test_a_pattern_or_a_null_in_a_filter_is_left_as_it_is(database: Database) -> None:
    await database.users.insert(user("ada@example.com"))
    assert await database.users.find({"email": re.compile("^ada")})
    assert await database.users.find({"email": {"$regex": "^ADA", "$options": "i"}})
    assert await database.users.find({"email": {"$exists": True}})
    assert await database.users.find({"email": None}) == []


async def test_an_upsert_stores_its_filter_with_setters_applied(database: Database) -> None:
    assert await database.coupons.upsert({"code": "summer"}, {"$set": {"name": "Summer"}}, fresh=coupon("other"))
    assert (await database.coupons.get({"name": "Summer"})).code == "SUMMER"


# Soft deletion


async def test_deleted_documents_are_left_out_of_every_read_and_write_unless_asked_for(database: Database) -> None:
    projects = database.projects
    kept, gone = await projects.insert(project()), await projects.insert(project())
    assert await soft_delete(projects, {"_id": gone.id})
    await database.raw.projects.update_one({"_id": kept.id}, {"$set": {"deletedAt": None}})  # as Mongoose may
    both = {"name": "Bridge"}
    ids = {kept.id, gone.id}

    assert [found.id for found in await projects.find(both)] == [kept.id]
    assert {found.id for found in await projects.find(both, deleted=True)} == ids
    assert [found.id async for found in projects.stream(both)] == [kept.id]
    assert {found.id async for found in projects.stream(both, deleted=True)} == ids
    assert [found.id for found in (await projects.page(both)).items] == [kept.id]
    assert {found.id for found in (await projects.page(both, deleted=True)).items} == ids
    assert (await projects.count(both), await projects.count(both, deleted=True)) == (1, 2)
    assert await projects.find_one({"_id": gone.id}) is None
    assert await projects.find_one({"_id": gone.id}, deleted=True)
    with pytest.raises(NotFound, match="No such project"):
        await projects.get(gone.id)
    assert (await projects.get(gone.id, deleted=True)).deleted_at
    assert (await projects.find_by("userId", [gone.user_id])) == {gone.user_id: []}

    change = {"$set": {"description": "changed"}}
    assert not await projects.patch({"_id": gone.id}, change)
    assert await projects.find_and_patch({"_id": gone.id}, change) is None
    assert await projects.patch_many(both, change) == 1
    assert not await soft_delete(projects, {"_id": gone.id}), "its time of deletion stays the first"
    assert (await projects.get(gone.id, deleted=True)).description is None
    assert await projects.patch({"_id": gone.id}, change, deleted=True)
    assert await projects.patch_many(both, change, deleted=True) == 2
    assert await projects.find_and_patch({"_id": gone.id}, change, deleted=True)

    assert not await restore(projects, {"_id": kept.id})
    assert await restore(projects, {"_id": gone.id})
    assert not await restore(projects, {"_id": gone.id})
    assert await projects.count(both) == 2


async def test_a_filter_on_the_time_of_deletion_does_not_include_deleted_documents(database: Database) -> None:
    gone = await database.projects.insert(project())
    await soft_delete(database.projects, {"_id": gone.id})
    for where in ({"deletedAt": {"$ne": None}}, {"$or": [{"deletedAt": {"$gt": DAY}}]}, {"deletedAt": {"$gt": DAY}}):
        assert await database.projects.find(where) == []
        assert (await database.projects.page(where)).items == []
        assert not await database.projects.patch(where, {})
        assert len(await database.projects.find(where, deleted=True)) == 1
    assert len(await database.projects.find({"deletedAt": {"$lt": database.clock.now()}}, deleted=True)) == 1


async def test_permanent_removal_includes_deleted_documents(database: Database) -> None:
    gone = await database.projects.insert(project())
    await soft_delete(database.projects, {"_id": gone.id})
    assert await database.projects.delete({"_id": gone.id})
    assert not await database.projects.delete({"_id": gone.id})
    assert await database.projects.delete_many({}) == 0


async def test_an_upsert_does_not_restore_deleted_documents(database: Database) -> None:
    gone = await database.users.insert(user("ada@example.com"))
    await soft_delete(database.users, {"_id": gone.id})
    with pytest.raises(DocumentExists, match="email"):
        await database.users.upsert({"email": "ada@example.com"}, {}, fresh=user("ada@example.com"))
    kept = await database.projects.insert(project(description="old"))
    await soft_delete(database.projects, {"_id": kept.id})
    assert await database.projects.upsert({"name": "Bridge"}, {"$set": {"description": "new"}}, fresh=project())
    assert (await database.projects.get(kept.id, deleted=True)).description == "old"
    (made,) = await database.projects.find({"name": "Bridge"})
    assert "deletedAt" not in await raw_of(database.projects, made.id)


async def test_collections_without_soft_deletion_reject_the_option(database: Database) -> None:
    with pytest.raises(Invalid, match="deletedAt: is not a field of Payment"):
        await soft_delete(database.payments, {})


# Unique indexes, validators, sizes


@pytest.mark.parametrize("path", ["insert", "insert_many", "unordered", "patch", "find_and_patch", "upsert"])
async def test_a_second_document_with_a_unique_value_is_refused_naming_the_field(database: Database, path: str) -> None:
    users = database.users
    await users.insert(user("ada@example.com"))
    other = await users.insert(user("bob@example.com"))
    change = {"$set": {"email": "ADA@example.com"}}
    eve, ada, joe = user("eve@example.com"), user("Ada@Example.com"), user("joe@example.com")
    attempt = {
        "insert": lambda: users.insert(ada),
        "insert_many": lambda: users.insert_many([eve, ada, joe]),
        "unordered": lambda: users.insert_many([ada, eve], ordered=False),
        "patch": lambda: users.patch({"_id": other.id}, change),
        "find_and_patch": lambda: users.find_and_patch({"_id": other.id}, change),
        "upsert": lambda: users.upsert({"_id": other.id}, change, fresh=joe),
    }[path]
    with pytest.raises(DocumentExists) as caught:
        await attempt()
    assert caught.value.fields == {"email": "is already taken"}
    assert caught.value.code == "ALREADY_EXISTS"
    assert isinstance(caught.value, Conflict)
    assert "example.com" not in caught.value.message
    assert await users.count({"email": "eve@example.com"}) == (path in ("insert_many", "unordered"))
    assert await users.count({"email": "joe@example.com"}) == 0


async def test_an_id_that_is_taken_is_named_as_such(database: Database) -> None:
    made = await database.projects.insert(project())
    with pytest.raises(DocumentExists) as caught:
        await database.projects.insert(project(id=made.id))
    assert caught.value.fields == {"_id": "is already taken"}


async def test_rejections_by_the_validator_name_the_field_on_every_path(database: Database) -> None:
    """Ours are refused before; these are what only the server sees."""
    plans = database.plans
    for change in (
        lambda: plans.raw.update_one({"id": "free"}, {"$set": {"name": 5}}),
        lambda: plans.raw.update_many({}, {"$set": {"name": 5}}),
        lambda: plans.raw.insert_one({"name": 5}),
        lambda: plans.raw.insert_many([{"name": 5}, {"_id": 2}]),
        lambda: plans.raw.find_one_and_update({"id": "free"}, {"$set": {"name": 5}}),
        lambda: plans.raw.find_one_and_update({"id": "none"}, {"$set": {"name": 5}}, upsert=True),
    ):
        with pytest.raises(Invalid) as caught:
            await plans._run(change())
        assert caught.value.fields["name"] == "must be string, not int"
        assert caught.value.message.startswith("plans refused the document: ")
    assert await plans.count({}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [16, 17, 40])
async def test_a_document_larger_than_16_mb_is_refused_and_nothing_is_stored(
    database: Database, megabytes: int
) -> None:
    large = project(canvas_data={"blob": "x" * (megabytes * 1024 * 1024)})
    for insert in (
        lambda: database.projects.insert(large),
        lambda: database.projects.insert_many([large, project()]),
        lambda: database.projects.upsert({"_id": large.id}, {}, fresh=large),
    ):
        with pytest.raises(Invalid, match="larger than the 16 MB"):
            await insert()
    assert await database.projects.count({}) == 0


@pytest.mark.slow
async def test_an_update_that_makes_a_document_larger_than_16_mb_is_refused_and_changes_nothing(
    database: Database,
) -> None:
    made = await database.projects.insert(project(canvas_data={"a": "x" * (15 * 1024 * 1024)}))
    for megabytes in (2, 17):
        change = {"$set": {"canvasData.b": "x" * (megabytes * 1024 * 1024)}}
        for update in (
            lambda change=change: database.projects.patch({"_id": made.id}, change),
            lambda change=change: database.projects.patch_many({"_id": made.id}, change),
            lambda change=change: database.projects.find_and_patch({"_id": made.id}, change),
            lambda change=change: database.projects.upsert({"_id": made.id}, change, fresh=project()),
        ):
            with pytest.raises(Invalid, match="larger than the 16 MB"):
                await update()
    read = await database.projects.get(made.id)
    assert read.canvas_data.keys() == {"a"}
    assert read.updated_at == made.updated_at


# Upserts


async def test_an_upsert_inserts_once_and_then_updates(database: Database) -> None:
    where = {"code": "ONCE"}
    assert await database.coupons.upsert(where, {"$inc": {"usedCount": 1}}, fresh=coupon("ONCE", name="First"))
    assert not await database.coupons.upsert(where, {"$inc": {"usedCount": 1}}, fresh=coupon("ONCE", name="Second"))
    read = await database.coupons.get(where)
    assert (read.used_count, read.name) == (2, "First")


async def test_an_upsert_s_update_takes_the_place_of_the_fresh_document_s_own_values(database: Database) -> None:
    fresh = Plan(
        id="team",
        name="Team",
        description="x",
        price=5,
        interval="YEAR",
        features=["a"],
        limits=PlanLimits(projects=1, storage=2, api_calls=3),
    )
    change = {"$set": {"limits.projects": 9, "price": 7, "description": None}, "$setOnInsert": {"currency": "EUR"}}
    assert await database.plans.upsert({"id": "team"}, change, fresh=fresh)
    read = await database.plans.get({"id": "team"})
    assert read.limits == PlanLimits(projects=9, storage=2, api_calls=3)
    assert (read.price, read.description, read.currency, read.features, read.name) == (7, None, "EUR", ["a"], "Team")
    assert read.object_id == fresh.object_id
    assert not await database.plans.upsert({"id": "team"}, change, fresh=fresh)


async def test_an_upsert_into_part_of_a_mixed_value_keeps_its_other_parts(database: Database) -> None:
    fresh = project(settings={"a": {"b": 1, "c": 2}, "d": 3}, canvas_data={"x": [1]})
    where = {"userId": fresh.user_id, "name": "Bridge"}
    assert await database.projects.upsert(where, {"$set": {"settings.a.b": 9}}, fresh=fresh)
    read = await database.projects.get(where)
    assert (read.settings, read.canvas_data) == ({"a": {"b": 9, "c": 2}, "d": 3}, {"x": [1]})


async def test_a_condition_in_an_upserts_filter_does_not_remove_a_field(database: Database) -> None:
    """`{maxUses: {$gte: 5}}` selects, and inserts nothing: the fresh document's value must be there."""
    fresh = coupon("GUARD", max_uses=7)
    where = {"code": "GUARD", "maxUses": {"$gte": 5}, "name": {"$in": ["x", fresh.name]}}
    assert await database.coupons.upsert(where, {"$inc": {"usedCount": 1}}, fresh=fresh)
    read = await database.coupons.get({"code": "GUARD"})
    assert (read.max_uses, read.name, read.used_count) == (7, fresh.name, 1)


async def test_an_upsert_whose_guard_does_not_match_raises_document_exists(database: Database) -> None:
    owner = ObjectId()
    reserve = {"_id": owner, "projects": {"$lte": 2}}
    results = [
        await database[GAUGES].upsert(reserve, {"$inc": {"projects": 1}}, fresh=Gauge(id=owner)) for _ in range(3)
    ]
    assert results == [True, False, False]
    with pytest.raises(DocumentExists) as caught:
        await database[GAUGES].upsert(reserve, {"$inc": {"projects": 1}}, fresh=Gauge(id=owner))
    assert caught.value.fields == {"_id": "is already taken"}
    assert (await database[GAUGES].get(owner)).projects == 3


async def test_upserts_that_race_insert_once_and_lose_nothing(database: Database) -> None:
    owner = ObjectId()

    async def one() -> bool:
        while True:
            try:
                return await database[GAUGES].upsert({"_id": owner}, {"$inc": {"projects": 1}}, fresh=Gauge(id=owner))
            except DocumentExists:
                continue

    results = await asyncio.gather(*(one() for _ in range(40)))
    assert results.count(True) == 1
    assert (await database[GAUGES].get(owner)).projects == 40


async def test_a_fresh_document_that_is_wrong_is_refused_even_where_nothing_is_inserted(database: Database) -> None:
    await database.coupons.insert(coupon("THERE"))
    with pytest.raises(Invalid, match="value"):
        await database.coupons.upsert({"code": "THERE"}, {}, fresh=coupon("THERE", value="x"))


# Finding and changing


async def test_of_racing_updates_of_a_document_exactly_one_succeeds(database: Database) -> None:
    made = await database.coupons.insert(coupon("RACE", used_count=0, max_uses=5))
    take = {"_id": made.id, "usedCount": {"$lt": 5}}
    taken = await asyncio.gather(
        *(database.coupons.find_and_patch(take, {"$inc": {"usedCount": 1}}) for _ in range(25)),
        *(database.coupons.patch(take, {"$inc": {"usedCount": 1}}) for _ in range(25)),
    )
    assert sum(bool(result) for result in taken) == 5
    assert (await database.coupons.get(made.id)).used_count == 5


async def test_find_and_patch_gives_the_document_before_or_after_the_first_by_order(database: Database) -> None:
    await database.projects.insert_many([project("b"), project("a")])
    change = {"$set": {"description": "x"}}
    before = await database.projects.find_and_patch({}, change, sort=[("name", 1)], before=True)
    assert before
    assert (before.name, before.description) == ("a", None)
    after = await database.projects.find_and_patch({}, change, sort=[("name", 1)])
    assert after
    assert (after.name, after.description) == ("a", "x")
    assert await database.projects.find_and_patch({"name": "c"}, change) is None


async def test_a_bad_filter_is_an_error_to_act_on(database: Database) -> None:
    for where in ({"name": "\ud800"}, {"storageSize": 2**64}, {"name": {"a", "b"}}):
        with pytest.raises(Invalid):
            await database.projects.find_one(where)
        with pytest.raises(Invalid):
            await database.projects.patch(where, {})
