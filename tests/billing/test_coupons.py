"""Coupons as operators make them, and as buyers are told of them."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.billing.conftest import OPERATOR

from ximler.billing import coupons
from ximler.billing.coupons import CouponNotFound
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid
from ximler.database import Database
from ximler.schema.coupon import Coupon
from ximler.schema.plan import Plan

WEEK = timedelta(days=7)


async def make(database: Database, **terms: Any) -> Coupon:
    values: dict[str, Any] = {
        "code": "SPRING",
        "name": "Spring",
        "type": "PERCENTAGE",
        "value": 20,
        "valid_until": database.clock.now() + WEEK,
        **terms,
    }
    return await coupons.create(database, OPERATOR, **values)


async def test_an_operator_makes_a_coupon_and_it_is_audited(database: Database) -> None:
    made = await make(database, code=" spring-25 ", value=Decimal("12.5"), applicable_plans=["pro"])
    assert (made.code, made.value) == ("SPRING-25", 12.5)
    entry = await database.audit_logs.find_one({"action": "billing.coupon.created"})
    assert entry is not None
    assert entry.resource_id == "SPRING-25"


async def test_customers_neither_make_change_end_nor_list_coupons(database: Database, ada: Actor) -> None:
    with pytest.raises(Forbidden):
        await coupons.create(
            database, ada, code="X1", name="X", type="FIXED", value=5, valid_until=database.clock.now() + WEEK
        )
    with pytest.raises(Forbidden):
        await coupons.edit(database, ada, "WELCOME20", name="X")
    with pytest.raises(Forbidden):
        await coupons.end(database, ada, "WELCOME20")
    with pytest.raises(Forbidden):
        await coupons.page(database, ada)


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"value": -50}, "value"),
        ({"value": 0}, "value"),
        ({"value": 200}, "value"),
        ({"value": float("nan")}, "value"),
        ({"type": "FIXED", "value": -5}, "value"),
        ({"type": "FIXED", "value": 0.001}, "value"),
        ({"type": "FIXED", "value": 5, "currency": "XXX"}, "currency"),
        ({"max_uses": 0}, "maxUses"),
        ({"code": "no spaces"}, "code"),
        ({"name": " "}, "name"),
        ({"applicable_plans": ["pro", "gold"]}, "applicablePlans"),
        ({"duration": "REPEATING"}, "durationPeriods"),
        ({"duration": "REPEATING", "duration_periods": 0}, "durationPeriods"),
        ({"duration_periods": 3}, "durationPeriods"),
    ],
)
async def test_terms_that_no_coupon_may_have_are_refused_when_made_and_when_changed(
    database: Database, terms: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await make(database, **terms)
    assert field in refused.value.fields
    if field != "code":
        await make(database)
        with pytest.raises(Invalid) as refused:
            await coupons.edit(database, OPERATOR, "SPRING", **terms)
        assert field in refused.value.fields


async def test_a_coupon_cannot_end_before_it_begins(database: Database) -> None:
    with pytest.raises(Invalid, match="validUntil"):
        await make(database, valid_until=database.clock.now() - WEEK)


async def test_a_code_is_taken_once(database: Database) -> None:
    with pytest.raises(Conflict, match="WELCOME20"):
        await make(database, code="welcome20")


async def test_a_change_is_audited_with_what_changed_and_only_that(database: Database) -> None:
    await make(database)
    changed = await coupons.edit(database, OPERATOR, "spring", value=30, max_uses=5)
    assert (changed.value, changed.max_uses, changed.name) == (30, 5, "Spring")
    entry = await database.audit_logs.find_one({"action": "billing.coupon.changed"})
    assert entry is not None
    assert entry.metadata["before"] == {"value": 20}
    assert entry.metadata["after"] == {"value": 30, "maxUses": 5}


async def test_what_may_not_be_changed_is_named(database: Database) -> None:
    with pytest.raises(Invalid, match="used_count"):
        await coupons.edit(database, OPERATOR, "WELCOME20", used_count=0)


async def test_max_uses_cannot_fall_below_what_is_used(database: Database) -> None:
    await database.coupons.patch({"code": "WELCOME20"}, {"$set": {"usedCount": 3}})
    with pytest.raises(Invalid, match="3 uses"):
        await coupons.edit(database, OPERATOR, "WELCOME20", max_uses=2)
    assert (await coupons.edit(database, OPERATOR, "WELCOME20", max_uses=3)).max_uses == 3


async def test_an_ended_coupon_is_refused_from_then_on(database: Database, pro: Plan) -> None:
    now = database.clock.now()
    assert coupons.refusal(await coupons.find(database, "welcome20 "), pro, now) is None
    ended = await coupons.end(database, OPERATOR, "WELCOME20")
    problem = coupons.refusal(ended, pro, now)
    assert problem is not None
    assert problem.code == "COUPON_EXPIRED"
    with pytest.raises(Conflict, match="ended already"):
        await coupons.end(database, OPERATOR, "WELCOME20")


@pytest.mark.parametrize("code", ["", " ", "NOTHING", "x" * 1000, "A\x00B"])
async def test_a_code_that_is_none_is_not_found(database: Database, code: str) -> None:
    with pytest.raises(CouponNotFound):
        await coupons.find(database, code)


async def test_the_terms_of_a_coupon_that_another_application_wrote_are_read(database: Database) -> None:
    """The specification's own document has no duration: it applies once."""
    discount = coupons.discount_of(await coupons.find(database, "WELCOME20"))
    assert (discount.percent, discount.renewals) == (20, 1)
    await make(database, code="HALF", duration="REPEATING", duration_periods=3)
    assert coupons.discount_of(await coupons.find(database, "HALF")).renewals == 3
    await make(database, code="EVER", type="FIXED", value=9.99, currency="eur", duration="FOREVER")
    ever = coupons.discount_of(await coupons.find(database, "EVER"))
    assert (ever.minor, ever.currency, ever.renewals) == (999, "EUR", None)


async def test_coupons_are_listed_newest_first(database: Database) -> None:
    await make(database)
    page = await coupons.page(database, OPERATOR, active=True)
    assert page.items[0].code == "SPRING"
    assert {coupon.code for coupon in page.items} == {"SPRING", "WELCOME20", "STUDENT50"}
