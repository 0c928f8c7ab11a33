"""Reads in one command: replies, timeouts, cancellation, retries,
and the way around PyMongo's undocumented parts."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from pymongo.asynchronous import pool
from tests.database.test_connection import with_options
from tests.failing import Failing

from ximler.core.settings import Settings
from ximler.database import Database, connect, wire
from ximler.database.failures import DatabaseUnavailable
from ximler.database.monitoring import POOL, round_trips
from ximler.schema.audit_log import AuditLog

NOT_PRIMARY = 10107
HOST_UNREACHABLE = 6


def entries(count: int, size: int = 1) -> list[AuditLog]:
    return [AuditLog(action="a", resource="r" * size) for _ in range(count)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each read was answered by `ask`."""
    answers: list[bool] = []
    ask = wire.ask

    async def recorded(collection: Any, command: dict[str, Any]) -> list[dict[str, Any]] | None:
        found = await ask(collection, command)
        answers.append(found is not None)
        return found

    monkeypatch.setattr(wire, "ask", recorded)
    return answers


def connections(database: Database) -> list[Any]:
    return [c for server in database.client._topology._servers.values() for c in server.pool.conns]


async def test_reads_are_one_command_over_connections_of_ours(database: Database, asked: list[bool]) -> None:
    made = await database.audit_logs.insert(AuditLog(action="a", resource="r"))
    with round_trips() as trips:
        assert await database.audit_logs.find_one({"_id": made.id}) == made
        assert (await database.audit_logs.page({})).items == [made]
        assert await database.audit_logs.aggregate([{"$count": "n"}]) == [{"n": 1}]
        assert await database.audit_logs.committed.find_one({"_id": made.id}) == made
    assert trips == [("find", "auditlogs"), ("find", "auditlogs"), ("aggregate", "auditlogs"), ("find", "auditlogs")]
    assert asked == [True] * 4, "the installed release of PyMongo is not in `_RELEASES`"
    assert {type(c) for c in connections(database)} == {wire.Connection}


@pytest.mark.slow
async def test_a_reply_in_several_batches_is_read_to_its_end(database: Database, asked: list[bool]) -> None:
    await database.audit_logs.insert_many(entries(4100))
    with round_trips() as trips:
        assert len(await database.audit_logs.aggregate([{"$match": {}}])) == 4100
    assert trips == [("aggregate", "auditlogs"), ("getMore", "auditlogs")]
    assert asked == [True]


async def test_reads_in_a_transaction_see_its_writes(database: Database, asked: list[bool]) -> None:
    async def body(transaction: Database) -> None:
        made = await transaction.audit_logs.insert(AuditLog(action="a", resource="r"))
        assert await transaction.audit_logs.find_one({"_id": made.id}) == made
        assert await transaction.audit_logs.aggregate([{"$count": "n"}]) == [{"n": 1}]
        assert await database.audit_logs.find_one({"_id": made.id}) is None

    await database.transaction(body)
    assert asked == [True], "only the read outside of the transaction"


async def test_another_release_of_pymongo_reads_in_the_documented_way(
    mongodb_uri: str, database: Database, monkeypatch: pytest.MonkeyPatch, asked: list[bool]
) -> None:
    monkeypatch.setattr(wire, "_KNOWN", False)
    made = await database.audit_logs.insert(AuditLog(action="a", resource="r"))
    other = await connect(mongodb_uri, name=database.name)
    assert await other.audit_logs.find_one({"_id": made.id}) == made
    assert (await other.audit_logs.page({})).items == [made]
    assert await other.audit_logs.aggregate([{"$count": "n"}]) == [{"n": 1}]
    assert asked == [False] * 3
    assert {type(c) for c in connections(other)} == {pool.AsyncConnection}
    await other.close()


@pytest.mark.parametrize("options", ["readPreference=secondaryPreferred", "timeoutMS=5000"])
async def test_options_that_one_command_does_not_cover_are_left_to_pymongo(
    mongodb_uri: str, database: Database, asked: list[bool], options: str
) -> None:
    other = await connect(with_options(mongodb_uri, options), name=database.name)
    assert await other.plans.find_one({"id": "free"}) == await database.plans.find_one({"id": "free"})
    assert asked == [False, True]
    await other.close()


@pytest.mark.parametrize(
    "how", [{"errorCode": NOT_PRIMARY}, {"errorCode": HOST_UNREACHABLE}, {"closeConnection": True}]
)
async def test_a_read_that_fails_retryably_is_repeated(
    failing: Failing, asked: list[bool], how: dict[str, Any]
) -> None:
    async with failing.fail("find", collection="plans", **how) as hits:
        with round_trips() as trips:
            assert await failing.database.plans.find_one({"id": "free"})
        assert await hits() == 1
    assert trips == [("find", "plans")] * 2
    assert asked == [True]


async def test_a_read_that_fails_twice_is_an_error(failing: Failing) -> None:
    async with failing.fail("find", collection="plans", times=2, errorCode=HOST_UNREACHABLE) as hits:
        with pytest.raises(DatabaseUnavailable):
            await failing.database.plans.find_one({"id": "free"})
        assert await hits() == 2


@pytest.mark.slow
async def test_without_retries_a_failed_read_is_an_error(failing: Failing, own_server: Any) -> None:
    uri = with_options(own_server.uri, "retryReads=false")
    other = await connect(uri, name=failing.database.name)
    try:
        async with failing.fail("find", collection="plans", closeConnection=True):
            with pytest.raises(DatabaseUnavailable):
                await other.plans.find_one({"id": "free"})
        assert await other.plans.find_one({"id": "free"})
    finally:
        await other.close()


@pytest.mark.slow
async def test_a_reply_later_than_the_socket_s_timeout_fails_and_leaves_the_pool_usable(
    failing: Failing, own_server: Any
) -> None:
    settings = Settings(mongodb_uri=own_server.uri, socket_timeout_ms=200)
    other = await connect(own_server.uri, settings=settings, name=failing.database.name)
    try:
        async with failing.fail("find", collection="plans", times=2, blockConnection=True, blockTimeMS=1000) as hits:
            with pytest.raises(DatabaseUnavailable, match="does not answer"):
                await other.plans.find_one({"id": "free"})
            assert await hits() == 2, "once, and once more as a retry"
        assert await other.plans.find_one({"id": "free"})
    finally:
        await other.close()


@pytest.mark.slow
async def test_a_read_that_is_cancelled_while_it_waits_gives_its_place_in_the_pool_back(
    failing: Failing, own_server: Any
) -> None:
    other = await connect(with_options(own_server.uri, "maxPoolSize=1"), name=failing.database.name)
    try:
        async with failing.fail("find", collection="plans", blockConnection=True, blockTimeMS=1000) as hits:
            reading = asyncio.create_task(other.plans.find_one({"id": "free"}))
            while not await hits():
                pass
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        async with asyncio.timeout(5):
            assert all(await asyncio.gather(*(other.plans.find_one({"id": "free"}) for _ in range(10))))
    finally:
        await other.close()


async def test_a_cancellation_at_any_step_of_a_read_is_never_swallowed_and_leaves_no_half_read_reply(
    database: Database,
) -> None:
    """PyMongo's `asyncio.wait_for` swallows one that arrives as the write completes, in Python 3.11."""
    made = await database.audit_logs.insert(AuditLog(action="a", resource="r"))
    for steps in range(40):
        # Leaves an open connection: those that PyMongo opens still swallow a cancellation.
        assert await database.audit_logs.find_one({"_id": made.id}) == made
        reading = asyncio.create_task(database.audit_logs.find_one({"_id": ObjectId()}))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading


@pytest.mark.slow
async def test_reads_on_connections_that_the_pool_interrupts_are_repeated(failing: Failing) -> None:
    database = failing.database
    async with failing.fail("find", collection="plans", blockConnection=True, blockTimeMS=3000) as hits:
        reading = asyncio.create_task(database.plans.find_one({"id": "free"}))
        while not await hits():
            pass
        (server,) = database.client._topology._servers.values()
        await server.pool.reset(interrupt_connections=True)
        await server.pool.ready()
        async with asyncio.timeout(2.5):
            assert await reading


async def test_a_closed_client_is_an_error_at_once(mongodb_uri: str) -> None:
    database = await connect(mongodb_uri)
    await database.close()
    async with asyncio.timeout(2):
        with pytest.raises(Exception, match="close"):
            await database.plans.find_one({"id": "free"})


async def test_a_storm_of_reads_and_cancellations_leaves_the_pool_s_accounts_even(
    mongodb_uri: str, database: Database
) -> None:
    other = await connect(with_options(mongodb_uri, "maxPoolSize=3"), name=database.name)
    used = POOL.labels("checked_out")._value.get()
    for round_ in range(5):
        reading = [asyncio.create_task(other.plans.find_one({"id": "free"})) for _ in range(40)]
        reading += [asyncio.create_task(other.plans.count({})) for _ in range(10)]  # PyMongo's own way
        for number, task in enumerate(reading):
            if number % 3 == round_ % 3:
                await asyncio.sleep(0)
                task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*reading, return_exceptions=True)
    (server,) = other.client._topology._servers.values()
    pool_ = server.pool
    assert (pool_.requests, pool_.active_sockets, pool_.operation_count) == (0, 0, 0)
    assert not pool_.active_contexts
    assert POOL.labels("checked_out")._value.get() == used
    assert len(pool_.conns) <= 3
    assert await other.plans.find_one({"id": "free"})
    await other.close()


async def test_operations_wait_in_one_queue_for_a_full_pool(
    mongodb_uri: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await connect(with_options(mongodb_uri, "maxPoolSize=1"), name=database.name)
    assert await other.plans.count({}) == await other.plans.count({})  # the one connection is open
    used = POOL.labels("checked_out")._value.get()
    ended: list[str] = []
    slow: list[object] = []
    checkout = pool.Pool._get_conn

    async def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.opts.max_pool_size == 1:  # of `other`
            slow.append(self)
        return await checkout(self, *arguments, **options)

    monkeypatch.setattr(pool.Pool, "_get_conn", counted)

    async def one(kind: str) -> None:
        with pymongo.timeout(5) if kind == "deadline" else nullcontext():
            await (other.plans.find_one({"id": "free"}) if kind == "read" else other.plans.count({}))
        ended.append(kind)

    kinds = ["read"] * 20 + ["count"] * 5 + ["read"] * 5 + ["deadline"] * 2
    async with asyncio.timeout(10):
        await asyncio.gather(*map(one, kinds))
    assert len(slow) == 2, "only operations with a deadline wait in PyMongo's queue"
    assert [kind for kind in ended if kind != "deadline"] == kinds[:-2], "first come, first served"
    assert ended.index("deadline") < 6, "PyMongo's queue is not starved"
    assert POOL.labels("checked_out")._value.get() == used
    await other.close()
