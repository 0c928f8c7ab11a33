"""People with and without a plan of their own."""

from typing import Any, Protocol

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.subscription import Subscription
from ximler.schema.user import User


class Subscribe(Protocol):
    async def __call__(self, actor: Actor, plan: str, **fields: Any) -> None: ...


@pytest.fixture
async def person(database: Database) -> Actor:
    """On the free plan."""
    user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
    return Actor(kind="user", via="session", user_id=user.id)


@pytest.fixture
async def somebody(database: Database) -> Actor:
    """Another one."""
    user = await database.users.insert(User(name="Bob", email=f"{ObjectId()}@example.com", password="-"))
    return Actor(kind="user", via="session", user_id=user.id)


@pytest.fixture
def subscribe(database: Database) -> Subscribe:
    """`await subscribe(actor, "pro", status="CANCELLED")`"""

    async def subscribe(actor: Actor, plan: str, **fields: Any) -> None:
        values: dict[str, Any] = {"status": "ACTIVE", "start_date": database.clock.now(), "price": 0, **fields}
        assert actor.user_id is not None
        await database.subscriptions.insert(Subscription(user_id=actor.user_id, plan_id=plan, **values))

    return subscribe
