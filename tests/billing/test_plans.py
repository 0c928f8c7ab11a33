"""The plans on offer."""

from ximler.billing import plans
from ximler.database import Database
from ximler.schema.plan import Plan, PlanLimits


async def test_plans_on_offer_are_the_active_ones_cheapest_first(database: Database) -> None:
    assert [plan.id for plan in await plans.on_offer(database)] == ["free", "pro", "enterprise"]
    limits = PlanLimits(projects=1, storage=1, api_calls=1)
    await database.plans.insert(Plan(id="cheap", name="C", price=0.99, interval="MONTH", limits=limits))
    await database.plans.insert(Plan(id="euro", name="E", price=5, currency="EUR", interval="YEAR", limits=limits))
    await database.plans.patch({"id": "pro"}, {"$set": {"active": False}})
    assert [plan.id for plan in await plans.on_offer(database)] == ["euro", "free", "cheap", "enterprise"]


async def test_a_plan_that_cannot_be_read_does_not_hide_the_others(database: Database) -> None:
    await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"limits": "none"}}, bypass_document_validation=True)
    assert [plan.id for plan in await plans.on_offer(database)] == ["free", "enterprise"]


async def test_prices_are_exact_in_minor_units(database: Database) -> None:
    await database.raw["plans"].update_one({"id": "pro"}, {"$set": {"price": 29.99}})
    found = {plan.id: plan.price_minor for plan in await plans.on_offer(database)}
    assert found == {"free": 0, "pro": 2999, "enterprise": 9900}
