"""The change feed: every committed write is told of, and silence is trusted only while it means something."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from bson import ObjectId
from tests.database.following import running, until

from ximler.database import Database, connect
from ximler.database.changes import FRESH_S, Feed
from ximler.embedded import server

_ALL_CURSORS = {"$currentOp": {"localOps": True, "idleCursors": True, "allUsers": True}}


@pytest.fixture
async def things(database) -> AsyncIterator[Database]:
    """A database with two collections that nobody validates."""
    yield database
    await database.raw.things.drop()
    await database.raw.others.drop()


class Ear:
    """What was heard of some collections."""

    def __init__(self, feed: Feed, *collections: str) -> None:
        self.heard = []
        self.gaps = 0
        feed.subscribe(collections, self.heard.append)
        feed.on_gap(self._gap)

    def _gap(self) -> None:
        self.gaps += 1

    @property
    def story(self) -> list[tuple[str, str]]:
        return [(change.collection, change.operation) for change in self.heard]


async def test_every_write_of_any_client_is_delivered_in_order(things):
    feed = Feed(things)
    ear = Ear(feed, "things")
    key = ObjectId()
    async with running(feed):
        await until(lambda: feed.fresh)
        await things.raw.things.insert_one({"_id": key, "a": {"b": 1}, "c": 1})
        await things.raw.things.update_one({"_id": key}, {"$set": {"a.b": 2}, "$unset": {"c": ""}})
        await things.raw.things.update_one({"_id": key}, {"$set": {"a.b": 2}})  # changes nothing
        await things.raw.things.replace_one({"_id": key}, {"d": 1})
        await things.raw.things.delete_one({"_id": key})
        await things.raw.others.insert_one({})
        await until(lambda: len(ear.heard) >= 4)
    assert [change.operation for change in ear.heard] == ["insert", "update", "replace", "delete"]
    inserted, updated, replaced, _ = ear.heard
    assert {change.id for change in ear.heard} == {key}
    assert inserted.document == {"_id": key, "a": {"b": 1}, "c": 1}
    assert (updated.document, updated.updated, updated.removed) == (None, {"a.b": 2}, ["c"])
    assert replaced.document == {"_id": key, "d": 1}


async def test_writes_are_read_again_from_a_position_or_a_time(things):
    feed = Feed(things)
    ear = Ear(feed, "things")
    began = datetime.now(UTC) - timedelta(seconds=1)
    async with running(feed):
        await until(lambda: feed.fresh)
        for number in range(3):
            await things.raw.things.insert_one({"_id": number})
            await things.raw.others.insert_one({})
        from_first, from_time = [], []
        await until(lambda: len(ear.heard) == 3)
        assert await feed.replay("things", ear.heard[0].position, from_first.append)
        assert await feed.replay("things", began, from_time.append)
        assert not await feed.replay("things", "unknown", from_time.append)
    assert [change.id for change in from_first] == [1, 2]
    assert [change.id for change in from_time][-3:] == [0, 1, 2]  # after those of the test before


async def test_others_are_served_while_many_writes_are_read_again(things):
    feed = Feed(things)
    Ear(feed, "things")
    turns, heard_in = 0, []

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(feed):
        await until(lambda: feed.fresh)
        before = feed.position
        await things.raw.things.insert_many([{"_id": number} for number in range(1_500)])
        turning = asyncio.create_task(other())
        assert await feed.replay("things", before, lambda _: heard_in.append(turns))
        turning.cancel()
    assert len(heard_in) == 1_500
    assert max(map(heard_in.count, set(heard_in))) <= 500


async def test_a_transaction_is_delivered_when_it_commits(things):
    feed = Feed(things)
    ear = Ear(feed, "things")

    async def write(transaction):
        await transaction.raw.things.insert_one({}, session=transaction.session)
        await asyncio.sleep(0.3)
        assert not ear.heard

    async with running(feed):
        await until(lambda: feed.fresh)
        await things.transaction(write)
        await until(lambda: ear.heard)
    assert ear.story == [("things", "insert")]


@pytest.mark.slow
async def test_it_becomes_fresh_and_stays_so_though_nothing_happens(database):
    feed = Feed(database)
    Ear(feed, "things")
    assert not feed.fresh
    async with running(feed):
        await until(lambda: feed.fresh)
        for _ in range(150):
            assert feed.fresh
            await asyncio.sleep(0.01)
    assert not feed.fresh


@pytest.mark.slow
async def test_feeds_of_other_collections_agree_on_the_positions_of_writes(things):
    feeds = Feed(things), Feed(things)
    wide, narrow = Ear(feeds[0], "things", "others"), Ear(feeds[1], "things")

    async def write(transaction):
        for name in ("others", "things", "others", "things"):
            await transaction.raw[name].insert_one({}, session=transaction.session)

    async with running(feeds[0]), running(feeds[1]):
        await until(lambda: all(feed.fresh for feed in feeds))
        await things.raw.others.insert_one({})
        await things.transaction(write)
        await until(lambda: len(wide.heard) == 5 and len(narrow.heard) == 2)
    positions = [change.position for change in wide.heard]
    assert positions == sorted(set(positions))
    assert [each.position for each in narrow.heard] == [
        each.position for each in wide.heard if each.collection == "things"
    ]


async def test_the_start_is_a_gap_and_later_subscribers_receive_later_events(things):
    feed = Feed(things)
    early = Ear(feed, "things")
    async with running(feed):
        await until(lambda: feed.fresh)
        assert early.gaps == 1
        late = Ear(feed, "others")
        assert not feed.fresh  # nobody has watched these until now
        await until(lambda: feed.fresh)
        await things.raw.others.insert_one({})
        await things.raw.things.insert_one({})
        await until(lambda: early.heard and late.heard)
    assert late.story == [("others", "insert")]
    assert early.story == [("things", "insert")]
    assert early.gaps == 1  # widening it lost nothing


@pytest.mark.slow
async def test_a_busy_process_does_not_treat_an_old_reply_as_fresh(database):
    """Nothing of the feed ran for longer than it may be trusted: what it knew before is no longer enough."""
    feed = Feed(database)
    Ear(feed, "outbox")
    async with running(feed):
        await until(lambda: feed.fresh)
        time.sleep(FRESH_S + 0.1)  # noqa: ASYNC251 (the event loop itself stands still)
        assert not feed.fresh
        await until(lambda: feed.fresh)


async def test_a_failing_listener_does_not_affect_others(things):
    feed = Feed(things)
    feed.subscribe(["things"], lambda change: 1 / 0)
    ear = Ear(feed, "things")
    async with running(feed):
        await until(lambda: feed.fresh)
        await things.raw.things.insert_many([{}, {}])
        await until(lambda: len(ear.heard) == 2)


async def test_dropping_a_collection_is_a_gap(things):
    feed = Feed(things)
    await things.raw.things.insert_one({})
    ear = Ear(feed, "things")
    async with running(feed):
        await until(lambda: feed.fresh)
        await things.raw.things.drop()
        await until(lambda: ear.gaps == 2)


@pytest.mark.slow
async def test_dropping_the_database_is_a_gap_and_the_feed_goes_on(empty_database):
    database = empty_database
    await database.raw.things.insert_one({})
    feed = Feed(database)
    ear = Ear(feed, "things")
    async with running(feed):
        await until(lambda: feed.fresh)
        await database.client.drop_database(database.name)
        await until(lambda: ear.gaps >= 2)
        while not ear.heard:  # events before the stream is reopened are part of the gap
            await database.raw.things.insert_one({})
            await asyncio.sleep(0.1)
        await until(lambda: feed.fresh)


@pytest.mark.slow
async def test_a_killed_cursor_resumes_without_a_gap(things):
    feed = Feed(things)
    ear = Ear(feed, "things")
    watching = {"$match": {"ns": {"$regex": f"^{things.name}\\."}, "cursor.cursorId": {"$exists": True}}}
    killed = set()
    async with running(feed):
        await until(lambda: feed.fresh)
        for count in range(1, 4):
            for found in await (await things.client.admin.aggregate([_ALL_CURSORS, watching])).to_list():
                cursor = found["cursor"]["cursorId"]
                killed.add(cursor)
                await things.raw.command("killCursors", "$cmd.aggregate", cursors=[cursor])
            await things.raw.things.insert_one({})
            await until(lambda: len(ear.heard) == count)  # noqa: B023 (awaited here)
            await until(lambda: feed.fresh)
    assert len(killed) >= 2
    assert ear.gaps == 1


@pytest.mark.slow
async def test_a_frozen_server_is_noticed_within_a_second_and_nothing_is_missed(own_server: server.Server):
    """SIGSTOP closes no connection: to the driver a server that stands still looks like one with nothing to
    say.
    """
    database = await connect(own_server.uri, name="frozen")
    feed = Feed(database)
    ear = Ear(feed, "things")
    mongod = own_server.pids[0]
    try:
        async with running(feed):
            await until(lambda: feed.fresh)
            os.kill(mongod, signal.SIGSTOP)
            stopped = time.monotonic()
            try:
                await until(lambda: not feed.fresh, seconds=FRESH_S + 0.5)
                assert time.monotonic() - stopped <= FRESH_S + 0.1
            finally:
                os.kill(mongod, signal.SIGCONT)
            await database.raw.things.insert_one({})
            await until(lambda: ear.heard)
            await until(lambda: feed.fresh)
        assert ear.gaps == 1
    finally:
        await database.close()


@pytest.mark.slow
async def test_a_server_that_dies_is_no_gap_when_its_oplog_lives_on(own_server: server.Server):
    database = await connect(own_server.uri, name="killed")
    feed = Feed(database)
    ear = Ear(feed, "things")
    try:
        async with running(feed):
            await until(lambda: feed.fresh)
            await database.raw.things.insert_one({})
            await until(lambda: ear.heard)
            os.kill(own_server.pids[0], signal.SIGKILL)
            await until(lambda: not feed.fresh)
            await own_server.wait()
            await own_server.restart()
            await database.raw.things.insert_one({})
            await until(lambda: len(ear.heard) == 2, seconds=30)
            await until(lambda: feed.fresh, seconds=30)
        assert ear.gaps == 1
    finally:
        await database.close()
