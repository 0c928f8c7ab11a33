"""What the connection tells operators: metrics, one line a change, and counted round trips."""

import asyncio
from typing import Any

import pytest
import structlog
from bson import ObjectId
from prometheus_client import REGISTRY
from pymongo.errors import OperationFailure

from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.database.monitoring import CHECKOUT_FAILURES, POOL, SERVERS, UP, ConnectionState, _Commands, round_trips
from ximler.schema.audit_log import AuditLog


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def events_of(state: ConnectionState, *changes: bool) -> list[tuple[str, str]]:
    with structlog.testing.capture_logs() as logs:
        for change in changes:
            state.changed(connected=change)
    return [(log["log_level"], log["event"]) for log in logs]


# State


def test_each_change_of_state_is_one_line() -> None:
    state = ConnectionState()
    assert events_of(state, True, True) == [("info", "database connected")]
    assert events_of(state, False, False, False) == [("warning", "database disconnected")]
    assert events_of(state, True, True) == [("info", "database reconnected")]
    assert state.connected


def test_closing_is_no_change() -> None:
    state = ConnectionState()
    state.changed(connected=True)
    state.closing = True
    assert events_of(state, False) == []


@pytest.mark.slow
async def test_metrics_say_that_there_is_a_primary_and_how_many_servers_of_which_type(mongodb_uri: str) -> None:
    before = {kind: SERVERS.labels(kind)._value.get() for kind in ("RSPrimary", "Unknown")}
    database = await connect(mongodb_uri)
    try:
        async with asyncio.timeout(10):
            while SERVERS.labels("RSPrimary")._value.get() != before["RSPrimary"] + 1:
                await database.ping()
        assert UP._value.get() == 1
        assert SERVERS.labels("Unknown")._value.get() == before["Unknown"]
    finally:
        await database.close()
    assert {kind: SERVERS.labels(kind)._value.get() for kind in before} == before


# Commands


@pytest.mark.slow
async def test_every_command_is_timed_by_collection_and_verb(database: Database) -> None:
    def timed(verb: str, collection: str) -> float:
        return sample("ximler_database_command_seconds_count", collection=collection, verb=verb)

    before = {verb: timed(verb, "auditlogs") for verb in ("insert", "find", "getMore", "update", "aggregate")}
    made = await database.audit_logs.insert(AuditLog(action="a", resource="r"))
    await database.audit_logs.insert_many([AuditLog(action="a", resource="r") for _ in range(20)])
    assert len([log async for log in database.audit_logs.stream({}, batch=15)]) == 21
    await database.audit_logs.patch({"_id": made.id}, {"$set": {"ipAddress": "::1"}})
    await database.audit_logs.count({})
    after = {verb: timed(verb, "auditlogs") - count for verb, count in before.items()}
    assert after == {"insert": 2, "find": 1, "getMore": 1, "update": 1, "aggregate": 1}
    assert sample("ximler_database_command_seconds_sum", collection="auditlogs", verb="find") > 0


async def test_commands_that_fail_are_counted(database: Database) -> None:
    def failed() -> float:
        return sample("ximler_database_command_failures_total", collection="auditlogs", verb="find")

    before = failed()
    with pytest.raises(OperationFailure):
        await database.audit_logs.find({"action": {"$type": "nonsense"}})
    assert failed() == before + 1


async def test_commands_of_cancelled_tasks_are_not_remembered_for_ever(database: Database) -> None:
    listener = _Commands()

    class Started:
        command_name = "find"
        command: dict[str, Any] = {"find": "users"}  # noqa: RUF012 (a stand-in for an event)
        request_id = 0

    event = Started()
    for number in range(20_000):
        event.request_id = number
        listener.started(event)  # type: ignore[arg-type]  # has the attributes that it reads
    assert len(listener._places) <= 5000
    assert 19_999 in listener._places


async def test_metric_labels_do_not_come_from_input(database: Database) -> None:
    await database.audit_logs.find_one({"action": "something-private"})
    await database.raw.command({"ping": 1, "comment": "something-private"})
    labels = {str(s.labels) for metric in REGISTRY.collect() for s in metric.samples}
    assert not [label for label in labels if "private" in label]


# Pool


async def test_the_pool_is_measured(mongodb_uri: str) -> None:
    before = {state: POOL.labels(state)._value.get() for state in ("open", "checked_out")}
    waits = sample("ximler_database_pool_wait_seconds_count")
    database = await connect(mongodb_uri, settings=Settings(mongodb_uri=mongodb_uri, pool_size=4))
    busy = [asyncio.create_task(database.ping()) for _ in range(12)]
    most = 0.0
    while not all(task.done() for task in busy):
        most = max(most, POOL.labels("checked_out")._value.get() - before["checked_out"])
        await asyncio.sleep(0)
    assert 1 <= most <= 4
    assert sample("ximler_database_pool_wait_seconds_count") >= waits + 12
    await database.close()
    assert {state: POOL.labels(state)._value.get() for state in before} == before


@pytest.mark.slow
async def test_waiting_for_a_connection_in_vain_is_counted(mongodb_uri: str) -> None:
    uri = f"{mongodb_uri}{'&' if '?' in mongodb_uri else '?'}waitQueueTimeoutMS=20&maxPoolSize=1"
    database = await connect(uri)
    before = CHECKOUT_FAILURES._value.get()
    await database.raw.waiting.insert_one({"_id": ObjectId()})
    slow = asyncio.create_task(database.raw.waiting.find_one({"$where": "sleep(500) || true"}))
    others = [asyncio.create_task(database.projects.count({})) for _ in range(3)]
    results = await asyncio.gather(slow, *others, return_exceptions=True)
    assert [type(result).__name__ for result in results[1:]].count("DatabaseUnavailable") >= 2
    assert CHECKOUT_FAILURES._value.get() > before
    await database.raw.drop_collection("waiting")
    await database.close()


# Round trips


async def test_round_trips_are_counted_in_this_task_and_those_it_starts_and_in_no_other(database: Database) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def somebody_else() -> None:
        started.set()
        await go_on.wait()
        await database.plans.find({})

    other = asyncio.create_task(somebody_else())
    await started.wait()
    with round_trips() as outer:
        await database.plans.find_one({"id": "free"})
        with round_trips() as inner:
            await asyncio.gather(database.plans.count({}), database.coupons.count({}))
        go_on.set()
        await other
    assert sorted(outer) == sorted([("find", "plans"), *inner])
    assert sorted(inner) == [("aggregate", "coupons"), ("aggregate", "plans")]
    await database.plans.count({})
    assert len(outer) == 3


def test_setup_is_measured_for_all_collections_together() -> None:
    measured = {
        (labels["verb"], labels["collection"])
        for metric in REGISTRY.collect()
        for labels in (each.labels for each in metric.samples)
        if metric.name == "ximler_database_command_seconds"
    }
    assert {collection for verb, collection in measured if verb in {"create", "createIndexes", "listIndexes"}} <= {""}
