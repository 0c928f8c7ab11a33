"""Leases of dead processes: forfeited once, found by process,
and not those of a process that only was slow."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.failing import Failing
from tests.metering.quota.spending import held, quota, rows, spend_all

from ximler.core.actor import Actor
from ximler.core.errors import Unavailable
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.quota import heartbeats, leases
from ximler.metering.quota.meter import Meter
from ximler.metering.quota.reaping import Reaper

PATIENCE = timedelta(milliseconds=600)


@pytest.fixture
async def dead(database: Database) -> Meter:
    """A process that does not renew its heartbeat unless it is used."""
    return Meter(database, valid_for=PATIENCE)


@pytest.fixture
def reaper(database: Database) -> Reaper:
    return Reaper(database, valid_for=PATIENCE)


async def expired(database: Database, *meters: Meter) -> None:
    async with asyncio.timeout(10):
        while await heartbeats.alive(database, [meter._heartbeat.process for meter in meters]):  # noqa: ASYNC110 (it is asked)
            await asyncio.sleep(0.02)


async def reaped(reaper: Reaper) -> int:
    """The units of the first pass that forfeits any."""
    async with asyncio.timeout(10):
        while not (units := await reaper.reap()):  # noqa: ASYNC110 (it is asked)
            await asyncio.sleep(0.02)
    return units


def suspect_long_ago(reaper: Reaper) -> None:
    """As if the suspects had been seen before."""
    for process in reaper._suspected_at:
        reaper._suspected_at[process] -= 60


@pytest.mark.slow
async def test_a_lease_of_a_dead_process_is_forfeited_and_its_ledger_written(
    database: Database, person: Actor, dead: Meter, reaper: Reaper
) -> None:
    await dead.consume(person, units=2)
    await dead.consume(person)
    (tally,) = dead._all()
    await leases.settle(database, [tally.report()])  # and it dies before it writes the ledger
    await dead.consume(person)  # and before it reports this
    lease = held(await quota(database, person))
    assert lease > 1

    await expired(database, dead)
    began = time.monotonic()
    assert await reaper.reap() == 0  # suspected
    assert await reaped(reaper) == lease
    assert time.monotonic() - began >= PATIENCE.total_seconds() / 3
    document = await quota(database, person)
    assert (document["forfeited"], document["settled"], document["granted"]) == (lease, 3, 3 + lease)
    assert (document["leases"], document["holders"]) == ({}, [])
    assert [row["amount"] for row in await rows(database, person)] == [3]
    alive = Meter(database)
    assert await spend_all(alive, person) == 1000 - 3 - lease
    await alive.close()


@pytest.mark.slow
async def test_a_process_that_renews_its_heartbeat_keeps_unused_leases(
    database: Database, person: Actor, dead: Meter, reaper: Reaper
) -> None:
    await dead.consume(person)
    end = time.monotonic() + 3 * PATIENCE.total_seconds()
    while time.monotonic() < end:
        dead._heartbeat._renewed_at = None  # due, however busy the machine is
        await dead._heartbeat.renew()
        assert await reaper.reap() == 0
        await asyncio.sleep(0.05)
    assert held(await quota(database, person)) == 5
    await dead.close()


@pytest.mark.slow
async def test_a_process_that_wakes_up_before_its_leases_are_forfeited_keeps_them(
    database: Database, person: Actor, dead: Meter, reaper: Reaper
) -> None:
    await dead.consume(person)
    await expired(database, dead)
    assert await reaper.reap() == 0
    suspect_long_ago(reaper)
    await dead.sweep()
    assert await reaper.reap() == 0
    await dead.close()
    document = await quota(database, person)
    assert (document["settled"], document["forfeited"], document["granted"], document["leases"]) == (1, 0, 1, {})


@pytest.mark.slow
async def test_a_process_that_wakes_up_too_late_gets_another_lease(
    database: Database, person: Actor, dead: Meter, reaper: Reaper
) -> None:
    await dead.consume(person, units=3)
    await expired(database, dead)
    lease = await reaped(reaper)
    await dead.consume(person)
    await dead.sweep()
    document = await quota(database, person)
    assert (document["settled"], document["forfeited"], document["granted"]) == (0, lease, lease)
    await dead.consume(person)
    await dead.close()
    document = await quota(database, person)
    assert (document["settled"], document["granted"], document["leases"]) == (1, 1 + lease, {})


@pytest.mark.slow
async def test_a_lease_that_moves_after_its_process_was_found_dead_is_not_forfeited(
    database: Database, person: Actor, dead: Meter, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dead.consume(person)
    await expired(database, dead)
    await reaper.reap()
    suspect_long_ago(reaper)
    forfeit = leases.forfeit

    async def late(*args: Any) -> int:
        await dead.sweep()  # it wakes up at the last moment
        return await forfeit(*args)

    monkeypatch.setattr(leases, "forfeit", late)
    assert await reaper.reap() == 0
    await dead.close()
    assert (await quota(database, person))["settled"] == 1


@pytest.mark.slow
async def test_two_reapers_forfeit_a_lease_once(database: Database, person: Actor, dead: Meter) -> None:
    await dead.consume(person)
    await expired(database, dead)
    reapers = [Reaper(database, valid_for=PATIENCE) for _ in range(4)]
    await asyncio.gather(*(reaper.reap() for reaper in reapers))
    for reaper in reapers:
        suspect_long_ago(reaper)
    assert sum(await asyncio.gather(*(reaper.reap() for reaper in reapers))) >= 5
    document = await quota(database, person)
    assert (document["forfeited"], document["granted"], document["leases"]) == (5, 5, {})


async def test_an_outage_restarts_the_reapers_delay(failing: Failing) -> None:
    reaper = Reaper(failing.database, valid_for=PATIENCE)
    await failing.database.raw["quotas"].insert_one({"_id": "q", "holders": ["dead"]}, bypass_document_validation=True)
    await reaper.reap()
    suspect_long_ago(reaper)
    async with failing.fail("distinct", errorCode=50, times=5):
        with pytest.raises(Unavailable):
            await reaper.reap()
    assert reaper._suspected_at == {}


@pytest.mark.slow
async def test_one_of_two_leases_that_a_process_has_of_a_quota_is_returned_and_the_other_is_still_found(
    database: Database, person: Actor, dead: Meter, reaper: Reaper
) -> None:
    await dead.consume(person)
    (tally,) = dead._all()
    await leases.grant(database, tally.quota_id, f"{tally.process}-other", grants=0, need=7, want=7, pace=0)
    await dead.close()
    document = await quota(database, person)
    assert list(document["leases"]) == [f"{tally.process}-other"]
    assert document["holders"] == [tally.process]
    await expired(database, dead)
    assert await reaped(reaper) == document["leases"][f"{tally.process}-other"]["n"]


# Quotas that a release without heartbeats has written


async def of_an_earlier_release(database: Database, actor: Actor, *, silent_for: timedelta) -> None:
    meter = Meter(database)
    await meter.consume(actor, units=5)
    now = database.clock.now()
    document = await quota(database, actor)
    (lease,) = document["leases"].values()
    at = int((now - silent_for).timestamp() * 1000)
    await database.raw["quotas"].update_one(
        {"_id": document["_id"]},
        {
            "$set": {"leases": {"a1b2c3d4e5f6": {**lease, "at": at}}, "lookAt": now - timedelta(seconds=1)},
            "$unset": {"holders": ""},
        },
    )


@pytest.mark.slow
async def test_a_silent_lease_of_an_earlier_release_is_forfeited(
    database: Database, person: Actor, reaper: Reaper
) -> None:
    await of_an_earlier_release(database, person, silent_for=timedelta(minutes=1))
    lease = held(await quota(database, person))
    assert await reaped(reaper) == lease
    document = await quota(database, person)
    assert (document["forfeited"], document["leases"], document["holders"]) == (lease, {}, [])
    assert "lookAt" not in document


async def test_a_lease_of_a_process_of_an_earlier_release_that_still_runs_is_left_alone(
    database: Database, person: Actor
) -> None:
    await of_an_earlier_release(database, person, silent_for=timedelta(seconds=1))
    reaper = Reaper(database)
    await reaper.reap()
    suspect_long_ago(reaper)
    assert await reaper.reap() == 0
    assert held(await quota(database, person)) > 0


# At scale


async def crowd(database: Database, count: int, *, processes: int, dead: int = 0) -> list[ObjectId]:
    """Users with a quota and an open lease of one of so many live processes;
    the first `dead` ones of a dead one."""
    now = database.clock.now()
    ids = [ObjectId() for _ in range(count)]
    documents = []
    for number, user_id in enumerate(ids):
        process = "dead" if number < dead else f"live{number % processes}"
        lease = {"n": 5, "seq": 0, "grants": 1, "at": 0}
        documents.append(
            {
                "_id": f"{user_id}:apiCalls:{now:%Y-%m}-01",
                "userId": user_id,
                "resource": "apiCalls",
                "periodStart": now - timedelta(days=1),
                "periodEnd": now + timedelta(days=1),
                "limit": 1000,
                "opened": True,
                "superseded": False,
                "steps": 1,
                "granted": 5,
                "settled": 0,
                "forfeited": 0,
                "ingested": 0,
                "foreign": 0,
                "leases": {f"{process}-{number}": lease},
                "holders": [process],
                "createdAt": now,
                "updatedAt": now,
            }
        )
    await database.raw["quotas"].insert_many(documents)
    until = now + timedelta(hours=1)
    await database.raw["meters"].insert_many([{"_id": f"live{n}", "expiresAt": until} for n in range(processes)])
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("live", [100, 10_000])
async def test_the_commands_of_reaping_grow_with_dead_leases_and_not_with_live_quotas(
    database: Database, live: int
) -> None:
    await crowd(database, live + 500, processes=8, dead=500)
    reaper = Reaper(database)
    with round_trips() as trips:
        assert await reaper.reap() == 0
    assert len(trips) == 3
    suspect_long_ago(reaper)
    with round_trips() as trips:
        assert await reaper.reap() == 2500
    assert len(trips) <= 3 + 500 // 50 * 3 + 1
    assert await database.raw["quotas"].count_documents({"leases": {"$ne": {}}}) == live
    with round_trips() as trips:
        assert await reaper.reap() == 0
    assert len(trips) == 3


@pytest.mark.slow
async def test_dead_processes_and_their_quotas_are_found_by_index_among_ten_thousand(database: Database) -> None:
    await crowd(database, 10_000, processes=8, dead=50)
    explain = {"distinct": "quotas", "key": "holders"}
    found = await database.raw.command("explain", explain, verbosity="executionStats")
    assert found["executionStats"]["totalKeysExamined"] <= 20
    assert found["executionStats"]["totalDocsExamined"] == 0
    explain = {"find": "quotas", "filter": {"holders": {"$in": ["dead", "gone"]}}}
    found = await database.raw.command("explain", explain, verbosity="executionStats")
    assert found["executionStats"]["totalDocsExamined"] == 50


@pytest.mark.slow
async def test_ten_thousand_leases_are_extended_by_one_heartbeat(database: Database) -> None:
    meter = Meter(database)
    with round_trips() as trips:
        await asyncio.gather(*(meter._heartbeat.renew() for _ in range(10_000)))
    assert trips == [("update", "meters")]
    meter._heartbeat._renewed_at = None
    with round_trips() as trips:
        await meter._heartbeat.renew()
    assert trips == [("update", "meters")]
