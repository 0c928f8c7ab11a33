"""The specification's default plans and sample coupons."""

from datetime import timedelta

from ximler.database.connection import Database
from ximler.database.failures import DocumentExists
from ximler.schema.coupon import Coupon
from ximler.schema.document import Document
from ximler.schema.plan import Plan, PlanLimits

__all__ = ["default_plans", "plant", "sample_coupons"]

_VALIDITY = timedelta(days=365)


def default_plans() -> list[Plan]:
    return [
        Plan(
            id="free",
            name="Free",
            description="Perfect for getting started",
            price=0,
            interval="MONTH",
            features=["Up to 3 projects", "1GB storage", "1,000 API calls/month", "Community support"],
            limits=PlanLimits(projects=3, storage=1, api_calls=1000),
        ),
        Plan(
            id="pro",
            name="Pro",
            description="For professional developers",
            price=29,
            interval="MONTH",
            features=[
                "Up to 100 projects",
                "50GB storage",
                "100,000 API calls/month",
                "Priority support",
                "Advanced analytics",
                "Custom integrations",
            ],
            limits=PlanLimits(projects=100, storage=50, api_calls=100_000),
            stripe_price_id="price_pro_monthly",
        ),
        Plan(
            id="enterprise",
            name="Enterprise",
            description="For large organizations",
            price=99,
            interval="MONTH",
            features=[
                "Unlimited projects",
                "500GB storage",
                "1,000,000 API calls/month",
                "24/7 dedicated support",
                "Custom SLA",
                "On-premise deployment",
                "Advanced security",
            ],
            limits=PlanLimits(projects=-1, storage=500, api_calls=1_000_000),
            stripe_price_id="price_enterprise_monthly",
        ),
    ]


def sample_coupons(database: Database) -> list[Coupon]:
    """Valid for a year from now."""
    now = database.clock.now()
    return [
        Coupon(
            code="WELCOME20",
            name="Welcome Discount",
            description="20% off your first month",
            type="PERCENTAGE",
            value=20,
            max_uses=1000,
            valid_from=now,
            valid_until=now + _VALIDITY,
            applicable_plans=["pro", "enterprise"],
        ),
        Coupon(
            code="STUDENT50",
            name="Student Discount",
            description="50% off for students",
            type="PERCENTAGE",
            value=50,
            max_uses=500,
            valid_from=now,
            valid_until=now + _VALIDITY,
            applicable_plans=["pro"],
        ),
    ]


async def plant(database: Database) -> dict[str, list[str]]:
    """Insert each plan and coupon that is not there; returns the new ones' ids and codes by collection.

    What is there stays exactly as an operator left it. Safe to race: a unique index decides who was first.
    """
    planted: dict[str, list[str]] = {"plans": [], "coupons": []}
    for plan in default_plans():
        if await database.plans.find_one({"id": plan.id}) is None and await _insert(database, "plans", plan):
            planted["plans"].append(plan.id)
    for coupon in sample_coupons(database):
        if await database.coupons.find_one({"code": coupon.code}) is None and await _insert(
            database, "coupons", coupon
        ):
            planted["coupons"].append(coupon.code)
    return planted


async def _insert(database: Database, collection: str, document: Document) -> bool:
    try:
        await getattr(database, collection).insert(document)
    except DocumentExists:
        return False
    return True
