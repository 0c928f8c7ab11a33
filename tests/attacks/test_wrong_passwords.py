"""Attacks by guessing: a wrong password is audited and counted on every path that takes one."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ximler.accounts import administration, email_change, registration, sessions, step_up
from ximler.accounts.keyring import Keyring
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import XimlerError
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

PASSWORD = "correct horse battery"
ATTACKER = Actor(address="192.0.2.66", user_agent="guess/1.0")


@pytest.fixture
def keyring(settings: Settings) -> Keyring:
    return Keyring(settings)


@pytest.fixture
async def ada(database: Database, keyring: Keyring) -> User:
    return await administration.create(
        database, keyring, SYSTEM, name="Ada", email="ada@example.com", password=PASSWORD
    )


async def test_a_wrong_password_is_audited_on_every_path(
    database: Database, keyring: Keyring, settings: Settings, ada: User
) -> None:
    signed_in = Actor(
        kind="user", via="session", user_id=ada.id, session_id=b"s" * 32, authenticated_at=database.clock.now(),
        address=ATTACKER.address,
    )  # fmt: skip
    await registration.register(database, keyring, ATTACKER, name="Eve", email="eve@example.com", password=PASSWORD)
    (waiting,) = await database.raw["registrations"].find({}).to_list()
    await email_change.request(database, keyring, signed_in, ada, email="new@example.com")
    (asked,) = await database.raw["emailchanges"].find({}).to_list()
    wrong = "quite another password"
    paths: dict[str, Callable[[], Awaitable[Any]]] = {
        "sign in": lambda: sessions.sign_in(database, keyring, settings, ATTACKER, email=ada.email, password=wrong),
        "step up": lambda: step_up.prove_password(database, keyring, signed_in, ada, wrong),
        "confirm": lambda: registration.confirm(
            database, keyring, ATTACKER, keyring.sign("confirm", waiting["_id"]), password=wrong
        ),
        "confirm an address": lambda: email_change.confirm(
            database, keyring, ATTACKER, keyring.sign("email", asked["requestId"]), password=wrong
        ),
    }
    for name, path in paths.items():
        before = {entry["_id"] async for entry in database.raw["auditlogs"].find({}, {"_id": 1})}
        with pytest.raises(XimlerError):
            await path()
        (entry,) = [e async for e in database.raw["auditlogs"].find({}) if e["_id"] not in before]
        assert entry["action"] in ("accounts.sign_in.failed", "accounts.password.refused"), name
        assert entry["ipAddress"] == ATTACKER.address, name
        assert wrong not in str(entry), name
