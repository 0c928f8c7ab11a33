"""People who buy, and the plan Pro."""

from collections.abc import Awaitable, Callable

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.plan import Plan
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")
Buyer = Callable[[], Awaitable[Actor]]


@pytest.fixture
def buyer(database: Database) -> Buyer:
    """`actor = await buyer()`: somebody new, on the free plan."""

    async def buyer() -> Actor:
        user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
        return Actor(kind="user", via="session", user_id=user.id)

    return buyer


@pytest.fixture
async def ada(buyer: Buyer) -> Actor:
    return await buyer()


@pytest.fixture
async def pro(database: Database) -> Plan:
    return await database.plans.get({"id": "pro"})
