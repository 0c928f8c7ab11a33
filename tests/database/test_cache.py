"""Caches over the change feed: fast, bounded, and never older than what was committed."""

import asyncio
import random
import time

import pytest
from tests.database.following import running, until

from ximler.database.cache import ABSENT, Cache, Watch
from ximler.database.changes import FRESH_S, Feed


class Shop:
    """Things by their code, through a cache; counts what it asks the database."""

    def __init__(self, database, *, entries=100, absent=100):
        self.raw = database.raw.things
        self.feed = Feed(database)
        self.reads = 0
        self.pause = asyncio.Event()
        self.pause.set()
        watch = Watch(collection="things", by="code", indifferent=frozenset({"seen"}))
        self.cache = Cache(self.feed, [watch], entries=entries, absent=absent)

    async def read(self, code):
        self.reads += 1
        found = await self.raw.find_one({"code": code})
        await self.pause.wait()
        if found is None:
            return None, [("things", code)]
        return found["price"], [("things", found["_id"])]

    async def price(self, code):
        return await self.cache.get(code, self.read)


@pytest.fixture
async def shop(database):
    shop = Shop(database)
    async with running(shop.feed):
        await until(lambda: shop.feed.fresh)
        yield shop
    await database.raw.things.drop()


async def test_a_cached_entry_is_not_read_again(shop):
    await shop.raw.insert_one({"code": "a", "price": 1})
    await shop.feed.caught_up()
    assert [await shop.price("a") for _ in range(5)] == [1] * 5
    assert shop.reads == 1
    assert shop.cache.peek("a") == 1


@pytest.mark.slow
async def test_a_write_evicts_only_entries_that_depend_on_it(shop):
    await shop.raw.insert_many([{"code": "a", "price": 1}, {"code": "b", "price": 1}])
    await shop.feed.caught_up()
    await shop.price("a"), await shop.price("b")
    await shop.raw.update_one({"code": "a"}, {"$set": {"price": 2}})
    await until(lambda: shop.cache.peek("a") is None)
    assert shop.cache.peek("b") == 1
    assert await shop.price("a") == 2
    await shop.raw.delete_one({"code": "a"})
    await until(lambda: shop.cache.peek("a") is None)
    assert await shop.price("a") is None


@pytest.mark.slow
async def test_an_unrelated_write_evicts_nothing(shop):
    await shop.raw.insert_one({"code": "a", "price": 1})
    await shop.feed.caught_up()
    await shop.price("a")
    await shop.raw.update_one({"code": "a"}, {"$set": {"seen": 1}})
    await shop.feed.caught_up()
    assert shop.cache.peek("a") == 1
    await shop.raw.update_one({"code": "a"}, {"$set": {"seen": 2, "price": 3}})
    await shop.feed.caught_up()
    assert await shop.price("a") == 3


@pytest.mark.slow
async def test_absence_is_cached_until_the_document_appears(shop):
    await shop.feed.caught_up()
    assert [await shop.price("a") for _ in range(5)] == [None] * 5
    assert shop.reads == 1
    assert shop.cache.peek("a") is ABSENT
    await shop.raw.insert_one({"code": "b", "price": 1})
    await shop.feed.caught_up()
    assert shop.cache.peek("a") is ABSENT
    await shop.raw.insert_one({"code": "a", "price": 1})
    await until(lambda: shop.cache.peek("a") is None)
    assert await shop.price("a") == 1
    await shop.raw.update_one({"code": "b"}, {"$set": {"code": "c"}})  # as a key that is given another secret
    assert await shop.price("c") == 1


async def test_a_read_overtaken_by_a_write_is_not_kept(shop):
    await shop.raw.insert_one({"code": "a", "price": 1})
    await shop.feed.caught_up()
    shop.pause.clear()
    reading = asyncio.create_task(shop.price("a"))
    await until(lambda: shop.reads == 1)
    await asyncio.sleep(0.05)
    await shop.raw.update_one({"code": "a"}, {"$set": {"price": 2}})
    await shop.feed.caught_up()
    shop.pause.set()
    assert await reading == 1  # it was so when it was asked
    assert shop.cache.peek("a") is None
    assert await shop.price("a") == 2


@pytest.mark.slow
async def test_an_absence_overtaken_by_an_insert_is_not_kept(shop):
    await shop.feed.caught_up()
    shop.pause.clear()
    reading = asyncio.create_task(shop.price("a"))
    await until(lambda: shop.reads == 1)
    await asyncio.sleep(0.05)
    await shop.raw.insert_one({"code": "a", "price": 2})
    await shop.feed.caught_up()
    shop.pause.set()
    assert await reading is None
    assert await shop.price("a") == 2


async def test_a_read_across_a_gap_is_not_kept(shop):
    shop.pause.clear()
    reading = asyncio.create_task(shop.price("a"))
    await until(lambda: shop.reads == 1)
    shop.cache.clear()
    shop.pause.set()
    await reading
    assert shop.cache.peek("a") is None


async def test_a_silent_feed_is_not_trusted(database):
    shop = Shop(database)
    await shop.raw.insert_one({"code": "a", "price": 1})
    async with running(shop.feed):
        await until(lambda: shop.feed.fresh)
        await shop.price("a")
        await shop.price("a")
        assert shop.reads == 1
    for _ in range(3):  # nothing listens any more
        assert await shop.price("a") == 1
    assert shop.reads == 4
    await shop.raw.update_one({"code": "a"}, {"$set": {"price": 2}})
    assert await shop.price("a") == 2
    async with running(shop.feed):  # it goes on where it was
        await until(lambda: shop.feed.fresh)
        assert await shop.price("a") == 2
    await database.raw.things.drop()


async def test_a_value_read_past_a_silent_feed_is_never_followed_by_an_older_one(database):
    """The feed's last request was sent before the write and is answered
    after the reader has seen the write."""
    shop = Shop(database)
    feed = shop.feed

    def known_until(moment):
        feed._known_until = moment

    await shop.raw.insert_many([{"code": "a", "price": 1}, {"code": "b", "price": 1}])
    known_until(time.monotonic())
    assert await shop.price("a") == await shop.price("b") == 1
    assert await shop.price("c") is None
    await shop.raw.update_one({"code": "a"}, {"$set": {"price": 2}})
    await shop.raw.insert_one({"code": "c", "price": 2})
    assert await shop.price("a") == 1  # from memory: less than a second old
    known_until(time.monotonic() - FRESH_S)
    assert await shop.price("a") == await shop.price("c") == 2
    known_until(time.monotonic())
    assert await shop.price("a") == await shop.price("c") == 2
    assert shop.cache.peek("b") == 1  # was not read meanwhile, and need not be read again

    # A read that began while the feed was fresh, and saw the document before the write,
    # ends last: it is not kept either.
    shop.cache.clear()
    seen, go_on = asyncio.Event(), asyncio.Event()

    async def slow(code):
        answer = await shop.read(code)
        seen.set()
        await go_on.wait()
        return answer

    early = asyncio.create_task(shop.cache.get("a", slow))
    await seen.wait()
    await shop.raw.update_one({"code": "a"}, {"$set": {"price": 3}})
    known_until(time.monotonic() - FRESH_S)
    assert await shop.price("a") == 3
    known_until(time.monotonic())
    go_on.set()
    assert await early == 2
    assert shop.cache.peek("a") is None
    await database.raw.things.drop()


@pytest.mark.slow
async def test_neither_values_nor_absences_nor_their_tags_grow_without_bound(database):
    shop = Shop(database, entries=10, absent=5)
    await shop.raw.insert_many([{"code": n, "price": n} for n in range(1, 51)])
    async with running(shop.feed):
        await until(lambda: shop.feed.fresh)
        await shop.feed.caught_up()
        for n in range(1, 51):
            assert await shop.price(n) == n
            assert await shop.price(-n) is None
            assert await shop.price(1) == 1  # stays, being used
        assert len(shop.cache) == 15
        assert len(shop.cache._keys) == 15
        assert shop.reads == 100
    await database.raw.things.drop()


async def test_forgetting_takes_effect_at_once_and_after_the_transaction_that_asks_for_it(shop, database):
    key = (await shop.raw.insert_one({"code": "a", "price": 1})).inserted_id
    await shop.feed.caught_up()
    await shop.price("a")
    database.forget("things", key)
    assert shop.cache.peek("a") is None
    await shop.price("a")

    async def write(transaction):
        transaction.forget("things", key)
        assert shop.cache.peek("a") == 1

    await database.transaction(write)
    assert shop.cache.peek("a") is None
    database.feed = None


@pytest.mark.slow
async def test_readers_racing_a_writer_never_end_with_an_old_value(shop):
    """Whatever interleaves: once the feed has caught up with the last write, everybody reads it."""
    codes = list("abcde")
    await shop.raw.insert_many([{"code": code, "price": 0} for code in codes])
    chance = random.Random(7)
    newest = dict.fromkeys(codes, 0)
    written = {code: [(0, time.monotonic())] for code in codes}  # each price, and when its commit was known
    stop = False

    async def read():
        while not stop:
            code, asked = chance.choice(codes), time.monotonic()
            price = await shop.price(code)
            replaced_at = next((at for other, at in written[code] if other > price), asked)
            if replaced_at < asked - FRESH_S:
                raise AssertionError(f"{asked - replaced_at} s older than a cache may be")
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(8)]
    for price in range(1, 301):
        code = chance.choice(codes)
        await shop.raw.update_one({"code": code}, {"$set": {"price": price}})
        newest[code] = price
        written[code].append((price, time.monotonic()))
        if price % 50 == 0:
            await shop.feed.caught_up()
            assert {code: await shop.price(code) for code in codes} == newest
    stop = True
    await asyncio.gather(*readers)
    assert shop.reads < 3000
