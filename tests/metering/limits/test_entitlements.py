"""Entitlements follow changes by Ximler and other applications; overrides take precedence."""

import asyncio
import contextlib
import itertools
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import PyMongoError
from tests.database.following import end
from tests.failing import UNMAPPED, Failing
from tests.metering.conftest import Subscribe

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound, Unauthenticated
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.database.monitoring import round_trips
from ximler.metering.limits import entitlements
from ximler.metering.limits.follower import Follower
from ximler.metering.limits.plans import Limits, limits_of
from ximler.metering.quota.meter import Meter
from ximler.projects import projects
from ximler.schema.quota import Quota
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")
HAMMER = str(Path(__file__).parents[1] / "quota" / "hammer.py")


async def stored(database: Database, actor: Actor) -> dict[str, Any] | None:
    return await database.raw["entitlements"].find_one({"_id": actor.user_id})


async def opened(database: Database, actor: Actor) -> Quota:
    assert actor.user_id is not None
    return await entitlements.open_quota(database, actor.user_id, database.clock.now())


async def limit(database: Database, actor: Actor) -> Any:
    (quota,) = await database.raw["quotas"].find({"userId": actor.user_id, "superseded": False}).to_list()
    return quota["limit"]


# Resolving


async def test_the_subscriptions_plan_and_day_are_written_down_with_the_first_quota(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    start = database.clock.now() - timedelta(days=70)
    await subscribe(person, "pro", start_date=start)
    quota = await opened(database, person)
    written = await stored(database, person)
    assert written is not None
    assert (written["planId"], written["planName"], written["apiCalls"]) == ("pro", "Pro", 100_000)
    assert written["anchorDay"] == start.day
    assert (quota.limit, quota.opened) == (100_000, True)
    assert quota.period_start <= database.clock.now() < quota.period_end


async def test_without_a_subscription_periods_are_calendar_months(database: Database, person: Actor) -> None:
    quota = await opened(database, person)
    assert (quota.limit, quota.period_start.day, quota.period_end.day) == (1000, 1, 1)


@pytest.mark.slow
async def test_a_quota_is_opened_once_however_many_want_it(database: Database, person: Actor) -> None:
    found = await asyncio.gather(*(opened(database, person) for _ in range(12)))
    assert len({quota.id for quota in found}) == 1
    assert await database.raw["quotas"].count_documents({}) == 1


async def test_opening_a_quota_takes_five_commands(database: Database, person: Actor) -> None:
    await opened(database, person)
    database.clock.offset_ms += 32 * 24 * 3600 * 1000
    with round_trips() as trips:
        await opened(database, person)
    assert [verb for verb, _ in trips] == ["aggregate", "update", "find", "insert", "commitTransaction"]


async def test_unknown_users_have_no_entitlement(database: Database) -> None:
    with pytest.raises(NotFound):
        await entitlements.open_quota(database, ObjectId(), database.clock.now())
    assert await entitlements.resolve(database, [ObjectId()]) == {}


async def test_any_number_of_users_is_resolved_with_one_command(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(person, "pro")
    with round_trips() as trips:
        found = await entitlements.resolve(database, [person.user_id, person.user_id])
    assert trips == [("aggregate", "users")]
    assert found[person.user_id].api_calls == 100_000


# Changing


async def test_a_subscription_change_updates_the_entitlement_in_its_transaction(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await opened(database, person)
    await subscribe(person, "pro", start_date=database.clock.now().replace(day=1))

    async def change(transaction: Database) -> None:
        await transaction.subscriptions.patch({"userId": person.user_id}, {"$set": {"planId": "enterprise"}})
        await entitlements.entitle(transaction, person.user_id)

    await database.transaction(change)
    assert await limit(database, person) == 1_000_000
    with pytest.raises(RuntimeError):
        await entitlements.entitle(database, person.user_id)


@pytest.mark.slow
async def test_a_quota_opened_while_limits_change_has_the_new_ones(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    async def change(api_calls: int) -> None:
        await entitlements.override(database, OPERATOR, person.user_id, reason="race", api_calls=api_calls)

    for number in range(8):
        await database.raw["quotas"].delete_many({})
        await asyncio.gather(opened(database, person), change(5000 + number), opened(database, person))
        assert await limit(database, person) == 5000 + number


async def test_moving_the_anchor_back_restores_the_earlier_quota(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    first = await opened(database, person)
    await subscribe(person, "pro", start_date=database.clock.now() - timedelta(days=1))
    await entitlements.heal(database, [person.user_id])
    second = await opened(database, person)
    await database.subscriptions.patch({"userId": person.user_id}, {"$set": {"status": "EXPIRED"}})
    await entitlements.heal(database, [person.user_id])
    again = await opened(database, person)
    assert again.id == first.id
    assert again.limit == 1000
    assert not again.superseded
    if second.id != first.id:
        gone = await database.raw["quotas"].find_one({"_id": second.id})
        assert gone is not None
        assert gone["superseded"] is True


# Overriding


async def test_an_override_applies_to_its_resources_and_is_audited(database: Database, person: Actor) -> None:
    await opened(database, person)
    await entitlements.override(database, OPERATOR, person.user_id, reason="a pilot", projects=10, api_calls=-1)
    assert await limits_of(database, person.user_id) == Limits("Free", 10, 1_000_000_000, -1)
    assert await limit(database, person) == -1
    await entitlements.override(database, OPERATOR, person.user_id, reason="less", storage_bytes=5)
    assert await limits_of(database, person.user_id) == Limits("Free", 3, 5, 1000)
    assert await limit(database, person) == 1000
    await entitlements.end_override(database, OPERATOR, person.user_id, reason="over")
    assert await limits_of(database, person.user_id) == Limits("Free", 3, 1_000_000_000, 1000)

    entries = await database.raw["auditlogs"].find({"resource": "entitlements"}).sort("_id", 1).to_list()
    assert [entry["action"] for entry in entries] == ["metering.override.set"] * 2 + ["metering.override.ended"]
    assert all(entry["userId"] == person.user_id for entry in entries)
    assert entries[0]["metadata"]["after"] == {"projects": 10, "api_calls": -1, "reason": "a pilot", "by": "cli"}
    assert entries[1]["metadata"]["before"] == entries[0]["metadata"]["after"]


async def test_gauges_obey_an_override_until_it_ends(database: Database, person: Actor) -> None:
    until = database.clock.now() + timedelta(hours=1)
    await entitlements.override(database, OPERATOR, person.user_id, reason="x", projects=4, expires_at=until)
    for number in range(4):
        await projects.create(database, person, name=f"P{number}")
    with pytest.raises(LimitExceeded, match="4 projects"):
        await projects.create(database, person, name="a fifth")
    made = await projects.page(database, person)
    await projects.delete(database, person, made.items[0].id)
    database.clock.offset_ms += 3_600_000
    with pytest.raises(LimitExceeded, match="3 projects"):
        await projects.restore(database, person, made.items[0].id)


async def test_overrides_cost_a_new_project_nothing(database: Database, person: Actor) -> None:
    await projects.create(database, person, name="first")
    with round_trips() as plain:
        await projects.create(database, person, name="second")
    await entitlements.override(database, OPERATOR, person.user_id, reason="x", projects=4)
    with round_trips() as overridden:
        await projects.create(database, person, name="third")
    assert overridden == plain
    assert len(plain) <= 6


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({}, "limit"),
        ({"api_calls": -2}, "apiCalls"),
        ({"projects": 1.5}, "projects"),
        ({"storage_bytes": 2**60}, "storageBytes"),
        ({"api_calls": 5, "reason": "  "}, "reason"),
        ({"api_calls": 5, "reason": "x" * 501}, "reason"),
    ],
)
async def test_an_override_that_makes_no_sense_is_refused(
    database: Database, person: Actor, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(Invalid, match=named):
        await entitlements.override(database, OPERATOR, person.user_id, **{"reason": "because", **wrong})


async def test_only_operators_override(database: Database, person: Actor) -> None:
    past = database.clock.now() - timedelta(seconds=1)
    with pytest.raises(Invalid, match="passed"):
        await entitlements.override(database, OPERATOR, person.user_id, reason="x", projects=1, expires_at=past)
    with pytest.raises(Forbidden):
        await entitlements.override(database, person, person.user_id, reason="x", projects=-1)
    with pytest.raises(Unauthenticated):
        await entitlements.override(database, Actor(), person.user_id, reason="x", projects=-1)
    with pytest.raises(NotFound):
        await entitlements.override(database, OPERATOR, ObjectId(), reason="x", projects=-1)
    assert await stored(database, person) is None


# Healing


async def test_changes_of_another_application_are_followed(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await opened(database, person)
    feed = Feed(database)
    follower = Follower(database, feed)
    stop = asyncio.Event()
    running = [asyncio.create_task(run(stop)) for run in (feed.run, follower.follow, follower.check)]
    async with asyncio.timeout(10):
        for _ in itertools.count():
            if feed.fresh:
                break
            await asyncio.sleep(0.02)
    try:
        first = database.clock.now().replace(day=1, hour=0)
        await subscribe(person, "pro", start_date=first)
        await settled(database, person, 100_000)
        await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"limits.apiCalls": 7}})
        await settled(database, person, 7)
        await database.raw["subscriptions"].delete_many({})
        await settled(database, person, 1000)
    finally:
        await end(*running)


async def settled(database: Database, actor: Actor, expected: int) -> None:
    async with asyncio.timeout(5):
        for _ in itertools.count():
            if await limit(database, actor) == expected:
                return
            await asyncio.sleep(0.02)


async def test_missed_changes_are_found_by_checking_all_users(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await opened(database, person)
    assert await entitlements.heal_all(database) == 0
    await subscribe(person, "pro", start_date=database.clock.now().replace(day=1))
    assert await entitlements.heal_all(database) == 1
    assert await limit(database, person) == 100_000
    assert await entitlements.heal_all(database) == 0


@pytest.mark.slow
async def test_a_plans_limits_are_copied_to_all_its_users_with_six_commands_and_a_read(
    database: Database, subscribe: Subscribe
) -> None:
    people = [
        await database.users.insert(User(name="n", email=f"{number}@example.com", password="-")) for number in range(20)
    ]
    first = database.clock.now().replace(day=1)
    for user in people:
        await subscribe(Actor(kind="user", user_id=user.id), "pro", start_date=first)
        await entitlements.open_quota(database, user.id, database.clock.now())
    await entitlements.override(database, OPERATOR, people[0].id, reason="x", api_calls=9)
    await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"limits.apiCalls": 7, "limits.projects": 8}})
    with round_trips() as trips:
        assert await entitlements.copy_plan(database, "pro") == 39
    assert len(trips) == 8
    limits = [quota["limit"] async for quota in database.raw["quotas"].find({}).sort("limit", 1)]
    assert limits == [7] * 19 + [9]
    written = await entitlements.resolve(database, [user.id for user in people])
    for user in people:
        stored = await database.raw["entitlements"].find_one({"_id": user.id})
        assert stored is not None
        assert (
            (stored["apiCalls"], stored["projects"])
            == (7, 8)
            == (written[user.id].api_calls, written[user.id].projects)
        )
    assert await entitlements.heal_all(database) == 0


@pytest.mark.slow
async def test_an_unreadable_plan_does_not_block_healing_of_others(database: Database, subscribe: Subscribe) -> None:
    people = [
        await database.users.insert(User(name="n", email=f"{number}@example.com", password="-")) for number in range(20)
    ]
    first = database.clock.now().replace(day=1)
    for user in people:
        await entitlements.open_quota(database, user.id, database.clock.now())
    broken = {"id": "broken", "name": "Broken", "price": 1}
    await database.raw["plans"].insert_one(broken, bypass_document_validation=True)
    for number, user in enumerate(people):
        await subscribe(Actor(kind="user", user_id=user.id), "broken" if number == 7 else "pro", start_date=first)
    before = entitlements.UNRESOLVED._value.get()
    assert await entitlements.heal_all(database) == 19
    assert entitlements.UNRESOLVED._value.get() > before
    limits = [quota["limit"] async for quota in database.raw["quotas"].find({}).sort("limit", 1)]
    assert limits == [1000] + [100_000] * 19
    assert len(await entitlements.resolve(database, [user.id for user in people])) == 19
    with pytest.raises(Conflict, match="cannot be read"):
        await entitlements.open_quota(database, people[7].id, database.clock.now())


async def test_a_damaged_quota_does_not_block_the_new_limit_for_others(
    database: Database, person: Actor, somebody: Actor
) -> None:
    for actor in (person, somebody):
        await opened(database, actor)
    await database.raw["quotas"].update_one(
        {"userId": person.user_id}, [{"$set": {"steps": "many"}}], bypass_document_validation=True
    )
    await database.raw["plans"].update_one({"id": "free"}, {"$set": {"limits.apiCalls": 7}})
    await entitlements.copy_plan(database, "free")
    assert (await limit(database, person), await limit(database, somebody)) == (7, 7)


async def test_a_changed_subscription_is_not_forgotten_by_an_error(failing: Failing) -> None:
    database = failing.database
    user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    ada = Actor(kind="user", user_id=user.id)
    await opened(database, ada)
    follower = Follower(database, Feed(database))
    subscription = Subscription(
        user_id=user.id, plan_id="pro", status="ACTIVE", start_date=database.clock.now().replace(day=1), price=0
    )
    await database.subscriptions.insert(subscription)
    follower._heard(Change(collection="subscriptions", operation="insert", id=subscription.id))
    async with failing.fail("find", "aggregate", errorCode=UNMAPPED[0]) as hits:
        with pytest.raises(PyMongoError):
            await follower.heal()
        assert await hits() == 1
    await follower.heal()
    assert await limit(database, ada) == 100_000


async def test_a_quota_that_comes_into_use_has_its_plans_new_limit_before_it_was_copied(
    database: Database, person: Actor
) -> None:
    await opened(database, person)
    await database.raw["plans"].update_one({"id": "free"}, {"$set": {"limits.apiCalls": 1}})
    meter = Meter(database)
    assert (await meter.consume(person)).limit == 1
    with pytest.raises(LimitExceeded):
        await meter.consume(person)
    await meter.close()


async def test_a_plan_that_cannot_be_read_leaves_the_earlier_limit_to_a_quota_that_comes_into_use(
    database: Database, person: Actor
) -> None:
    await opened(database, person)
    await database.raw["plans"].update_one(
        {"id": "free"}, {"$set": {"limits.apiCalls": 1, "price": "free"}}, bypass_document_validation=True
    )
    meter = Meter(database)
    assert (await meter.consume(person)).limit == 1000
    await meter.close()


async def test_a_plans_new_limit_holds_in_a_process_without_a_follower(database: Database, person: Actor) -> None:
    feed = Feed(database)
    meter, stop = Meter(database, feed=feed), asyncio.Event()
    running = [asyncio.create_task(run(stop)) for run in (feed.run, meter.run)]
    try:
        await meter.consume(person)
        await feed.caught_up()
        await database.raw["plans"].update_one({"id": "free"}, {"$set": {"limits.apiCalls": 7}})
        await settled(database, person, 7)
    finally:
        await end(*running)
        await meter.close()


@pytest.mark.parametrize("others", [3000, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.slow
async def test_a_plans_new_limit_holds_within_a_second_however_many_are_on_it(
    database: Database, mongodb_uri: str, subscribe: Subscribe, others: int
) -> None:
    """Processes that spend stop in time, and a quota that comes into use has
    the new limit from the beginning."""
    await database.raw["plans"].update_one({"id": "enterprise"}, {"$set": {"limits.apiCalls": 10**9}})
    await everybody(database, others)
    busy = [
        (await database.users.insert(User(name="n", email=f"busy{n}@example.com", password="-"))).id for n in range(2)
    ]
    for user_id in busy:
        await subscribe(Actor(kind="user", user_id=user_id), "enterprise")
    feed = Feed(database)
    follower, stop = Follower(database, feed), asyncio.Event()
    running = [asyncio.create_task(run(stop)) for run in (feed.run, follower.follow, follower.check)]
    await feed.caught_up()
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, HAMMER, mongodb_uri, database.name, str(user_id), "4", "1.5", "30", "0", "0",
            stdout=asyncio.subprocess.PIPE,
        )
        for user_id in busy
    ]  # fmt: skip
    idle = await database.raw["quotas"].find_one({"holders": []}, sort=[("_id", -1)])
    assert idle is not None
    meter = Meter(database)
    try:
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readexactly(1000)
        changed_at = time.monotonic()
        await database.raw["plans"].update_one({"id": "enterprise"}, {"$set": {"limits.apiCalls": 1}})
        reading = [asyncio.create_task(latest_call(process)) for process in processes]
        allowance = await meter.consume(Actor(kind="user", via="session", user_id=idle["userId"]))
        served = [at - changed_at for at in await asyncio.gather(*reading)]
        async with asyncio.timeout(60):
            while await database.raw["quotas"].count_documents({"limit": {"$ne": 1}}):  # noqa: ASYNC110 (it is asked)
                await asyncio.sleep(0.05)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await end(*running)
        await meter.close()
    assert allowance.limit == 1
    assert max(served) < 1, served


async def latest_call(process: asyncio.subprocess.Process) -> float:
    """When the process served its last one."""
    assert process.stdout is not None
    latest = time.monotonic()
    while await process.stdout.read(1 << 16):
        latest = time.monotonic()
    return latest


async def everybody(database: Database, count: int) -> None:
    """So many users with quotas of their own, as `open_quota` leaves them."""
    now = database.clock.now()
    user = await database.users.insert(User(name="n", email="first@example.com", password="-"))
    subscription = Subscription(user_id=user.id, plan_id="enterprise", status="ACTIVE", start_date=now, price=0)
    await database.subscriptions.insert(subscription)
    await entitlements.open_quota(database, user.id, now)
    ids = [ObjectId() for _ in range(count)]
    for name, key in (("users", "_id"), ("subscriptions", "userId"), ("entitlements", "_id"), ("quotas", "userId")):
        model = await database.raw[name].find_one({})
        assert model is not None
        copies = []
        for user_id in ids:
            copy = {**model, "_id": ObjectId(), key: user_id}
            if name == "users":
                copy["email"] = f"{user_id}@example.com"
            if name == "quotas":
                copy["_id"] = str(model["_id"]).replace(str(user.id), str(user_id))
            copies.append(copy)
        await database.raw[name].insert_many(copies)
