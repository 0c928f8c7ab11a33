"""Two customers."""

import pytest
from bson import ObjectId
from tests.projects.drawings import Drawing, shapes

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import bases, compaction, contents, edits, projects
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


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canvases are large from 2,000 bytes on."""
    monkeypatch.setattr(bases, "LIMIT", 2000)
    monkeypatch.setattr(bases, "_PART", 100)
    monkeypatch.setattr(compaction, "_SMALL", 1000)
    monkeypatch.setattr(edits, "MAX_TAIL", 3000)
    monkeypatch.setattr(compaction, "WORTH_IT", 1000)
    monkeypatch.setattr(contents, "_INSIDE", 100)


@pytest.fixture
async def drawing(database: Database, ada: Actor, low_limits: None) -> Drawing:
    """A large one."""
    made = await projects.create(database, ada, name="P", canvas_data=shapes(10))
    assert made.canvas_data == shapes(10)
    return Drawing(database, ada, made.id)
