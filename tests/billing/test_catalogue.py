"""Limits of plans are whole numbers, on every path by which a plan is written."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from tests.billing.conftest import OPERATOR

from ximler.billing import catalogue
from ximler.billing.seeds import default_plans
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.schema.plan import Plan, PlanLimits

LIMITS = {"projects": 1, "storage": 2.5, "api_calls": -1}
WRONG: list[Any] = [2.5, Decimal("0.1"), -2, float("nan"), float("inf"), 2**63, "7", True, None]


@pytest.mark.parametrize(
    ("limit", "field", "wrong"),
    [("projects", "projects", WRONG), ("api_calls", "apiCalls", WRONG), ("storage", "storage", WRONG[2:])],
)
async def test_a_limit_that_is_none_is_refused_by_its_name(
    database: Database, limit: str, field: str, wrong: list[Any]
) -> None:
    await catalogue.create(database, OPERATOR, id="team", name="Team", price=9, interval="MONTH", limits=LIMITS)
    for value in wrong:
        given = LIMITS | {limit: value}
        with pytest.raises(Invalid) as refused:
            await catalogue.create(database, OPERATOR, id="new", name="New", price=9, interval="MONTH", limits=given)
        assert list(refused.value.fields) == [field], value
        with pytest.raises(Invalid) as refused:
            await catalogue.edit(database, OPERATOR, "team", limits={limit: value})
        assert list(refused.value.fields) == [field], value
    assert (await database.plans.get({"id": "team"})).limits == PlanLimits(projects=1, storage=2.5, api_calls=-1)


async def test_seeded_plans_keep_the_rule_and_no_fraction_is_stored_by_another_way(database: Database) -> None:
    for seeded in default_plans():
        limits = msgspec.structs.asdict(seeded.limits)
        copy = f"{seeded.id}-2"
        made = await catalogue.create(
            database, OPERATOR, id=copy, name=copy, price=seeded.price, interval="MONTH", limits=limits
        )
        assert made.limits == seeded.limits
    fraction: Any = 2.5
    plan = Plan(id="x", name="X", price=1, interval="MONTH", limits=PlanLimits(**LIMITS | {"projects": fraction}))
    with pytest.raises(Invalid, match=r"limits\.projects"):
        await database.plans.insert(plan)
