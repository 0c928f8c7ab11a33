"""A user who has just signed in, and a process that verifies keys."""

from collections.abc import AsyncIterator

import pytest
from tests.database.following import running, until

from ximler.accounts import administration
from ximler.accounts.keyring import Keyring
from ximler.apikeys.verification import Verifier
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.schema.user import User

PASSWORD = "correct horse battery"


@pytest.fixture
async def ada(database: Database, settings: Settings) -> User:
    keyring = Keyring(settings)
    try:
        return await administration.create(
            database, keyring, SYSTEM, name="Ada", email="ada@example.com", password=PASSWORD
        )
    finally:
        keyring.close()


@pytest.fixture
def actor(database: Database, ada: User) -> Actor:
    now = database.clock.now()
    return Actor(kind="user", via="session", user_id=ada.id, session_id=b"x", authenticated_at=now, address="192.0.2.1")


@pytest.fixture
async def verifier(database: Database) -> AsyncIterator[Verifier]:
    feed = Feed(database)
    verifier = Verifier(database, feed)
    async with running(feed):
        await until(lambda: feed.fresh)
        yield verifier
    database.feed = None
