"""What an operator can put right, and that there is nothing to put right unless somebody interfered."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import Int64, ObjectId
from tests.metering.conftest import Subscribe
from tests.metering.ledger.test_events import event

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound
from ximler.database import Database
from ximler.metering import corrections
from ximler.metering.ledger import settlement
from ximler.metering.ledger.events import record
from ximler.metering.limits import entitlements, periods
from ximler.metering.quota.meter import Meter
from ximler.projects import projects
from ximler.schema.quota import QUOTAS
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")


async def used(database: Database, person: Actor, units: int) -> dict[str, Any]:
    """A quota of which so many units were used."""
    meter = Meter(database)
    await meter.consume(person, units=units)
    await meter.close()
    return await stored(database, person)


async def stored(database: Database, person: Actor) -> dict[str, Any]:
    found = await database.raw["quotas"].find_one({"userId": person.user_id})
    assert found is not None
    return found


async def remaining(database: Database, person: Actor) -> int:
    quota = await database[QUOTAS].find_one({"userId": person.user_id})
    assert quota is not None
    left = quota.remaining_at(database.clock.now())
    assert left is not None
    return left


def shown(drifts: list[corrections.Drift]) -> set[tuple[str, int, int]]:
    return {(drift.what, drift.was, drift.now) for drift in drifts}


@pytest.mark.slow
async def test_undisturbed_usage_has_no_drift(database: Database, person: Actor) -> None:
    await projects.create(database, person, name="P")
    before = await used(database, person, 7)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    assert await stored(database, person) == before
    assert await database.raw["auditlogs"].count_documents({"action": "metering.usage.rebuilt"}) == 0


@pytest.mark.slow
async def test_a_damaged_quota_is_rebuilt_from_the_ledger(database: Database, person: Actor) -> None:
    before = await used(database, person, 7)
    await database.raw["quotas"].update_one({}, {"$set": {"settled": 3, "granted": 900, "hours": {}}})
    looked = await corrections.rebuild(database, OPERATOR, person.user_id, dry_run=True)
    assert (await stored(database, person))["granted"] == 900
    assert shown(looked) == {("settled", 3, 7), ("granted", 900, 7)}
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == looked
    after = await stored(database, person)
    assert {n: after[n] for n in ("settled", "granted", "hours")} == {
        n: before[n] for n in ("settled", "granted", "hours")
    }
    (entry,) = await database.raw["auditlogs"].find({"action": "metering.usage.rebuilt"}).to_list()
    assert entry["metadata"]["before"] == {"settled": 3, "granted": 900}
    assert entry["metadata"]["after"] == {"settled": 7, "granted": 7}


async def test_a_removed_row_is_written_again(database: Database, person: Actor) -> None:
    await used(database, person, 7)
    before = await database.raw["usage"].find({}).to_list()
    await database.raw["usage"].delete_many({})
    assert shown(await corrections.rebuild(database, OPERATOR, person.user_id)) == {("ledger", 0, 7)}
    after = await database.raw["usage"].find({}).to_list()
    assert [(r["_id"], r["amount"]) for r in after] == [(r["_id"], r["amount"]) for r in before]


async def test_rows_that_another_application_wrote_count_from_then_on(database: Database, person: Actor) -> None:
    await used(database, person, 7)
    now = database.clock.now()
    theirs = {"userId": person.user_id, "resourceType": "apiCalls", "periodStart": now, "periodEnd": now}
    strange = [30, 3.0, Int64(2), float("nan"), float("inf")]
    await database.raw["usage"].insert_many([{**theirs, "amount": amount} for amount in strange])
    await database.raw["usage"].insert_one(
        {**theirs, "amount": 500, "periodStart": now - timedelta(days=40), "metadata": {"from": "cron"}}
    )
    assert shown(await corrections.rebuild(database, OPERATOR, person.user_id)) == {("foreign", 0, 35)}
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    assert await remaining(database, person) == 1000 - 7 - 35
    meter = Meter(database)
    with pytest.raises(LimitExceeded):
        await meter.consume(person, units=959)
    await meter.consume(person, units=958)
    await meter.close()


async def test_a_lease_that_is_open_is_neither_lost_nor_counted_twice(database: Database, person: Actor) -> None:
    meter = Meter(database)
    await meter.consume(person)
    await meter.sweep()
    await meter.consume(person)
    await database.raw["quotas"].update_one({}, {"$set": {"granted": 77}})
    assert shown(await corrections.rebuild(database, OPERATOR, person.user_id)) == {("granted", 77, 5)}
    await meter.consume(person, units=998)
    await meter.close()
    assert (await stored(database, person))["settled"] == 1000


async def test_a_gauge_is_rebuilt_from_the_projects(database: Database, person: Actor) -> None:
    await projects.create(database, person, name="P")
    size = (await database.raw["gauges"].find_one({"_id": person.user_id}) or {})["storageBytes"]
    await database.raw["gauges"].update_one({"_id": person.user_id}, {"$set": {"projects": 3, "storageBytes": 999}})
    looked = await corrections.rebuild(database, OPERATOR, person.user_id, dry_run=True)
    assert shown(looked) == {("projects", 3, 1), ("storage_bytes", 999, size)}
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == looked
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    await projects.create(database, person, name="Q")


async def test_all_users_are_rebuilt_in_turn(database: Database, person: Actor) -> None:
    await used(database, person, 7)
    await database.raw["quotas"].update_one({}, {"$set": {"granted": 900}})
    found = [drifts async for drifts in corrections.rebuild_all(database, OPERATOR)]
    assert [shown(drifts) for drifts in found] == [{("granted", 900, 7)}]


# Forgiving


async def forfeited(database: Database, person: Actor) -> None:
    await used(database, person, 7)
    await database.raw["quotas"].update_one({}, {"$inc": {"granted": 93, "forfeited": 93}})


async def test_forfeited_units_can_be_given_back_and_it_is_audited(database: Database, person: Actor) -> None:
    await forfeited(database, person)
    assert await remaining(database, person) == 900
    assert await corrections.forgive(database, OPERATOR, person.user_id, reason="a power cut", units=13) == 13
    assert await corrections.forgive(database, OPERATOR, person.user_id, reason="the rest") == 80
    assert await corrections.forgive(database, OPERATOR, person.user_id, reason="there is none") == 0
    assert await remaining(database, person) == 993
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    entries = await database.raw["auditlogs"].find({"action": "metering.usage.forgiven"}).sort("_id", 1).to_list()
    assert [entry["metadata"]["reason"] for entry in entries] == ["a power cut", "the rest"]
    assert entries[0]["metadata"]["before"] == {"forfeited": 93}
    assert entries[0]["metadata"]["after"] == {"forfeited": 80}


async def test_no_more_is_given_back_than_was_forfeited(database: Database, person: Actor) -> None:
    with pytest.raises(NotFound):
        await corrections.forgive(database, OPERATOR, person.user_id, reason="x")
    await forfeited(database, person)
    with pytest.raises(Conflict, match="93"):
        await corrections.forgive(database, OPERATOR, person.user_id, reason="x", units=94)
    for wrong in ({"units": 0}, {"units": 1.5}, {"reason": " "}):
        with pytest.raises(Invalid):
            await corrections.forgive(database, OPERATOR, person.user_id, **{"reason": "x", **wrong})


async def test_only_operators_correct(database: Database, person: Actor) -> None:
    with pytest.raises(Forbidden):
        await corrections.rebuild(database, person, person.user_id)
    with pytest.raises(Forbidden):
        await corrections.forgive(database, person, person.user_id, reason="please")
    with pytest.raises(NotFound):
        await corrections.rebuild(database, OPERATOR, ObjectId())


# Recorded events


async def recorded(database: Database, person: Actor, count: int) -> None:
    await record(database, OPERATOR, [event(database, person, id=str(n), amount=2) for n in range(count)])


@pytest.mark.slow
async def test_recorded_usage_is_rebuilt_from_the_ledger(database: Database, person: Actor) -> None:
    await used(database, person, 7)
    await recorded(database, person, 5)
    await settlement.settle(database)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    await database.raw["quotas"].update_one({}, {"$set": {"ingested": 990}})
    looked = await corrections.rebuild(database, OPERATOR, person.user_id, dry_run=True)
    assert shown(looked) == {("ingested", 990, 10)}
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == looked
    assert await remaining(database, person) == 1000 - 7 - 10
    await record(database, OPERATOR, [event(database, person, id="late", amount=3)])
    await settlement.settle(database)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    assert await remaining(database, person) == 1000 - 7 - 13


@pytest.mark.slow
async def test_events_of_a_moved_anniversary_stay_with_the_quota_that_they_counted_in(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await recorded(database, person, 5)
    await settlement.settle(database)
    await subscribe(person, "pro", start_date=database.clock.now() - timedelta(days=1))
    await entitlements.heal(database, [person.user_id])
    await record(database, OPERATOR, [event(database, person, id="after", amount=9)])
    await settlement.settle(database)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    quotas = await database.raw["quotas"].find({"userId": person.user_id}).to_list()
    assert sum(quota["ingested"] for quota in quotas) == 19
    assert sum(row["amount"] for row in await database.raw["usage"].find({}).to_list()) == 19


async def test_events_of_the_next_minutes_count_in_the_period_that_begins_with_them(
    database: Database, person: Actor
) -> None:
    now = database.clock.now()
    _, following = periods.around(1, now)
    database.clock.offset_ms = int((following - now).total_seconds() * 1000) - 60_000
    await record(database, OPERATOR, [event(database, person, at=following + timedelta(minutes=1), amount=9)])
    await settlement.settle(database)
    database.clock.offset_ms += 120_000
    quota = await used(database, person, 1)
    assert (quota["ingested"], quota["settled"], quota["opened"]) == (9, 1, True)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", ["recorded.add", "settlement._pay", "settlement._close"])
async def test_a_settlement_that_is_under_way_is_neither_drift_nor_lost(
    step: str, database: Database, person: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger, or the quota, has what the other has not."""

    class Died(Exception):
        pass

    async def die(*args: Any, **kwargs: Any) -> Any:
        raise Died

    await recorded(database, person, 5)
    await settlement.settle(database)
    await record(database, OPERATOR, [event(database, person, id="b", amount=7)])
    with monkeypatch.context() as patch:
        patch.setattr(f"ximler.metering.ledger.{step}", die)
        with pytest.raises(Died):
            await settlement.settle(database)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    assert (await stored(database, person))["ingested"] == 17
    await settlement.settle(database)
    assert (await stored(database, person))["ingested"] == 17


@pytest.mark.slow
async def test_rebuilding_while_events_are_recorded_and_settled_finds_nothing_and_breaks_nothing(
    database: Database, person: Actor
) -> None:
    busy = True
    total = 0

    async def record_on() -> None:
        nonlocal total
        while busy:
            await record(database, OPERATOR, [event(database, person, id=f"e{total}", amount=1)])
            total += 1

    async def settle_on() -> None:
        while busy:
            await settlement.settle(database)

    working = [asyncio.create_task(work) for work in (record_on(), settle_on(), settle_on())]
    try:
        for _ in range(25):
            assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
            assert not any(task.done() for task in working)
    finally:
        busy = False
        await asyncio.gather(*working)
    await settlement.settle(database)
    assert total > 25
    assert (await stored(database, person))["ingested"] == total
    # And where there is something to correct.
    await database.raw["quotas"].update_one({}, {"$inc": {"ingested": 5}})
    busy = True
    working = [asyncio.create_task(work) for work in (record_on(), settle_on(), settle_on())]
    try:
        await asyncio.sleep(0.1)
        found = await corrections.rebuild(database, OPERATOR, person.user_id)
        assert [(drift.what, drift.was - drift.now) for drift in found] == [("ingested", 5)]
    finally:
        busy = False
        await asyncio.gather(*working)
    await settlement.settle(database)
    assert (await stored(database, person))["ingested"] == total


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"projects": "many"}, {"hours": {"h1": "?"}}])
async def test_a_failing_user_does_not_block_the_rebuild_of_others(database: Database, wrong: dict[str, Any]) -> None:
    people = []
    for n in range(20):
        user = await database.users.insert(User(name="n", email=f"{n}@example.com", password="-"))
        people.append(Actor(kind="user", via="session", user_id=user.id))
        await projects.create(database, people[-1], name="P")
    await database.raw["gauges"].update_many({}, {"$inc": {"projects": 1}})
    await database.raw["gauges"].update_one(
        {"_id": people[7].user_id}, {"$set": wrong}, bypass_document_validation=True
    )
    found = [drift async for drifts in corrections.rebuild_all(database, OPERATOR) for drift in drifts]
    others = {person.user_id for person in people[:7] + people[8:]}
    assert others <= {drift.user_id for drift in found if drift.what == "projects"}
    gauges = await database.raw["gauges"].find({"_id": {"$in": list(others)}}).to_list()
    assert [gauge["projects"] for gauge in gauges] == [1] * 19
