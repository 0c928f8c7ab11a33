"""The specification's virtuals: however many parents, one query."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.database.documents import DAY

from ximler.billing import virtuals
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.subscription import Subscription


def subscription(user_id: ObjectId, status: Any, days: int = 0, plan_id: str = "pro") -> Subscription:
    return Subscription(
        user_id=user_id,
        plan_id=plan_id,
        status=status,
        start_date=DAY,
        price=29,
        created_at=DAY + timedelta(days=days),
    )


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([], None),
        ([("ACTIVE", 0)], 0),
        ([("EXPIRED", 9), ("ACTIVE", 0), ("PAST_DUE", 5)], 1),
        ([("EXPIRED", 9), ("PAST_DUE", 0), ("CANCELLED", 5)], 1),
        ([("EXPIRED", 1), ("CANCELLED", 5), ("EXPIRED", 3)], 1),
        ([("ACTIVE", 1), ("ACTIVE", 5), ("ACTIVE", 3)], 1),
    ],
)
async def test_a_user_s_subscription_is_the_active_one_else_the_one_past_due_else_the_newest(
    database: Database, there: list[tuple[Any, int]], chosen: int | None
) -> None:
    user_id = ObjectId()
    made = [subscription(user_id, status, days) for status, days in there]
    await database.subscriptions.insert_many([*made, subscription(ObjectId(), "ACTIVE", 99)])
    found = await virtuals.subscription_by_user(database, [user_id])
    assert found == {user_id: None if chosen is None else await database.subscriptions.get(made[chosen].id)}


async def test_the_virtual_costs_one_query_however_many_parents(database: Database) -> None:
    users = [ObjectId() for _ in range(40)]
    await database.subscriptions.insert_many([subscription(user_id, "ACTIVE") for user_id in users[:30]])
    with round_trips() as trips:
        subscriptions = await virtuals.subscription_by_user(database, users)
    assert trips == [("find", "subscriptions")]
    assert list(subscriptions) == users
    assert sum(found is not None for found in subscriptions.values()) == 30


async def test_an_unreadable_subscription_is_left_out(database: Database) -> None:
    user_id = ObjectId()
    await database.subscriptions.insert_many([subscription(user_id, "ACTIVE", 0), subscription(user_id, "EXPIRED", 1)])
    bad = [{"$set": {"planId": 5}}]
    await database.raw.subscriptions.update_one({"status": "EXPIRED"}, bad, bypass_document_validation=True)
    found = (await virtuals.subscription_by_user(database, [user_id]))[user_id]
    assert found is not None
    assert found.status == "ACTIVE"


async def test_no_parents_cost_no_query(database: Database) -> None:
    with round_trips() as trips:
        assert await virtuals.subscription_by_user(database, []) == {}
    assert trips == []
