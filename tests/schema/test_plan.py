"""A plan's limits and price, and the prices of what is bought."""

from datetime import UTC, datetime

import pytest
from bson import ObjectId

from ximler.core.money import Money
from ximler.schema.payment import Payment
from ximler.schema.plan import UNLIMITED, Plan, PlanLimits
from ximler.schema.subscription import Subscription


@pytest.mark.parametrize(
    ("gigabytes", "size"),
    [
        (1, 10**9),
        (0, 0),
        (0.5, 5 * 10**8),
        (1.001, 1_001_000_000),
        (500, 5 * 10**11),
        (-1, UNLIMITED),
        (-1.0, UNLIMITED),
    ],
)
def test_a_storage_limit_is_gigabytes_of_a_thousand_million_bytes(gigabytes: float, size: int) -> None:
    assert PlanLimits(projects=1, storage=gigabytes, api_calls=1).storage_bytes == size


def test_a_plan_is_known_by_its_own_id_and_keeps_mongodb_s() -> None:
    plan = Plan(id="pro", name="Pro", price=29, interval="MONTH", limits=PlanLimits(projects=1, storage=1, api_calls=1))
    assert plan.id == "pro"
    assert isinstance(plan.object_id, ObjectId)
    encoded = dict(zip(Plan.__struct_fields__, Plan.__struct_encode_fields__, strict=True))
    assert (encoded["id"], encoded["object_id"]) == ("id", "_id")


def test_prices_and_amounts_are_exact_money() -> None:
    limits = PlanLimits(projects=1, storage=1, api_calls=1)
    plan = Plan(id="x", name="X", price=29.99, currency="EUR", interval="YEAR", limits=limits)
    assert (plan.price_money, plan.price_minor) == (Money(2999, "EUR"), 2999)
    user_id = ObjectId()
    bought = Subscription(
        user_id=user_id, plan_id="x", status="ACTIVE", start_date=datetime.now(UTC), price=500, currency="JPY"
    )
    assert (bought.price_money, bought.price_minor) == (Money(500, "JPY"), 500)
    paid = Payment(user_id=user_id, amount=1.234, currency="KWD", status="PAID")
    assert (paid.amount_money, paid.amount_minor) == (Money(1234, "KWD"), 1234)
