"""Two customers."""

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.user import User


async def _customer(database: Database) -> Actor:
    user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
    return Actor(kind="user", via="session", user_id=user.id)


@pytest.fixture
async def ada(database: Database) -> Actor:
    return await _customer(database)


@pytest.fixture
async def bob(database: Database) -> Actor:
    return await _customer(database)
