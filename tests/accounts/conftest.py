"""Secret keys, and a user with an account."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from tests.accounts.authenticator import Person
from tests.contents import contents
from tests.mailing import Mailbox, worker_of

from ximler.accounts import administration
from ximler.accounts.keyring import Keyring
from ximler.core.actor import SYSTEM
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User
from ximler.worker import Worker

PASSWORD = "correct horse battery"


@pytest.fixture
def keyring(settings: Settings) -> Iterator[Keyring]:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


@pytest.fixture
async def ada(database: Database, keyring: Keyring) -> User:
    return await administration.create(
        database, keyring, SYSTEM, name="Ada", email="ada@example.com", password=PASSWORD
    )


@pytest.fixture
def secrets_in(database: Database) -> Any:
    """`await secrets_in("…", …)`: those of the texts that stand anywhere in the database."""

    async def find(*texts: str) -> list[str]:
        everything = b"".join(itertools.chain(*(await contents(database)).values()))
        return [text for text in texts if text.encode() in everything]

    return find


@pytest.fixture
def person(database: Database, keyring: Keyring, settings: Settings, ada: User) -> Person:
    """Ada, at her devices."""
    return Person(database, keyring, settings, ada)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def worker(database: Database, settings: Settings, keyring: Keyring, mailbox: Mailbox) -> Worker:
    return worker_of(database, settings, keyring, mailbox)
