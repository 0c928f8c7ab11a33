"""Units are settled once and reach the ledger, despite lost, late and forfeited reports."""

import time
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.failing import Failing
from tests.metering.conftest import Subscribe
from tests.metering.quota.spending import HOUR_MS, grow_old, held, quota, rows, spend, spend_all

from ximler.core.actor import Actor
from ximler.core.errors import Unavailable
from ximler.database import Database
from ximler.metering.quota import leases
from ximler.metering.quota.meter import Meter
from ximler.schema.user import User

# Accounting


async def test_the_ledger_counts_a_bounded_number_of_keys_and_routes(
    database: Database, person: Actor, subscribe: Subscribe, meter: Meter
) -> None:
    await subscribe(person, "pro")
    keys = [ObjectId() for _ in range(100)]
    for number, key in enumerate(keys):
        actor = Actor(kind="user", via="api_key", user_id=person.user_id, api_key_id=key)
        await meter.consume(actor, units=2, route=f"GET /v1.0/$things/{number % 3}")
    await meter.consume(person)
    await meter.close()
    (row,) = await rows(database, person)
    assert row["amount"] == 201
    (leased,) = row["metadata"]["leased"].values()
    assert leased["units"] == 201
    assert leased["routes"] == {f"GET /v1%2E0/%24things/{n}": 68 if n == 0 else 66 for n in range(3)}
    assert len(leased["keys"]) == 33
    assert leased["keys"]["other"] == 68 * 2
    assert sum(leased["keys"].values()) == 200


async def test_each_hour_has_its_own_row(database: Database, person: Actor, meter: Meter) -> None:
    await meter.consume(person, units=3)
    database.clock.offset_ms += HOUR_MS
    await meter.consume(person, units=5)
    database.clock.offset_ms += 2 * HOUR_MS
    await meter.consume(person, units=7)
    await meter.close()
    found = await rows(database, person)
    assert [row["amount"] for row in found] == [3, 5, 7]
    assert [row["periodEnd"] - row["periodStart"] for row in found] == [timedelta(hours=1)] * 3
    assert [row["periodStart"].hour for row in found][1:] == [
        (found[0]["periodStart"].hour + 1) % 24,
        (found[0]["periodStart"].hour + 3) % 24,
    ]


async def test_a_repeated_report_counts_once(database: Database, person: Actor, meter: Meter) -> None:
    await meter.consume(person, units=7)
    (tally,) = meter._all()
    report = tally.report()
    assert report is not None
    for _ in range(3):
        await leases.settle(database, [report])
    await meter.sweep()
    await meter.consume(person, units=2)
    await leases.settle(database, [report])
    await meter.close()
    assert (await quota(database, person))["settled"] == 9
    assert [row["amount"] for row in await rows(database, person)] == [9]


async def test_a_report_with_a_lost_reply_is_repeated_before_the_next_one(
    database: Database, person: Actor, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await meter.consume(person, units=7)
    settle = leases.settle

    async def deaf(*args: Any) -> None:
        await settle(*args)
        raise Unavailable("the connection broke")

    for lost in (False, True):
        monkeypatch.setattr(leases, "settle", deaf if lost else _refuse)
        with pytest.raises(Unavailable):
            await meter.sweep()
        await meter.consume(person, units=5)
    monkeypatch.setattr(leases, "settle", settle)
    await meter.close()
    assert (await quota(database, person))["settled"] == 17
    assert [row["amount"] for row in await rows(database, person)] == [17]


async def _refuse(*args: Any) -> None:
    raise Unavailable("the connection broke")


async def test_a_grant_with_a_lost_reply_is_found_and_used(
    database: Database, person: Actor, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = leases.grant

    async def deaf(*args: Any, **more: Any) -> None:
        await grant(*args, **more)
        raise Unavailable("the connection broke")

    monkeypatch.setattr(leases, "grant", deaf)
    with pytest.raises(Unavailable):
        await meter.consume(person)
    monkeypatch.setattr(leases, "grant", grant)
    assert await spend_all(meter, person) == 1000


async def test_a_return_with_a_lost_reply_returns_units_once(
    database: Database, person: Actor, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await meter.consume(person)
    await meter.sweep()
    grow_old(meter)
    settle = leases.settle

    async def deaf(*args: Any) -> None:
        await settle(*args)
        raise Unavailable("the connection broke")

    monkeypatch.setattr(leases, "settle", deaf)
    with pytest.raises(Unavailable):
        await meter.sweep()
    monkeypatch.setattr(leases, "settle", settle)
    document = await quota(database, person)
    assert (document["granted"], document["leases"]) == (1, {})
    assert await spend_all(meter, person) == 999


async def test_a_late_return_does_not_affect_a_continued_lease(
    database: Database, person: Actor, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer did not come, the lease is used again, and then the return arrives after all."""
    await meter.consume(person)
    await meter.sweep()
    grow_old(meter)
    settle = leases.settle
    late: list[Any] = []

    async def delayed(*args: Any) -> None:
        late.append(args)
        raise Unavailable("the connection broke")

    monkeypatch.setattr(leases, "settle", delayed)
    with pytest.raises(Unavailable):
        await meter.sweep()
    monkeypatch.setattr(leases, "settle", settle)
    assert await spend(meter, person, 100) == 100
    await settle(*late[0])
    assert await spend_all(meter, person) == 899
    await meter.close()
    document = await quota(database, person)
    assert (document["granted"], document["settled"], document["leases"]) == (1000, 1000, {})


async def test_an_unused_lease_is_returned(database: Database, person: Actor, meter: Meter) -> None:
    await meter.consume(person)
    await meter.sweep()
    assert held(await quota(database, person)) == 4
    grow_old(meter)
    await meter.sweep()
    document = await quota(database, person)
    assert (document["granted"], document["settled"], document["leases"]) == (1, 1, {})
    assert await spend_all(meter, person) == 999


async def test_a_reply_older_than_the_latest_step_is_ignored(database: Database, person: Actor, meter: Meter) -> None:
    """A primary that has just been elected may give one."""
    await meter.consume(person)
    old = await database[leases.QUOTAS].find_one({"userId": person.user_id})
    assert old is not None
    assert await spend(meter, person, 4) == 4
    await meter.sweep()
    (tally,) = meter._all()
    assert tally.left == 0
    tally.see(old, database.clock.now_ms())
    assert tally.left == 0


async def test_an_alert_is_enqueued_once_per_period(database: Database, person: Actor, meter: Meter) -> None:
    async def asked() -> list[int]:
        jobs = await database.raw["outbox"].find({"kind": "metering.alert"}).sort("_id", 1).to_list()
        return [job["payload"]["threshold"] for job in jobs]

    await meter.consume(person, units=799)
    await meter.sweep()
    assert await asked() == []
    await meter.consume(person)
    for _ in range(2):
        await meter.sweep()
    assert await asked() == [80]
    await meter.consume(person, units=200)
    await meter.close()
    other = Meter(database)
    await spend(other, person, 1)
    await other.close()
    assert await asked() == [80, 100]


async def test_a_user_whose_period_ended_unnoticed_is_not_forgotten_with_it(
    database: Database, person: Actor, meter: Meter
) -> None:
    await meter.consume(person)
    await meter.sweep()
    grow_old(meter)
    await meter.sweep()
    database.clock.offset_ms += 32 * 24 * HOUR_MS
    grow_old(meter)
    for tally in meter._all():
        tally.last_use -= 600
    await meter.consume(person, units=7)
    await meter.sweep()
    await meter.close()
    assert (await quota(database, person))["settled"] == 7


async def test_a_removed_quota_is_opened_again(database: Database, person: Actor, meter: Meter) -> None:
    await meter.consume(person, units=7)
    await database.raw["quotas"].delete_many({})
    await meter.sweep()
    await meter.consume(person, units=2)
    await meter.close()
    assert (await quota(database, person))["settled"] == 2


@pytest.mark.parametrize(
    "verb", ["current", "read_many", "of the dead", "of an earlier release", "rows", "all of a user"]
)
async def test_the_meters_queries_use_indexes(database: Database, verb: str) -> None:
    now = database.clock.now()
    user = {"userId": ObjectId(), "resource": "apiCalls"}
    where = {
        "current": {
            **user,
            "periodStart": {"$lte": now},
            "periodEnd": {"$gt": now},
            "opened": True,
            "superseded": False,
        },
        "read_many": {"_id": {"$in": ["a", "b"]}},
        "of the dead": {"holders": {"$in": ["a", "b"]}},
        "of an earlier release": {"lookAt": {"$lte": now}},
        "rows": {"userId": ObjectId(), "resourceType": "apiCalls", "periodStart": {"$gte": now}},
        "all of a user": {"userId": ObjectId()},
    }[verb]
    explained = await database.raw["usage" if verb == "rows" else "quotas"].find(where).explain()
    assert "IXSCAN" in str(explained["queryPlanner"]["winningPlan"])


# Forfeited leases


async def test_a_process_stops_using_a_lease_that_was_forfeited(
    database: Database, person: Actor, meter: Meter
) -> None:
    await meter.consume(person)
    document = await database[leases.QUOTAS].find_one({"userId": person.user_id})
    assert document is not None
    assert await leases.forfeit(database, [(document, list(document.leases))])
    await meter.consume(person)  # of what was granted, so that it is within the limit
    await meter.sweep()
    assert await spend_all(meter, person) == 995
    await meter.close()
    document = await database[leases.QUOTAS].find_one({"userId": person.user_id})
    assert document is not None
    assert (document.granted, document.settled, document.forfeited) == (1000, 995, 5)


async def test_a_lease_that_moves_while_it_is_judged_is_left_alone(
    database: Database, person: Actor, meter: Meter
) -> None:
    await meter.consume(person)
    seen = await database[leases.QUOTAS].find_one({"userId": person.user_id})
    assert seen is not None
    await meter.sweep()
    assert not await leases.forfeit(database, [(seen, list(seen.leases))])
    assert (await quota(database, person))["forfeited"] == 0


async def test_a_process_without_database_stops_handing_out_units(
    database: Database, person: Actor, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await meter.consume(person)
    assert meter._heartbeat._renewed_at is not None
    meter._heartbeat._renewed_at -= 60
    monkeypatch.setattr(meter._heartbeat, "renew", _refuse)
    with pytest.raises(Unavailable):
        await meter.sweep()
    monkeypatch.setattr(leases, "grant", _refuse_grant)
    with pytest.raises(Unavailable):
        await meter.consume(person)


async def _refuse_grant(*args: Any, **more: Any) -> None:
    raise Unavailable("the connection broke")


# Closing without a database


@pytest.mark.slow
@pytest.mark.parametrize("unreported", [False, True])
async def test_a_process_that_ends_waits_for_an_absent_database_only_with_units_to_report(
    failing: Failing, unreported: bool
) -> None:
    user = await failing.database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    meter, ada = Meter(failing.database), Actor(kind="user", via="session", user_id=user.id)
    await meter.consume(ada)
    await meter.sweep()
    if unreported:
        meter.take(ada)
    async with failing.fail("update", blockConnection=True, blockTimeMS=2500, times=100):
        began = time.monotonic()
        await meter.close(timeout_s=2.2)
        took_s = time.monotonic() - began
    assert took_s >= 2.2 if unreported else took_s < 2.2
