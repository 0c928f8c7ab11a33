"""The specification's virtuals: however many parents, one query."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.database.documents import DAY

from ximler.database import Database, virtuals
from ximler.database.monitoring import round_trips
from ximler.schema.project import Project
from ximler.schema.subscription import Subscription
from ximler.schema.usage import Usage


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


async def test_each_virtual_costs_one_query_however_many_parents(database: Database) -> None:
    users = [ObjectId() for _ in range(40)]
    await database.subscriptions.insert_many([subscription(user_id, "ACTIVE") for user_id in users[:30]])
    await database.projects.insert_many([Project(user_id=users[n % 20], name=str(n)) for n in range(60)])
    await database.usage.insert_many(
        [
            Usage(user_id=user_id, resource_type="apiCalls", amount=5, period_start=DAY, period_end=DAY)
            for user_id in users[:10]
        ]
    )
    with round_trips() as trips:
        subscriptions = await virtuals.subscription_by_user(database, users)
        projects = await virtuals.projects_by_user(database, users)
        usage = await virtuals.usage_by_user(database, users)
        plans = await virtuals.plans_by_id(database, ["pro", "free", "gone"])
    assert trips == [("find", "subscriptions"), ("find", "projects"), ("find", "usage"), ("find", "plans")]
    assert list(subscriptions) == list(projects) == list(usage) == users
    assert sum(found is not None for found in subscriptions.values()) == 30
    assert [len(found) for found in projects.values()] == [3] * 20 + [0] * 20
    assert [len(found) for found in usage.values()] == [1] * 10 + [0] * 30
    assert {key: plan and plan.name for key, plan in plans.items()} == {"pro": "Pro", "free": "Free", "gone": None}


async def test_deleted_projects_are_not_among_a_user_s(database: Database) -> None:
    user_id = ObjectId()
    gone = await database.projects.insert(Project(user_id=user_id, name="gone"))
    await database.projects.soft_delete({"_id": gone.id})
    assert await virtuals.projects_by_user(database, [user_id]) == {user_id: []}


async def test_an_unreadable_child_is_left_out_of_its_parent_s(database: Database) -> None:
    user_id = ObjectId()
    await database.projects.insert_many([Project(user_id=user_id, name="good"), Project(user_id=user_id, name="bad")])
    await database.raw.projects.update_one({"name": "bad"}, [{"$set": {"name": 5}}], bypass_document_validation=True)
    found = await virtuals.projects_by_user(database, [user_id])
    assert [project.name for project in found[user_id]] == ["good"]


async def test_no_parents_cost_no_query(database: Database) -> None:
    with round_trips() as trips:
        assert await virtuals.subscription_by_user(database, []) == {}
        assert await virtuals.plans_by_id(database, []) == {}
    assert trips == []
