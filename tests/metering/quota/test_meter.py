"""The meter, in one process and in several: never one unit over, none stranded, each counted once."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.database.following import end
from tests.metering.conftest import Subscribe
from tests.metering.quota.spending import (
    HOUR_MS,
    OPERATOR,
    grow_old,
    process,
    quota,
    rows,
    spend,
    spend_all,
    until,
)

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, LimitExceeded, Unauthenticated, Unavailable
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.limits import entitlements
from ximler.metering.quota.meter import Meter

# Serving


@pytest.mark.slow
async def test_exactly_the_limit_is_served_and_accounted_for(database: Database, person: Actor, meter: Meter) -> None:
    assert await spend(meter, person, 1100) == 1000
    with pytest.raises(LimitExceeded, match="1,000 API calls") as refused:
        await meter.consume(person)
    assert refused.value.code == "QUOTA_EXCEEDED"
    await meter.close()
    document = await quota(database, person)
    assert (document["granted"], document["settled"], document["leases"]) == (1000, 1000, {})
    assert [row["amount"] for row in await rows(database, person)] == [1000]


async def test_every_use_returns_the_remaining_units(database: Database, person: Actor, meter: Meter) -> None:
    for used in range(1, 31):
        allowance = await meter.consume(person)
        assert (allowance.limit, allowance.remaining) == (1000, 1000 - used)
    assert (
        allowance.resets_at
        == (await entitlements.open_quota(database, person.user_id, database.clock.now())).period_end
    )


async def test_several_units_are_granted_together_or_not_at_all(
    database: Database, person: Actor, meter: Meter
) -> None:
    await meter.consume(person, units=990)
    with pytest.raises(LimitExceeded):
        await meter.consume(person, units=11)
    await meter.consume(person, units=10)
    with pytest.raises(LimitExceeded):
        await meter.consume(person)


async def test_a_request_above_the_lease_gets_another_grant(database: Database, person: Actor, meter: Meter) -> None:
    await meter.consume(person)
    (tally,) = meter._all()
    assert tally.left == 4
    with round_trips() as trips:
        await meter.consume(person, units=6)
    assert len(trips) == 1


async def test_hundreds_of_concurrent_calls_take_exactly_the_limit(
    database: Database, person: Actor, meter: Meter
) -> None:
    results = await asyncio.gather(*(meter.consume(person) for _ in range(1300)), return_exceptions=True)
    served = [r for r in results if not isinstance(r, BaseException)]
    assert len(served) == 1000
    assert all(isinstance(r, LimitExceeded) for r in results if isinstance(r, BaseException))


@pytest.mark.slow
async def test_five_processes_share_one_quota_to_its_last_unit(database: Database, person: Actor) -> None:
    async def hammer(meter: Meter) -> int:
        served = refused = 0
        while refused < 40:  # two seconds without a unit: there is none left
            try:
                await meter.consume(person)
                served += 1
                refused = 0
            except LimitExceeded:
                refused += 1
                await asyncio.sleep(0.05)
        return served

    meters = [Meter(database) for _ in range(5)]
    running = [asyncio.create_task(meter.run(asyncio.Event())) for meter in meters]
    served = await asyncio.gather(*(hammer(meter) for meter in meters for _ in range(3)))
    await end(*running)
    await asyncio.gather(*(meter.close() for meter in meters))
    assert sum(served) == 1000
    document = await quota(database, person)
    assert (document["granted"], document["settled"], document["leases"]) == (1000, 1000, {})
    assert sum(row["amount"] for row in await rows(database, person)) == 1000


@pytest.mark.slow
async def test_a_unit_held_by_an_idle_process_is_returned_for_another(database: Database, person: Actor) -> None:
    async with process(database) as one, process(database) as other:
        await one.consume(person)  # its lease holds four more
        assert await spend_all(other, person) == 995
        with pytest.raises(LimitExceeded) as refused:
            await other.consume(person)
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s <= 1
        assert await until(other, person, within_s=4)
        assert await spend_all(other, person) == 3
        with pytest.raises(LimitExceeded) as refused:
            await other.consume(person)
        assert refused.value.retry_after_s > 1 or database.clock.now().day == 1


async def test_unlimited_usage_is_metered_too(database: Database, person: Actor, meter: Meter) -> None:
    await entitlements.override(database, OPERATOR, person.user_id, reason="a friend", api_calls=-1)
    await meter.consume(person, units=5000)
    allowance = await meter.consume(person)
    assert (allowance.limit, allowance.remaining) == (None, None)
    await meter.close()
    assert (await quota(database, person))["settled"] == 5001
    assert [row["amount"] for row in await rows(database, person)] == [5001]


@pytest.mark.parametrize("units", [0, -1, 1.5, 1.0, True, "1", 10**7, 2**64, float("nan"), None])
async def test_an_invalid_amount_is_rejected(person: Actor, meter: Meter, units: Any) -> None:
    await meter.consume(person)
    with pytest.raises(Invalid, match="units"):
        await meter.consume(person, units=units)


@pytest.mark.parametrize("resource", ["projects", "storage", "apicalls", "", "x" * 10**6])
async def test_only_api_calls_are_consumed(person: Actor, meter: Meter, resource: str) -> None:
    await meter.consume(person)
    with pytest.raises(Invalid, match="resource"):
        await meter.consume(person, resource)


async def test_anonymous_callers_cannot_consume(meter: Meter) -> None:
    with pytest.raises(Unauthenticated):
        await meter.consume(Actor())


async def test_a_cancelled_caller_leaves_the_units_to_the_others(
    database: Database, person: Actor, meter: Meter
) -> None:
    impatient = [asyncio.create_task(meter.consume(person)) for _ in range(20)]
    patient = [asyncio.create_task(meter.consume(person)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in impatient:
        task.cancel()
    await asyncio.wait(impatient)
    await asyncio.gather(*patient)
    await meter.close()
    assert (await quota(database, person))["settled"] == 20


async def test_a_stopping_process_hands_out_no_units(person: Actor, meter: Meter) -> None:
    await meter.consume(person)
    await meter.close()
    with pytest.raises(Unavailable):
        await meter.consume(person)


# What it costs


async def test_the_first_call_of_a_period_takes_ten_commands_and_of_a_user_in_a_process_two(
    database: Database, person: Actor, meter: Meter
) -> None:
    with round_trips() as trips:
        await meter.consume(person)
    assert len(trips) <= 10
    other = Meter(database)
    await other._heartbeat.renew()  # once for all users of a process
    with round_trips() as trips:
        await other.consume(person)
    assert trips == [("aggregate", "quotas"), ("findAndModify", "quotas")]
    await other.close()


@pytest.mark.slow
async def test_a_busy_process_sends_less_than_one_command_per_hundred_calls(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(person, "pro")
    with round_trips() as trips:
        async with process(database) as meter:
            await meter.consume(person)
            trips.clear()
            served = 0
            end = asyncio.get_running_loop().time() + 2
            while asyncio.get_running_loop().time() < end:
                for _ in range(50):
                    await meter.consume(person)
                served += 50
                await asyncio.sleep(0.005)
    assert served > 2000
    assert len(trips) * 100 <= served, (len(trips), served)


@pytest.mark.slow
async def test_any_number_of_users_is_reported_with_three_commands(database: Database, meter: Meter) -> None:
    people = [Actor(kind="user", user_id=ObjectId()) for _ in range(30)]
    await database.raw["users"].insert_many(
        [{"_id": p.user_id, "name": "n", "email": f"{p.user_id}@example.com", "password": "-"} for p in people]
    )
    await asyncio.gather(*(meter.consume(somebody) for somebody in people))
    with round_trips() as trips:
        await meter.sweep()
    assert trips == [("update", "quotas"), ("find", "quotas"), ("update", "usage")]


async def test_repeated_rejections_cost_no_command(database: Database, person: Actor, meter: Meter) -> None:
    await meter.consume(person, units=1000)
    assert await spend(meter, person, 1) == 0
    with round_trips() as trips:
        for _ in range(100):
            assert await spend(meter, person, 1) == 0
    assert trips == []
    grow_old(meter)
    with round_trips() as trips:
        assert await spend(meter, person, 1) == 0
    assert len(trips) == 1


# Periods


async def test_a_lease_does_not_cross_into_the_next_period(database: Database, person: Actor, meter: Meter) -> None:
    end = (await entitlements.open_quota(database, person.user_id, database.clock.now())).period_end
    database.clock.offset_ms += int((end - database.clock.now()).total_seconds() * 1000) - 400
    before = database.clock.now()
    assert await spend(meter, person, 1) == 1
    assert database.clock.now() < end, "too slow a machine"
    database.clock.offset_ms += 400
    assert await spend_all(meter, person) == 1000
    await meter.close()
    old, new = await database.raw["quotas"].find({"userId": person.user_id}).sort("periodStart", 1).to_list()
    assert (old["granted"], old["settled"], old["leases"]) == (1, 1, {})
    assert (new["granted"], new["settled"], new["leases"]) == (1000, 1000, {})
    assert old["periodEnd"] == new["periodStart"] == end.replace(tzinfo=None)
    first, second = await rows(database, person)
    assert first["periodStart"] <= before.replace(tzinfo=None) < second["periodStart"] == new["periodStart"]


# Changes of limits


@pytest.mark.slow
async def test_a_larger_plan_takes_effect_at_once_for_an_exhausted_quota(database: Database, person: Actor) -> None:
    async with process(database) as meter:
        assert await spend_all(meter, person) == 1000
        await entitlements.override(database, OPERATOR, person.user_id, reason="more", api_calls=1010)
        assert await until(meter, person, within_s=1)
        assert await spend(meter, person, 100) == 9


@pytest.mark.slow
async def test_a_smaller_plan_takes_effect_despite_open_leases(database: Database, person: Actor) -> None:
    async with process(database) as meter:
        assert await spend(meter, person, 100) == 100
        await entitlements.override(database, OPERATOR, person.user_id, reason="less", api_calls=50)
        await asyncio.sleep(1)
        assert await spend(meter, person, 1) == 0
        await asyncio.sleep(1)
        document = await quota(database, person)
        assert (document["granted"], document["settled"], document["limit"]) == (100, 100, 50)
        await entitlements.end_override(database, OPERATOR, person.user_id, reason="enough")
        await asyncio.sleep(1)
        assert await spend_all(meter, person) == 900


async def test_an_override_ends_by_itself(database: Database, person: Actor, meter: Meter) -> None:
    until = database.clock.now() + timedelta(minutes=1)
    if until.hour == 0:
        database.clock.offset_ms += 2 * HOUR_MS
        until += timedelta(hours=2)
    await entitlements.override(database, OPERATOR, person.user_id, reason="a day", api_calls=5000, expires_at=until)
    await meter.consume(person, units=3000)
    database.clock.offset_ms += 60_000
    await meter.sweep()
    assert await spend(meter, person, 1) == 0
    assert (await quota(database, person))["settled"] == 3000


@pytest.mark.slow
async def test_a_subscription_starts_its_own_periods(database: Database, person: Actor, subscribe: Subscribe) -> None:
    async with process(database) as meter:
        assert await spend_all(meter, person) == 1000
        start = database.clock.now() - timedelta(days=3)
        await subscribe(person, "pro", start_date=start)
        await entitlements.heal(database, [person.user_id])
        assert await until(meter, person, within_s=1)
        allowance = await meter.consume(person)
        assert allowance.limit == 100_000
        assert allowance.resets_at.day == start.day
    old_and_new = await database.raw["quotas"].find({"userId": person.user_id}).to_list()
    assert sorted((q["superseded"], q["settled"]) for q in old_and_new) == (
        [(False, 2), (True, 1000)] if start.day != 1 else [(False, 1002)]
    )
