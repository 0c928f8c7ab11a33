"""Typed collections: the rules that hold on every path, paging, transactions."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from bson import ObjectId, Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.database.documents import DAY, complete
from tests.deleting import restore, soft_delete

from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.codec import UnreadableDocument
from ximler.database.collection import TypedCollection
from ximler.database.failures import DocumentExists
from ximler.database.monitoring import POOL, UNREADABLE, round_trips
from ximler.database.reading import _BATCH, _after
from ximler.schema.audit_log import AuditLog
from ximler.schema.coupon import COUPONS, Coupon
from ximler.schema.document import Created
from ximler.schema.gauge import GAUGES, Gauge
from ximler.schema.payment import Payment
from ximler.schema.plan import Plan, PlanLimits
from ximler.schema.project import Project
from ximler.schema.user import User

LATER = timedelta(days=40)


def project(name: str = "Bridge", **given: Any) -> Project:
    return Project(**{"user_id": ObjectId(), "name": name} | given)


def coupon(code: str = "SPRING", **given: Any) -> Coupon:
    return complete(COUPONS, **{"code": code} | given)  # type: ignore[no-any-return]  # a Coupon


def entry(**given: Any) -> AuditLog:
    return AuditLog(**{"action": "user.sign_in", "resource": "user"} | given)


def user(email: str, **given: Any) -> User:
    return User(**{"name": "Ada", "email": email, "password": "x"} | given)


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


async def test_what_has_no_updated_at_gets_none(database: Database) -> None:
    made = await database.audit_logs.insert(entry())
    assert await database.audit_logs.patch({"_id": made.id}, {"$set": {"ipAddress": "::1"}})
    assert "updatedAt" not in await raw_of(database.audit_logs, made.id)


# Setters


async def test_setters_apply_to_what_is_looked_for_on_every_path(database: Database) -> None:
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


async def test_an_upsert_stores_what_it_looks_for_with_its_setter(database: Database) -> None:
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


async def test_a_filter_of_ones_own_on_the_time_of_deletion_does_not_switch_the_rule_off(database: Database) -> None:
    gone = await database.projects.insert(project())
    await soft_delete(database.projects, {"_id": gone.id})
    for where in ({"deletedAt": {"$ne": None}}, {"$or": [{"deletedAt": {"$gt": DAY}}]}, {"deletedAt": {"$gt": DAY}}):
        assert await database.projects.find(where) == []
        assert (await database.projects.page(where)).items == []
        assert not await database.projects.patch(where, {})
        assert len(await database.projects.find(where, deleted=True)) == 1
    assert len(await database.projects.find({"deletedAt": {"$lt": database.clock.now()}}, deleted=True)) == 1


async def test_removing_for_good_takes_deleted_documents_too(database: Database) -> None:
    gone = await database.projects.insert(project())
    await soft_delete(database.projects, {"_id": gone.id})
    assert await database.projects.delete({"_id": gone.id})
    assert not await database.projects.delete({"_id": gone.id})
    assert await database.projects.delete_many({}) == 0


async def test_an_upsert_does_not_bring_back_what_is_deleted(database: Database) -> None:
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


async def test_what_is_not_deleted_softly_says_so(database: Database) -> None:
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


async def test_what_the_validator_refuses_is_invalid_with_the_field_on_every_path(database: Database) -> None:
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


# Unreadable documents


@pytest.fixture
async def with_a_broken_one(database: Database) -> list[ObjectId]:
    """Three payments, newest first, of which the second cannot be read."""
    made = [
        Payment(user_id=ObjectId(), amount=amount, status="PAID", created_at=DAY - timedelta(days=amount))
        for amount in (1, 2, 3)
    ]
    await database.payments.insert_many(made)
    await database.raw.payments.update_one(
        {"amount": 2}, [{"$set": {"amount": "a lot"}}], bypass_document_validation=True
    )
    return [payment.id for payment in made]


@pytest.mark.parametrize("path", ["find", "stream", "page", "find_by"])
async def test_an_unreadable_document_is_left_out_logged_and_counted(
    database: Database, with_a_broken_one: list[ObjectId], path: str
) -> None:
    first, broken, third = with_a_broken_one
    before = UNREADABLE.labels("payments")._value.get()
    with structlog.testing.capture_logs() as logs:
        match path:
            case "find":
                found = await database.payments.find({}, sort=[("createdAt", -1)])
            case "stream":
                found = [payment async for payment in database.payments.stream({}, sort=[("createdAt", -1)])]
            case "page":
                found = (await database.payments.page({})).items
            case _:
                grouped = await database.payments.find_by("status", ["PAID"], sort=[("createdAt", -1)])
                found = grouped["PAID"]
    assert [payment.id for payment in found] == [first, third]
    assert UNREADABLE.labels("payments")._value.get() == before + 1
    (line,) = (log for log in logs if log["event"] == "document left out")
    assert (line["collection"], line["id"], line["log_level"]) == ("payments", str(broken), "warning")
    assert "amount" in line["reason"]


async def test_an_unreadable_document_that_is_asked_for_alone_is_an_error(
    database: Database, with_a_broken_one: list[ObjectId]
) -> None:
    key = with_a_broken_one[1]
    for ask in (
        lambda: database.payments.get(key),
        lambda: database.payments.find_one({"_id": key}),
        lambda: database.payments.find_and_patch({"_id": key}, {"$set": {"currency": "EUR"}}),
    ):
        with pytest.raises(UnreadableDocument, match=str(key)):
            await ask()


async def test_an_unreadable_document_can_still_be_patched_counted_and_deleted(
    database: Database, with_a_broken_one: list[ObjectId]
) -> None:
    key = with_a_broken_one[1]
    assert await database.payments.count({}) == 3
    assert await database.payments.patch({"_id": key}, {"$set": {"amount": 2}})
    assert (await database.payments.get(key)).amount == 2
    assert await database.payments.delete({"_id": key})


async def test_a_page_goes_on_past_documents_that_cannot_be_read(database: Database) -> None:
    """With one item a page, a broken one must neither end the list nor be a page without a cursor."""
    await database.audit_logs.insert_many([entry(created_at=DAY - timedelta(days=n)) for n in range(5)])
    for day in (0, 1, 3):
        await database.raw.auditlogs.update_one(
            {"createdAt": DAY - timedelta(days=day)},
            {"$set": {"action": 5}},
            bypass_document_validation=True,  # type: ignore[call-arg]  # it has it
        )
    first = await database.audit_logs.page({}, first=1)
    assert [item.created_at for item in first.items] == [DAY - timedelta(days=2)]
    assert first.has_next
    assert first.end_cursor
    second = await database.audit_logs.page({}, first=1, after=decode_cursor(first.end_cursor))
    assert [item.created_at for item in second.items] == [DAY - timedelta(days=4)]
    assert not second.has_next


# Reading


async def test_get_takes_an_id_or_a_filter_and_absence_is_not_found(database: Database) -> None:
    made = await database.projects.insert(project())
    assert await database.projects.get(made.id) == await database.projects.get({"name": "Bridge"}) == made
    for absent in (ObjectId(), {"name": "x"}, "text", b"bytes"):
        with pytest.raises(NotFound, match="No such project"):
            await database.projects.get(absent)


async def test_part_of_a_document_is_read_into_a_struct_of_its_own(database: Database) -> None:
    class Name(Created, kw_only=True):
        name: str

    made = await database.projects.insert(project(canvas_data={"big": "x" * 1000}))
    expected = Name(id=made.id, created_at=made.created_at, name="Bridge")
    assert await database.projects.find_one({}, into=Name) == expected
    assert await database.projects.find({}, into=Name) == [expected]
    assert (await database.projects.page({}, into=Name)).items == [expected]
    assert await database.projects.find_and_patch({}, {"$inc": {"storageSize": 1}}, into=Name) == expected


async def test_a_page_into_a_struct_without_a_time_still_knows_its_place(database: Database) -> None:
    from ximler.schema.document import Identified

    class Name(Identified, kw_only=True):
        name: str

    await database.projects.insert_many([project(str(n), created_at=DAY + timedelta(n)) for n in range(5)])
    names: list[str] = []
    after = None
    while True:
        page = await database.projects.page({}, into=Name, first=2, after=after)
        names += [item.name for item in page.items]
        if not page.has_next:
            break
        assert page.end_cursor
        after = decode_cursor(page.end_cursor)
    assert names == ["4", "3", "2", "1", "0"]


async def test_sort_limit_and_hint_are_mongodb_s(database: Database) -> None:
    await database.projects.insert_many([project(name) for name in "cab"])
    assert [p.name for p in await database.projects.find({}, sort=[("name", 1)], limit=2)] == ["a", "b"]
    assert (await database.projects.find_one({}, sort=[("name", -1)])).name == "c"  # type: ignore[union-attr]  # there is one
    assert len(await database.projects.find({}, hint="userId_1_deletedAt_1")) == 3


async def test_thousands_are_read_in_batches_of_one_query(database: Database) -> None:
    count = 2 * _BATCH + 500
    await database.audit_logs.insert_many([entry(resource_id=str(n)) for n in range(count)])
    with round_trips() as trips:
        found = await database.audit_logs.find({}, sort=[("_id", 1)])
    assert [log.resource_id for log in found] == [str(n) for n in range(count)]
    assert [verb for verb, _ in trips] == ["find", "getMore", "getMore"]


async def test_a_stream_asks_for_a_batch_at_a_time(database: Database) -> None:
    await database.audit_logs.insert_many([entry(resource_id=str(n)) for n in range(25)])
    with round_trips() as trips:
        stream = database.audit_logs.stream({}, sort=[("_id", 1)], batch=10)
        assert (await anext(stream)).resource_id == "0"
        assert [verb for verb, _ in trips] == ["find"]
        assert [log.resource_id async for log in stream] == [str(n) for n in range(1, 25)]
    assert [verb for verb, _ in trips] == ["find", "getMore", "getMore"]


async def test_the_end_of_a_list_may_be_the_end_of_a_batch(database: Database) -> None:
    for count in (0, 1, 10):
        await database.audit_logs.delete_many({})
        await database.audit_logs.insert_many([entry() for _ in range(count)])
        assert len([log async for log in database.audit_logs.stream({}, batch=10)]) == count
        assert len(await database.audit_logs.find({}, limit=10)) == count
    await database.audit_logs.insert_many([entry() for _ in range(_BATCH - 10)])
    assert len(await database.audit_logs.find({})) == _BATCH


async def test_an_unreadable_document_in_one_batch_leaves_the_others_whole(database: Database) -> None:
    await database.audit_logs.insert_many([entry(resource_id=str(n)) for n in range(_BATCH + 50)])
    for number in (7, _BATCH + 7):
        await database.raw.auditlogs.update_one(
            {"resourceId": str(number)}, [{"$set": {"action": 5}}], bypass_document_validation=True
        )
    found = await database.audit_logs.find({}, sort=[("_id", 1)])
    assert [log.resource_id for log in found] == [str(n) for n in range(_BATCH + 50) if n not in (7, _BATCH + 7)]


async def test_a_stream_that_is_left_early_closes_its_cursor(database: Database) -> None:
    await database.audit_logs.insert_many([entry() for _ in range(50)])

    stream: AsyncIterator[AuditLog] = database.audit_logs.stream({}, batch=10)
    assert await anext(stream)
    with round_trips() as trips:
        await stream.aclose()  # type: ignore[attr-defined]  # an asynchronous generator
    assert [verb for verb, _ in trips] == ["killCursors"]


async def test_grouping_costs_one_query_however_many_values(database: Database) -> None:
    owners = [ObjectId() for _ in range(50)]
    await database.projects.insert_many(
        [project(f"{n}{i}", user_id=owner) for n, owner in enumerate(owners[:30]) for i in range(n % 3)]
    )
    with round_trips() as trips:
        grouped = await database.projects.find_by("userId", [*owners, owners[0]], sort=[("name", 1)])
    assert trips == [("find", "projects")]
    assert list(grouped) == owners
    assert [len(found) for found in grouped.values()] == [n % 3 if n < 30 else 0 for n in range(50)]
    assert [p.name for p in grouped[owners[2]]] == ["20", "21"]
    with round_trips() as trips:
        assert await database.projects.find_by("userId", []) == {}
    assert trips == []


async def test_grouping_takes_a_filter_and_values_as_people_type_them(database: Database) -> None:
    await database.users.insert_many([user("ada@example.com"), user("bob@example.com", name="Bob")])
    grouped = await database.users.find_by("email", ["ADA@example.com", "bob@example.com", "x"], where={"name": "Ada"})
    assert {email: len(found) for email, found in grouped.items()} == {
        "ADA@example.com": 1,
        "bob@example.com": 0,
        "x": 0,
    }


async def test_each_operation_is_one_round_trip(database: Database) -> None:
    made = await database.projects.insert(project())
    for operation in (
        lambda: database.projects.find_one({"_id": made.id}),
        lambda: database.projects.get(made.id),
        lambda: database.projects.find({}),
        lambda: database.projects.page({}),
        lambda: database.projects.count({}),
        lambda: database.projects.insert(project()),
        lambda: database.projects.insert_many([project(), project()]),
        lambda: database.projects.patch({"_id": made.id}, {}),
        lambda: database.projects.patch_many({}, {"$set": {"description": "x"}}),
        lambda: database.projects.upsert({"name": "y"}, {}, fresh=project("y")),
        lambda: database.projects.find_and_patch({"_id": made.id}, {}),
        lambda: soft_delete(database.projects, {"_id": made.id}),
        lambda: restore(database.projects, {"_id": made.id}),
        lambda: database.projects.delete({"_id": made.id}),
        lambda: database.projects.delete_many({}),
        lambda: database.projects.aggregate([{"$match": {}}]),
    ):
        with round_trips() as trips:
            await operation()
        assert len(trips) == 1, trips
    with round_trips() as trips:
        assert await database.projects.insert_many([]) == 0
    assert trips == []


# Paging

NEWEST_FIRST = [("createdAt", -1), ("_id", -1)]
TIMES: list[Any] = [DAY, DAY, DAY + timedelta(milliseconds=1), DAY - timedelta(days=9), None, ...]
ODD_TIMES: list[Any] = ["2026-03-04", 5, True, Timestamp(5, 1), DAY, None, ...]
ODD_IDS: list[Callable[[], Any]] = [ObjectId, ObjectId, lambda: str(ObjectId())]


async def all_pages(database: Database, first: Callable[[], int]) -> list[ObjectId]:
    found: list[ObjectId] = []
    after = None
    while True:
        size = first()
        page = await database.audit_logs.page({}, first=size, after=after)
        assert len(page.cursors) == len(page.items)
        assert len(page.items) == size or not page.has_next
        found += [item.id for item in page.items]
        if not page.has_next:
            return found
        assert page.end_cursor == page.cursors[-1]
        after = decode_cursor(page.end_cursor)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    times=st.lists(st.sampled_from(TIMES), max_size=25),
    odd=st.lists(st.tuples(st.sampled_from(ODD_TIMES), st.sampled_from(ODD_IDS)), max_size=6),
    data=st.data(),
)
async def test_the_pages_of_a_list_are_the_list_in_order_whatever_was_stored(
    database: Database, times: list[Any], odd: list[tuple[Any, Callable[[], Any]]], data: st.DataObject
) -> None:
    """With equal times, missing and null ones; and among them documents that cannot be read."""
    good = [{"_id": ObjectId(), "action": "a", "resource": "r", "createdAt": moment} for moment in times]
    bad = [{"_id": make(), "action": 5, "resource": "r", "createdAt": moment} for moment, make in odd]
    raws = data.draw(st.permutations([*good, *bad]))
    for raw in raws:
        if raw["createdAt"] is ...:
            del raw["createdAt"]
    await database.raw.auditlogs.delete_many({})
    if raws:
        await database.raw.auditlogs.insert_many(raws, bypass_document_validation=True)
    expected = sorted(
        good, key=lambda raw: (raw.get("createdAt") or datetime.min.replace(tzinfo=UTC), raw["_id"]), reverse=True
    )
    found = await all_pages(database, lambda: data.draw(st.integers(1, 8)))
    assert found == [raw["_id"] for raw in expected]


async def test_each_cursor_of_a_page_continues_after_its_item(database: Database) -> None:
    await database.audit_logs.insert_many([entry(created_at=DAY + timedelta(hours=n % 3)) for n in range(9)])
    whole = await database.audit_logs.page({}, first=9)
    assert not whole.has_next
    for place, cursor in enumerate(whole.cursors):
        rest = await database.audit_logs.page({}, first=100, after=decode_cursor(cursor))
        assert rest.items == whole.items[place + 1 :]
        assert rest.cursors == whole.cursors[place + 1 :]


async def test_what_is_added_while_one_pages_is_neither_shown_twice_nor_pushes_anything_out(database: Database) -> None:
    await database.audit_logs.insert_many([entry(created_at=DAY + timedelta(milliseconds=n % 7)) for n in range(120)])
    before = [log.id for log in await database.audit_logs.find({}, sort=NEWEST_FIRST)]
    stop = asyncio.Event()

    async def others() -> None:
        while not stop.is_set():
            await database.audit_logs.insert_many([entry(), entry(created_at=DAY + timedelta(milliseconds=3))])

    busy = asyncio.create_task(others())
    try:
        found = await all_pages(database, lambda: 5)
    finally:
        stop.set()
        await busy
    assert len(set(found)) == len(found)
    assert [key for key in found if key in set(before)] == before


@pytest.mark.parametrize("first", [0, -1, 101, 10**9])
async def test_a_page_has_one_to_a_hundred_items(database: Database, first: int) -> None:
    with pytest.raises(Invalid) as caught:
        await database.audit_logs.page({}, first=first)
    assert caught.value.fields.keys() == {"first"}


async def test_a_page_of_a_hundred_and_an_empty_one(database: Database) -> None:
    empty = await database.audit_logs.page({})
    assert (empty.items, empty.cursors, empty.has_next, empty.end_cursor) == ([], [], False, None)
    await database.audit_logs.insert_many([entry() for _ in range(100)])
    page = await database.audit_logs.page({}, first=100)
    assert (len(page.items), page.has_next) == (100, False)
    await database.audit_logs.insert(entry())
    assert (await database.audit_logs.page({}, first=100)).has_next


async def test_a_user_s_page_is_read_from_an_index_without_sorting(database: Database) -> None:
    owner = ObjectId()
    await database.projects.insert_many([project(user_id=owner) for _ in range(300)])
    page = await database.projects.page({"userId": owner}, first=10)
    assert page.end_cursor
    after = decode_cursor(page.end_cursor)
    where = {"$and": [{"userId": owner}, _after(after, "createdAt")]}
    plan = await database.raw.projects.find(
        **database.projects._query(where, None, NEWEST_FIRST, 11, False, None)
    ).explain()
    text = str(plan["queryPlanner"]["winningPlan"])
    assert "'IXSCAN'" in text
    assert "'SORT'" not in text
    assert "'COLLSCAN'" not in text
    assert plan["executionStats"]["totalDocsExamined"] <= 3 * 12


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


async def test_a_condition_in_an_upsert_s_filter_does_not_take_a_field_away(database: Database) -> None:
    """`{maxUses: {$gte: 5}}` selects, and inserts nothing: the fresh document's value must be there."""
    fresh = coupon("GUARD", max_uses=7)
    where = {"code": "GUARD", "maxUses": {"$gte": 5}, "name": {"$in": ["x", fresh.name]}}
    assert await database.coupons.upsert(where, {"$inc": {"usedCount": 1}}, fresh=fresh)
    read = await database.coupons.get({"code": "GUARD"})
    assert (read.max_uses, read.name, read.used_count) == (7, fresh.name, 1)


async def test_an_upsert_whose_guard_refuses_what_is_there_says_that_it_exists(database: Database) -> None:
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


async def test_of_those_that_race_for_one_document_exactly_one_gets_it(database: Database) -> None:
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


# Transactions


async def test_a_transaction_s_writes_appear_together_when_it_ends(database: Database) -> None:
    seen_outside: list[int] = []

    async def body(transaction: Database) -> str:
        await transaction.projects.insert(project())
        await transaction.audit_logs.insert(entry())
        assert await transaction.projects.count({}) == 1, "a transaction sees its own writes"
        assert len(await transaction.projects.find({})) == 1
        assert (await transaction.projects.page({})).items
        seen_outside.append(await database.projects.count({}) + await transaction.outside.audit_logs.count({}))
        return "done"

    assert await database.transaction(body) == "done"
    assert seen_outside == [0]
    assert (await database.projects.count({}), await database.audit_logs.count({})) == (1, 1)


@pytest.mark.parametrize("problem", [Invalid("no"), ValueError("a bug"), KeyboardInterrupt()])
async def test_whatever_is_raised_in_a_transaction_undoes_it_and_comes_out(
    database: Database, problem: BaseException
) -> None:
    async def body(transaction: Database) -> None:
        await transaction.projects.insert(project())
        await transaction.projects.patch_many({}, {"$set": {"name": "x"}})
        raise problem

    with pytest.raises(type(problem)) as caught:
        await database.transaction(body)
    assert caught.value is problem
    assert await database.projects.count({}) == 0


async def test_a_unique_violation_undoes_the_whole_transaction(database: Database) -> None:
    await database.users.insert(user("ada@example.com"))

    async def body(transaction: Database) -> None:
        await transaction.projects.insert(project())
        await transaction.users.insert(user("ada@example.com"))

    with pytest.raises(DocumentExists) as caught:
        await database.transaction(body)
    assert caught.value.fields == {"email": "is already taken"}
    assert await database.projects.count({}) == 0


async def test_a_transaction_inside_another_joins_it(database: Database) -> None:
    async def inner(transaction: Database) -> None:
        await transaction.projects.insert(project("inner"))

    async def outer(transaction: Database) -> None:
        await transaction.projects.insert(project("outer"))
        await transaction.transaction(inner)
        assert await transaction.projects.count({}) == 2
        assert await database.projects.count({}) == 0
        raise ValueError("undo both")

    with pytest.raises(ValueError, match="undo both"):
        await database.transaction(outer)
    assert await database.projects.count({}) == 0


async def test_twenty_transactions_that_race_to_increment_all_count(database: Database) -> None:
    """Read, then write what was read plus one: each conflict makes the driver run the body again."""
    made = await database.coupons.insert(coupon("COUNT", used_count=0))
    runs = 0

    async def body(transaction: Database) -> None:
        nonlocal runs
        runs += 1
        read = await transaction.coupons.get(made.id)
        assert await transaction.coupons.patch({"_id": made.id}, {"$set": {"usedCount": read.used_count + 1}})

    await asyncio.gather(*(database.transaction(body) for _ in range(20)))
    assert (await database.coupons.get(made.id)).used_count == 20
    assert runs > 20, "nothing raced"


async def test_a_transaction_costs_its_commands_and_one_to_commit(database: Database) -> None:
    async def body(transaction: Database) -> None:
        await transaction.projects.insert(project())
        await transaction.audit_logs.insert(entry())

    with round_trips() as trips:
        await database.transaction(body)
    assert trips == [("insert", "projects"), ("insert", "auditlogs"), ("commitTransaction", "")]


async def test_a_document_too_large_for_a_transaction_undoes_it(database: Database) -> None:
    async def body(transaction: Database) -> None:
        await transaction.audit_logs.insert(entry())
        await transaction.projects.insert(project(canvas_data="x" * 17_000_000))

    with pytest.raises(Invalid, match="16 MB"):
        await database.transaction(body)
    assert await database.audit_logs.count({}) == 0


async def in_flight(database: Database, read: dict[str, Any]) -> None:
    """Returns once the server is busy with this very read: an earlier one may go on after its client has gone."""
    pipeline = [
        {"$currentOp": {}},
        {"$match": {"ns": f"{database.name}.projects", "command.filter.$where": read["$where"]}},
    ]
    while not await (await database.client.admin.aggregate(pipeline)).to_list():
        pass


def slow(name: int) -> dict[str, Any]:
    return {"$where": f"sleep(3000) || {name} || true"}


@pytest.mark.parametrize("when", ["between commands", "during a command"])
async def test_a_transaction_whose_task_is_cancelled_leaves_nothing_half_done_and_the_pool_healthy(
    database: Database, when: str
) -> None:
    used = POOL.labels("checked_out")._value.get()
    written = asyncio.Event()

    async def body(transaction: Database) -> None:
        await transaction.projects.insert(project())
        written.set()
        if when == "between commands":
            await asyncio.Event().wait()
        await transaction.projects.find(slow(attempt))

    for attempt in range(12):  # more than the pool holds
        written.clear()
        task = asyncio.create_task(database.transaction(body))
        await written.wait()
        if when == "during a command":
            await in_flight(database, slow(attempt))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await database.projects.count({}) == 0
    made = await asyncio.gather(*(database.projects.insert(project(str(n))) for n in range(30)))
    assert await database.projects.count({}) == len(made)
    assert POOL.labels("checked_out")._value.get() == used

    async def again(transaction: Database) -> None:
        await transaction.projects.patch_many({}, {"$set": {"description": "locked by nobody"}})

    await asyncio.wait_for(database.transaction(again), 5)


async def test_a_read_whose_task_is_cancelled_leaves_the_pool_healthy(database: Database) -> None:
    used = POOL.labels("checked_out")._value.get()
    await database.projects.insert(project())
    for attempt in range(12):
        task = asyncio.create_task(database.projects.find(slow(attempt)))
        await in_flight(database, slow(attempt))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert POOL.labels("checked_out")._value.get() == used
    assert await database.projects.count({}) == 1
