"""What an operator can put right, and that there is nothing to put right unless somebody interfered."""

from datetime import timedelta
from typing import Any

import pytest
from bson import Int64, ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound
from ximler.database import Database
from ximler.metering import corrections
from ximler.metering.meter import Meter
from ximler.projects import projects
from ximler.schema.quota import QUOTAS

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


async def test_what_nobody_interfered_with_has_not_drifted(database: Database, person: Actor) -> None:
    await projects.create(database, person, name="P")
    before = await used(database, person, 7)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    assert await stored(database, person) == before
    assert await database.raw["auditlogs"].count_documents({"action": "metering.usage.rebuilt"}) == 0


async def test_a_damaged_quota_is_made_what_the_ledger_says(database: Database, person: Actor) -> None:
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


async def test_a_row_that_somebody_removed_is_written_again(database: Database, person: Actor) -> None:
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


async def test_a_gauge_is_made_what_exists(database: Database, person: Actor) -> None:
    await projects.create(database, person, name="P")
    size = (await database.raw["gauges"].find_one({"_id": person.user_id}) or {})["storageBytes"]
    await database.raw["gauges"].update_one({"_id": person.user_id}, {"$set": {"projects": 3, "storageBytes": 999}})
    looked = await corrections.rebuild(database, OPERATOR, person.user_id, dry_run=True)
    assert shown(looked) == {("projects", 3, 1), ("storage_bytes", 999, size)}
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == looked
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    await projects.create(database, person, name="Q")


async def test_everybody_is_rebuilt_one_after_the_other(database: Database, person: Actor) -> None:
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
