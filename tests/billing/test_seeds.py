"""The specification's plans and coupons: planted once,
and never put back over what an operator made of them."""

import asyncio
from datetime import timedelta

from ximler.billing.seeds import SEEDS
from ximler.core.money import Money
from ximler.database import Database, seeding
from ximler.schema.plan import PlanLimits

# Transcribed from the specification's "Sample Data".
PLANS = {
    "free": ("Free", "Perfect for getting started", 0, 3, 1, 1000, None, "Community support", 4),
    "pro": ("Pro", "For professional developers", 29, 100, 50, 100_000, "price_pro_monthly", "Custom integrations", 6),
    "enterprise": (
        "Enterprise",
        "For large organizations",
        99,
        -1,
        500,
        1_000_000,
        "price_enterprise_monthly",
        "Advanced security",
        7,
    ),
}
COUPONS = {
    "WELCOME20": ("Welcome Discount", "20% off your first month", 20, 1000, ["pro", "enterprise"]),
    "STUDENT50": ("Student Discount", "50% off for students", 50, 500, ["pro"]),
}


async def test_a_new_database_has_the_specification_s_plans(database: Database) -> None:
    plans = {plan.id: plan for plan in await database.plans.find({})}
    assert plans.keys() == PLANS.keys()
    for key, (name, description, price, projects, storage, calls, stripe, last_feature, features) in PLANS.items():
        plan = plans[key]
        assert (plan.name, plan.description, plan.price, plan.stripe_price_id) == (name, description, price, stripe)
        assert plan.limits == PlanLimits(projects=projects, storage=storage, api_calls=calls)
        assert (plan.features[-1], len(plan.features)) == (last_feature, features)
        assert (plan.currency, plan.interval, plan.active) == ("USD", "MONTH", True)
        assert plan.price_money == Money(price * 100, "USD")
    assert plans["free"].features == ["Up to 3 projects", "1GB storage", "1,000 API calls/month", "Community support"]


async def test_a_new_database_has_the_specification_s_coupons_valid_for_a_year(database: Database) -> None:
    coupons = {coupon.code: coupon for coupon in await database.coupons.find({})}
    assert coupons.keys() == COUPONS.keys()
    for code, (name, description, value, uses, plans) in COUPONS.items():
        coupon = coupons[code]
        assert (coupon.name, coupon.description, coupon.value, coupon.max_uses) == (name, description, value, uses)
        assert (coupon.type, coupon.currency, coupon.used_count, coupon.active) == ("PERCENTAGE", "USD", 0, True)
        assert coupon.applicable_plans == plans
        assert coupon.valid_until - coupon.valid_from == timedelta(days=365)
        assert coupon.valid_from <= database.clock.now()


async def test_planting_again_changes_nothing_and_says_so(database: Database) -> None:
    before = [await database.raw[name].find({}).to_list() for name in ("plans", "coupons")]
    assert await seeding.insert(database, SEEDS) == {"plans": [], "coupons": []}
    assert [await database.raw[name].find({}).to_list() for name in ("plans", "coupons")] == before


async def test_what_an_operator_changed_stays_and_what_is_missing_comes_back(database: Database) -> None:
    await database.plans.patch({"id": "pro"}, {"$set": {"price": 35, "limits.projects": 7, "active": False}})
    await database.coupons.patch({"code": "WELCOME20"}, {"$set": {"value": 5, "usedCount": 12}})
    await database.plans.delete({"id": "free"})
    await database.coupons.delete({"code": "STUDENT50"})
    assert await seeding.insert(database, SEEDS) == {"plans": ["free"], "coupons": ["STUDENT50"]}
    pro = await database.plans.get({"id": "pro"})
    assert (pro.price, pro.limits.projects, pro.active) == (35, 7, False)
    welcome = await database.coupons.get({"code": "WELCOME20"})
    assert (welcome.value, welcome.used_count) == (5, 12)


async def test_those_who_plant_at_once_plant_each_seed_once(database: Database) -> None:
    await database.plans.delete_many({})
    await database.coupons.delete_many({})
    planted = await asyncio.gather(*(seeding.insert(database, SEEDS) for _ in range(8)))
    assert sorted(plan for one in planted for plan in one["plans"]) == sorted(PLANS)
    assert sorted(code for one in planted for code in one["coupons"]) == sorted(COUPONS)
    assert await database.plans.count({}) == 3
    assert await database.coupons.count({}) == 2
