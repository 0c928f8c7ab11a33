"""Leases: one holder at a time despite races, crashes, freezes and failures."""

import asyncio
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from pymongo.errors import OperationFailure
from tests.failing import UNMAPPED

from ximler.core.errors import Unavailable
from ximler.core.stopping import pause
from ximler.database import leases
from ximler.schema.lease import LEASES

SHORT = timedelta(milliseconds=600)
HOLDER = Path(__file__).with_name("lease_holder.py")


async def test_of_racing_processes_one_gets_the_lease(database):
    for _ in range(5):
        found = await asyncio.gather(*(leases.acquire(database, "work", holder=f"p{n}") for n in range(20)))
        (lease,) = [each for each in found if each]
        await lease.release()


async def test_each_new_holder_has_the_next_fence(database):
    fences = []
    for n in range(4):
        lease = await leases.acquire(database, "work", holder=f"p{n % 2}")
        fences.append(lease.fence)
        await lease.release()
    assert fences == [1, 2, 3, 4]


async def test_a_holder_retries_the_same_lease_after_a_lost_reply(database):
    first = await leases.acquire(database, "work", holder="p")
    again = await leases.acquire(database, "work", holder="p")
    assert (first.fence, again.fence) == (1, 1)


@pytest.mark.slow
async def test_a_lease_expires_by_the_servers_clock_and_is_lost_before(database):
    lease = await leases.acquire(database, "work", holder="p", ttl=SHORT)
    database.clock.offset_ms = 3_600_000  # a wrong clock does not let a process take over a lease
    assert await leases.acquire(database, "work", holder="q", ttl=SHORT) is None
    other = None
    while other is None:
        assert lease.held or not await lease.renew()
        other = await leases.acquire(database, "work", holder="q", ttl=SHORT)
        assert other is None or not lease.held
        await asyncio.sleep(0.01)
    assert lease.ended.is_set()
    assert not await lease.renew()
    await lease.release()  # of what is another's: without effect
    assert await other.renew()


@pytest.mark.slow
async def test_a_renewed_lease_is_kept(database):
    lease = await leases.acquire(database, "work", holder="p", ttl=SHORT)
    for _ in range(8):
        await asyncio.sleep(0.1)
        assert await lease.renew()
        assert await leases.acquire(database, "work", holder="q", ttl=SHORT) is None


@pytest.mark.slow
async def test_work_under_a_lease_is_done_by_one_at_a_time_and_handed_over(database):
    stop, at_work, done = asyncio.Event(), [], []

    async def process(name):
        for _ in range(3):
            async with leases.hold(database, "work", stop=stop, ttl=SHORT) as lease:
                at_work.append(name)
                assert at_work == [name]
                assert not await pause(lease.ended, 0.05)
                done.append(lease.fence)
                at_work.clear()

    await asyncio.gather(*(process(n) for n in range(4)))
    assert done == list(range(1, 13))


@pytest.mark.slow
async def test_a_lease_is_kept_for_as_long_as_its_block_lasts(database):
    stop = asyncio.Event()
    async with leases.hold(database, "work", stop=stop, ttl=SHORT) as lease:
        assert not await pause(lease.ended, 3 * SHORT.total_seconds())
        stop.set()
        assert await pause(lease.ended, 5)  # it is to stop, and has not lost the lease
        await asyncio.sleep(2 * SHORT.total_seconds())
        assert lease.held
        assert await leases.acquire(database, "work", holder="q") is None
    assert await leases.acquire(database, "work", holder="q")


async def test_waiting_for_a_lease_ends_when_it_is_to_stop(database):
    assert await leases.acquire(database, "work", holder="p")
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, stop.set)
    async with asyncio.timeout(10), leases.hold(database, "work", stop=stop) as lease:
        assert lease is None


async def test_a_lease_that_another_takes_ends_the_work(database):
    async with leases.hold(database, "work", stop=asyncio.Event(), ttl=SHORT) as lease:
        await database.raw[LEASES.name].update_one({"_id": "work"}, {"$set": {"holder": "q"}, "$inc": {"fence": 1}})
        assert await pause(lease.ended, 10)
        with pytest.raises(leases.LeaseLost):
            await database.transaction(lease.guard)


async def test_a_guarded_transaction_does_not_commit_under_a_lease_that_changes_hands(database):
    lease = await leases.acquire(database, "work", holder="p")
    took = False

    async def act(transaction):
        nonlocal took
        await transaction.raw["acts"].insert_one({"fence": lease.fence}, session=transaction.session)
        if not took:
            took = True
            await database.raw[LEASES.name].update_one({"_id": "work"}, {"$set": {"holder": "q"}, "$inc": {"fence": 1}})
        await lease.guard(transaction)

    with pytest.raises(leases.LeaseLost):
        await database.transaction(act)
    assert await database.raw["acts"].count_documents({}) == 0


@pytest.mark.slow
@pytest.mark.parametrize("code", UNMAPPED)
async def test_a_renewal_that_fails_ends_the_work_and_is_raised(failing, code):
    async def work():
        async with (
            leases.hold(failing.database, "work", stop=asyncio.Event(), ttl=SHORT) as lease,
            failing.fail("findAndModify", collection="leases", errorCode=code),
        ):
            assert await pause(lease.ended, 10)

    with pytest.raises(OperationFailure):
        await work()


@pytest.mark.slow
async def test_a_renewal_that_meets_an_outage_is_repeated(failing):
    async with (
        leases.hold(failing.database, "work", stop=asyncio.Event(), ttl=SHORT) as lease,
        failing.fail("findAndModify", collection="leases", errorCode=50) as hits,
    ):
        assert not await pause(lease.ended, 2 * SHORT.total_seconds())
        assert await hits() == 1


async def test_a_lease_is_waited_for_while_the_database_is_away(failing):
    async with failing.fail("findAndModify", collection="leases", errorCode=50, times=3):
        with pytest.raises(Unavailable):
            await leases.acquire(failing.database, "work", holder="p", ttl=SHORT)
        async with leases.hold(failing.database, "work", stop=asyncio.Event(), ttl=SHORT) as lease:
            assert lease.fence == 1


@pytest.mark.soak  # up to 90 s: if it is frozen inside a transaction, the server ends that after 60 s
async def test_a_process_that_was_frozen_past_its_lease_does_nothing_more(database, mongodb_uri):
    command = [sys.executable, str(HOLDER), mongodb_uri, database.name, "800"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert await process.stdout.readline() == b"held 1\n"
        while not await database.raw["acts"].count_documents({}):  # noqa: ASYNC110 (another process does it)
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        async with leases.hold(database, "work", stop=asyncio.Event(), ttl=timedelta(seconds=5)) as lease:
            assert lease.fence == 2
            acts = await database.raw["acts"].count_documents({})
            process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(30):
                assert await process.stdout.readline() == b"lost\n"
                assert await process.wait() == 0
            assert await database.raw["acts"].count_documents({}) == acts
            assert lease.held
    finally:
        if process.returncode is None:
            process.kill()
        await database.raw["acts"].drop()
