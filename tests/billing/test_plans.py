"""The plans on offer."""

from tests.database.following import running, until

from ximler.billing import plans
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.schema.plan import Plan, PlanLimits


async def test_plans_on_offer_are_the_active_ones_cheapest_first(database: Database) -> None:
    assert [plan.id for plan in await plans.PlanMemory(database, Feed(database)).on_offer()] == [
        "free",
        "pro",
        "enterprise",
    ]
    limits = PlanLimits(projects=1, storage=1, api_calls=1)
    await database.plans.insert(Plan(id="cheap", name="C", price=0.99, interval="MONTH", limits=limits))
    await database.plans.insert(Plan(id="euro", name="E", price=5, currency="EUR", interval="YEAR", limits=limits))
    await database.plans.patch({"id": "pro"}, {"$set": {"active": False}})
    assert [plan.id for plan in await plans.PlanMemory(database, Feed(database)).on_offer()] == [
        "euro",
        "free",
        "cheap",
        "enterprise",
    ]


async def test_a_plan_that_cannot_be_read_does_not_hide_the_others(database: Database) -> None:
    await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"limits": "none"}}, bypass_document_validation=True)
    assert [plan.id for plan in await plans.PlanMemory(database, Feed(database)).on_offer()] == ["free", "enterprise"]


async def test_prices_are_exact_in_minor_units(database: Database) -> None:
    await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"price": 29.99}})
    found = {plan.id: plan.price_minor for plan in await plans.PlanMemory(database, Feed(database)).on_offer()}
    assert found == {"free": 0, "pro": 2999, "enterprise": 9900}


async def test_plans_are_read_once_and_again_after_each_write(database: Database) -> None:
    feed = Feed(database)
    memory = plans.PlanMemory(database, feed)
    async with running(feed):
        await until(lambda: feed.fresh)
        await memory.on_offer()
        with round_trips() as trips:
            assert [plan.id for plan in await memory.on_offer()] == ["free", "pro", "enterprise"]
            found = await memory.by_id(["pro", "gone"])
            assert (found["pro"] is not None, found["gone"]) == (True, None)
        assert trips == []
        await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"active": False}})
        await feed.caught_up()
        assert [plan.id for plan in await memory.on_offer()] == ["free", "enterprise"]
        await database.raw["plans"].delete_one({"id": "free"})
        await feed.caught_up()
        assert [plan.id for plan in await memory.on_offer()] == ["enterprise"]


async def test_without_a_fresh_feed_plans_are_read_each_time(database: Database) -> None:
    memory = plans.PlanMemory(database, Feed(database))
    for _ in range(2):
        with round_trips() as trips:
            assert len(await memory.on_offer()) == 3
        assert trips == [("find", "plans")]
