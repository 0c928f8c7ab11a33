"""Transactions: all or nothing, also when their task is cancelled."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.database.documents import coupon, entry, project, user
from tests.failing import Failing

from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.connection import commits
from ximler.database.failures import DatabaseUnavailable, DocumentExists
from ximler.database.monitoring import POOL, round_trips


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
async def test_any_exception_in_a_transaction_aborts_it_and_propagates(
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


@pytest.mark.slow
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
    """Returns once the server is busy with this very read:
    an earlier one may go on after its client has gone."""
    pipeline = [
        {"$currentOp": {}},
        {"$match": {"ns": f"{database.name}.projects", "command.filter.$where": read["$where"]}},
    ]
    async with asyncio.timeout(30):
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


@pytest.fixture
def forgotten(failing: Failing) -> Iterator[list[Any]]:
    """The names of the documents whose cache entries are evicted."""
    names: list[Any] = []
    failing.database.feed = SimpleNamespace(forget=lambda _collection, name: names.append(name))  # type: ignore[assignment]
    yield names
    failing.database.feed = None


async def insert_and_forget(transaction: Database) -> None:
    await transaction.projects.insert(project())
    transaction.forget("projects", "this one")


@pytest.mark.slow
async def test_a_commit_with_an_unknown_result_counts_as_done(failing: Failing, forgotten: list[Any]) -> None:
    unknown = {"code": 50, "errmsg": "no majority in time"}
    with commits() as committed:
        async with failing.fail("commitTransaction", writeConcernError=unknown):
            with pytest.raises(DatabaseUnavailable):
                await failing.database.transaction(insert_and_forget)
    assert committed == [True]
    assert "this one" in forgotten
    assert await failing.database.projects.count({}) == 1


async def test_a_commit_that_is_cancelled_counts_as_done(failing: Failing, forgotten: list[Any]) -> None:
    with commits() as committed:
        async with failing.fail("commitTransaction", blockConnection=True, blockTimeMS=200) as hits:
            task = asyncio.create_task(failing.database.transaction(insert_and_forget))
            while not await hits():  # noqa: ASYNC110 (the server counts)
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert committed == [True]
    assert "this one" in forgotten


async def test_a_body_that_is_cancelled_is_not_committed(failing: Failing) -> None:
    async def body(transaction: Database) -> None:
        await insert_and_forget(transaction)
        raise asyncio.CancelledError

    with commits() as committed, pytest.raises(asyncio.CancelledError):
        await failing.database.transaction(body)
    assert committed == []
    assert await failing.database.projects.count({}) == 0


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
