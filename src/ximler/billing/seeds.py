"""The specification's default plans and sample coupons."""

from datetime import datetime, timedelta

from ximler.database.seeding import Seeds
from ximler.schema.coupon import COUPONS, Coupon
from ximler.schema.plan import PLANS, Plan, PlanLimits

__all__ = ["SEEDS", "default_plans", "sample_coupons"]

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


def sample_coupons(now: datetime) -> list[Coupon]:
    """Valid for a year from now."""
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


SEEDS = (
    Seeds(collection=PLANS, key="id", make=lambda _: default_plans(), needed=True),
    Seeds(collection=COUPONS, key="code", make=sample_coupons),
)
