"""Reading from typed collections: unreadable documents, lists in batches, pages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from bson import ObjectId, Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.database.documents import DAY, entry, project, user
from tests.deleting import restore, soft_delete

from ximler.core.errors import Invalid, NotFound
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.codec import UnreadableDocument
from ximler.database.monitoring import UNREADABLE, round_trips
from ximler.database.pages import beyond
from ximler.database.reading import _BATCH
from ximler.schema.audit_log import AuditLog
from ximler.schema.document import Created
from ximler.schema.payment import Payment

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


@pytest.mark.slow
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


@pytest.mark.slow
async def test_the_end_of_a_list_may_be_the_end_of_a_batch(database: Database) -> None:
    for count in (0, 1, 10):
        await database.audit_logs.delete_many({})
        await database.audit_logs.insert_many([entry() for _ in range(count)])
        assert len([log async for log in database.audit_logs.stream({}, batch=10)]) == count
        assert len(await database.audit_logs.find({}, limit=10)) == count
    await database.audit_logs.insert_many([entry() for _ in range(_BATCH - 10)])
    assert len(await database.audit_logs.find({})) == _BATCH


@pytest.mark.slow
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


@pytest.mark.slow
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    times=st.lists(st.sampled_from(TIMES), max_size=25),
    odd=st.lists(st.tuples(st.sampled_from(ODD_TIMES), st.sampled_from(ODD_IDS)), max_size=6),
    data=st.data(),
)
async def test_pages_contain_the_list_in_order_for_any_stored_values(
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


async def test_documents_added_during_paging_neither_repeat_nor_hide_others(database: Database) -> None:
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
    where = {"$and": [{"userId": owner}, beyond(after, "createdAt")]}
    plan = await database.raw.projects.find(
        **database.projects._query(where, None, NEWEST_FIRST, 11, False, None)
    ).explain()
    text = str(plan["queryPlanner"]["winningPlan"])
    assert "'IXSCAN'" in text
    assert "'SORT'" not in text
    assert "'COLLSCAN'" not in text
    assert plan["executionStats"]["totalDocsExamined"] <= 3 * 12
