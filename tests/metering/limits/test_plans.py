"""Which plan counts: the active subscription's, else the free one."""

from datetime import timedelta

import pytest
from bson import ObjectId
from tests.metering.conftest import Subscribe

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering.limits.plans import Limits, NoFreePlan, limits_of

FREE = Limits("Free", 3, 1_000_000_000, 1000)
PRO = Limits("Pro", 100, 50_000_000_000, 100_000)
ENTERPRISE = Limits("Enterprise", -1, 500_000_000_000, 1_000_000)


async def test_without_a_subscription_the_free_plan_counts(database: Database, person: Actor) -> None:
    assert await limits_of(database, person.user_id) == FREE


async def test_an_active_subscriptions_plan_counts(database: Database, person: Actor, subscribe: Subscribe) -> None:
    await subscribe(person, "enterprise")
    assert await limits_of(database, person.user_id) == ENTERPRISE


@pytest.mark.parametrize("status", ["CANCELLED", "EXPIRED"])
async def test_a_subscription_that_is_not_active_does_not_count(
    database: Database, person: Actor, subscribe: Subscribe, status: str
) -> None:
    await subscribe(person, "pro", status=status)
    assert await limits_of(database, person.user_id) == FREE


async def test_a_past_due_subscription_keeps_its_limits_and_an_active_one_goes_before_it(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(person, "pro", status="PAST_DUE")
    assert await limits_of(database, person.user_id) == PRO
    await subscribe(person, "enterprise", start_date=database.clock.now() - timedelta(days=40))
    assert await limits_of(database, person.user_id) == ENTERPRISE


async def test_of_two_active_subscriptions_the_one_that_began_last_counts(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    now = database.clock.now()
    await subscribe(person, "pro", start_date=now)
    await subscribe(person, "enterprise", start_date=now - timedelta(days=40))
    assert await limits_of(database, person.user_id) == PRO


async def test_a_subscription_of_another_user_does_not_count(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(Actor(kind="user", user_id=ObjectId()), "pro")
    assert await limits_of(database, person.user_id) == FREE


async def test_a_withdrawn_plan_still_applies_to_its_subscribers(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(person, "pro")
    await database.plans.patch({"id": "pro"}, {"$set": {"active": False}})
    assert await limits_of(database, person.user_id) == PRO


async def test_a_deleted_plan_falls_back_to_the_free_one(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(person, "pro")
    await database.plans.delete({"id": "pro"})
    assert await limits_of(database, person.user_id) == FREE


async def test_a_missing_free_plan_is_reported_only_to_users_who_need_it(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await database.plans.delete({"id": "free"})
    with pytest.raises(NoFreePlan, match="ximler db seed"):
        await limits_of(database, person.user_id)
    await subscribe(person, "pro")
    assert await limits_of(database, person.user_id) == PRO


async def test_limits_that_another_application_wrote_as_doubles_are_whole(database: Database, person: Actor) -> None:
    await database.raw["plans"].update_one(
        {"id": "free"}, {"$set": {"limits": {"projects": 3.0, "storage": 0.5, "apiCalls": 5e9}}}
    )
    assert await limits_of(database, person.user_id) == Limits("Free", 3, 500_000_000, 5_000_000_000)
