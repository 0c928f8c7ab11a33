"""Jobs: enqueued with the change, run at least once, never by two workers at a time."""

import asyncio
from datetime import timedelta

import pytest

from ximler.core.errors import Conflict, NotFound
from ximler.database import outbox
from ximler.database.monitoring import round_trips
from ximler.schema.job import OUTBOX


async def travel(database, delta):
    database.clock.offset_ms += int(delta.total_seconds() * 1000)


async def test_a_job_exists_exactly_if_its_change_does(database):
    async def change(transaction, *, fail):
        await outbox.enqueue(transaction, "t", {"n": 1})
        if fail:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await database.transaction(lambda t: change(t, fail=True))
    assert await outbox.claim(database, ["t"]) is None
    await database.transaction(lambda t: change(t, fail=False))
    assert (await outbox.claim(database, ["t"])).payload == {"n": 1}


async def test_a_status_query_costs_one_command(database):
    with round_trips() as trips:
        await outbox.enqueue(database, "t", {})
    assert trips == [("insert", "outbox")]


async def test_of_racing_workers_one_gets_each_job(database):
    for n in range(20):
        await outbox.enqueue(database, "t", {"n": n})
    claimed = await asyncio.gather(*(outbox.claim(database, ["t"]) for _ in range(40)))
    assert sorted(job.payload["n"] for job in claimed if job) == list(range(20))


async def test_a_worker_takes_only_the_kinds_it_knows(database):
    await outbox.enqueue(database, "theirs", {})
    assert await outbox.claim(database, ["ours"]) is None


async def test_a_job_is_not_run_before_its_time(database):
    await outbox.enqueue(database, "t", {}, run_at=database.clock.now() + timedelta(hours=1))
    assert await outbox.claim(database, ["t"]) is None
    await travel(database, timedelta(hours=1, seconds=1))
    assert await outbox.claim(database, ["t"]) is not None


async def test_the_lease_of_a_dead_worker_runs_out(database):
    await outbox.enqueue(database, "t", {})
    first = await outbox.claim(database, ["t"])
    assert await outbox.claim(database, ["t"]) is None
    await travel(database, outbox.LEASE + timedelta(seconds=1))
    second = await outbox.claim(database, ["t"])
    assert (second.id, second.attempts) == (first.id, 2)
    assert not await outbox.complete(database, first)
    assert not await outbox.renew(database, first)
    assert await outbox.complete(database, second)


async def test_a_renewed_lease_stays_valid(database):
    await outbox.enqueue(database, "t", {})
    job = await outbox.claim(database, ["t"])
    await travel(database, outbox.LEASE * 0.9)
    assert await outbox.renew(database, job)
    await travel(database, outbox.LEASE * 0.9)
    assert await outbox.claim(database, ["t"]) is None
    assert await outbox.complete(database, job)


async def test_a_failed_job_comes_back_later_and_later_and_then_is_dead(database):
    await outbox.enqueue(database, "t", {})
    waits = []
    for _ in range(outbox.MAX_ATTEMPTS):
        job = await outbox.claim(database, ["t"])
        before = database.clock.now()
        await outbox.fail(database, job, "no")
        stored = await database[OUTBOX].get(job.id)
        waits.append((stored.run_at - before).total_seconds())
        await travel(database, timedelta(hours=3))
    assert stored.status == "DEAD"
    assert stored.last_error == "no"
    assert waits[0] < 7
    assert waits[5] > 10 * waits[0]
    assert await outbox.claim(database, ["t"]) is None


async def test_a_dedupe_key_makes_asking_once_only(database):
    await asyncio.gather(*(outbox.enqueue(database, "t", {}, dedupe_key="k") for _ in range(10)))

    async def again(transaction):
        await outbox.enqueue(transaction, "t", {}, dedupe_key="k")
        return True

    assert await database.transaction(again)
    assert await database[OUTBOX].count({}) == 1


async def test_an_operator_retries_and_cancels(database):
    await outbox.enqueue(database, "t", {})
    job = await outbox.claim(database, ["t"])
    with pytest.raises(Conflict):
        await outbox.cancel(database, job.id)
    await outbox.fail(database, job, "no", for_good=True)
    assert (await outbox.retry(database, job.id)).status == "PENDING"
    assert (await outbox.claim(database, ["t"])).attempts == 1
    await outbox.enqueue(database, "u", {})
    other = (await outbox.page(database, status="PENDING")).items[0]
    assert (await outbox.cancel(database, other.id)).status == "CANCELLED"
    assert await outbox.claim(database, ["u"]) is None
    with pytest.raises(NotFound):
        await outbox.retry(database, type(job.id)())
