"""A database with marked entries, a sealing key, and acting users."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from bson import ObjectId

from ximler.audit import records
from ximler.audit.keys import SealKeys, new_key
from ximler.audit.sealing import Sealer
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database


@pytest.fixture
async def database(database: Database, settings: Settings) -> AsyncIterator[Database]:
    database.entry_keys = settings.entry_keys
    yield database
    database.entry_keys = ()


@pytest.fixture
def keys() -> SealKeys:
    return SealKeys.parse(new_key())


@pytest.fixture
def sealer(database: Database, keys: SealKeys) -> Sealer:
    return Sealer(database, keys)


@pytest.fixture
def ada() -> Actor:
    return Actor(
        kind="user", via="session", user_id=ObjectId(), address="192.0.2.1", user_agent="Firefox", request_id="r1"
    )


@pytest.fixture
def operator() -> Actor:
    return Actor(kind="operator", via="session", user_id=ObjectId(), address="198.51.100.7", user_agent="Chrome")


class Written:
    """Entries that a test has written, in order."""

    def __init__(self, database: Database, actor: Actor) -> None:
        self.database = database
        self.actor = actor

    async def __call__(self, count: int = 1, **given: Any) -> list[ObjectId]:
        """Write some; the ids of those that are new."""
        before = {raw["_id"] async for raw in self.database.raw["auditlogs"].find({}, {"_id": 1})}
        actor = given.pop("actor", self.actor)
        fields = {"resource": "users", "resource_id": actor.user_id, **given}
        for number in range(count):
            await records.write(self.database, actor, "accounts.email.changed",
                                before={"email": f"old{number}@example.com"}, after={"email": f"new{number}@example.com"},
                                **fields)  # fmt: skip
        found = self.database.raw["auditlogs"].find({}, {"_id": 1}).sort("_id", 1)
        return [raw["_id"] async for raw in found if raw["_id"] not in before]


@pytest.fixture
def write(database: Database, ada: Actor) -> Written:
    return Written(database, ada)
