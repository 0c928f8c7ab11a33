"""Signing in, and staying signed in exactly as long as one should."""

import hashlib
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.deleting import restore, soft_delete

from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.accounts.sessions import BadCredentials, SessionExpired, SignedIn
from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

PASSWORD = "correct horse battery"
ANYBODY = Actor(address="192.0.2.7", user_agent="a browser")


@pytest.fixture
def enter(database: Database, keyring: Keyring, settings: Settings) -> Any:
    async def enter(email: str = "ada@example.com", password: str = PASSWORD, *, keys: Keyring = keyring) -> SignedIn:
        return await sessions.sign_in(database, keys, settings, ANYBODY, email=email, password=password)

    return enter


async def test_a_token_identifies_the_user_and_the_origin(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    signed_in = await enter(" ADA@Example.com")
    session, user = await sessions.authenticate(database, keyring, signed_in.token)
    assert user.id == session.user_id == ada.id
    assert (session.address, session.user_agent) == ("192.0.2.7", "a browser")
    assert user.last_login is not None
    assert abs(session.expires_at - session.created_at - timedelta(days=30)) < timedelta(seconds=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "email", ["ada@example.com", "nobody@example.com", "no address", "", "\0", "x" * 1_000_000, "\ud800"]
)
@pytest.mark.parametrize("password", ["", "wrong", "x" * 1000, "x" * 1001, "\0", "\ud800", "correct horse battery "])
async def test_all_wrong_credentials_get_the_same_answer(ada: User, enter: Any, email: str, password: str) -> None:
    with pytest.raises(BadCredentials) as refused:
        await enter(email, password)
    assert refused.value.message == "The e-mail address or the password is not right"
    assert refused.value.fields == {}


async def test_a_wrong_attempt_changes_nothing(database: Database, ada: User, enter: Any) -> None:
    with pytest.raises(BadCredentials):
        await enter(password="wrong password")
    assert await database.users.get(ada.id) == ada
    assert await database.raw["sessions"].count_documents({}) == 0


async def test_a_session_ends_on_time_even_before_the_database_removes_it(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    token = (await enter()).token
    database.clock.offset_ms = int(timedelta(days=30).total_seconds() * 1000) - 60_000
    await sessions.authenticate(database, keyring, token)
    database.clock.offset_ms += 61_000
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, token)


async def test_signing_out_ends_that_session_at_once_and_no_other(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    first, second = await enter(), await enter()
    actor = Actor(kind="user", via="session", user_id=ada.id, session_id=first.session.id)
    assert await sessions.sign_out(database, actor)
    assert not await sessions.sign_out(database, actor)
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, first.token)
    await sessions.authenticate(database, keyring, second.token)
    with pytest.raises(Unauthenticated):
        await sessions.sign_out(database, ANYBODY)


async def test_a_rotated_secret_key_keeps_sessions_and_another_key_refuses_them(
    database: Database, settings: Settings, ada: User, enter: Any
) -> None:
    def keys(secret_key: str) -> Keyring:
        return Keyring(msgspec.structs.replace(settings, secret_key=secret_key))

    old, rotated, other = keys("o" * 32), keys(f"{'n' * 32},{'o' * 32}"), keys("n" * 32)
    before = await enter(keys=old)
    assert (await sessions.authenticate(database, rotated, before.token))[1].id == ada.id
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, other, before.token)
    after = await enter(keys=rotated)
    await sessions.authenticate(database, other, after.token)
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, old, after.token)
    for keyring in (old, rotated, other):
        keyring.close()


async def test_a_deleted_users_session_is_refused_and_they_cannot_sign_in(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    token = (await enter()).token
    await soft_delete(database.users, {"_id": ada.id})
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, token)
    with pytest.raises(BadCredentials):
        await enter()
    await restore(database.users, {"_id": ada.id})
    await database.users.delete({"_id": ada.id})
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, token)


@pytest.mark.parametrize("token", ["", "garbage", "x" * 43, "x" * 1_000_000, "\0" * 43, "ü" * 43, "\ud800" * 43])
async def test_a_malformed_token_is_rejected(
    database: Database, keyring: Keyring, ada: User, enter: Any, token: str
) -> None:
    await enter()
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, token)


async def test_neither_token_nor_password_is_in_the_database(
    database: Database, ada: User, enter: Any, secrets_in: Any
) -> None:
    signed_in = await enter()
    plain = hashlib.sha256(signed_in.token.encode())
    assert await secrets_in(signed_in.token, PASSWORD, plain.hexdigest()) == []
    assert signed_in.session.id != plain.digest()


async def test_stored_hashes_cannot_be_used_as_tokens(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    """Whoever can write the database, but has no key, cannot make a session for a token they know."""
    await enter()
    forged = "f" * 43
    row = await database.raw["sessions"].find_one({})
    assert row is not None
    for guess in (forged.encode(), hashlib.sha256(forged.encode()).digest(), forged):
        await database.raw["sessions"].insert_one(row | {"_id": guess})
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, forged)


async def test_signing_in_renews_a_hash_that_other_settings_made(
    database: Database, settings: Settings, ada: User, enter: Any
) -> None:
    stronger = Keyring(msgspec.structs.replace(settings, argon2_time_cost=2))
    await enter(keys=stronger)
    renewed = (await database.users.get(ada.id)).password
    assert renewed != ada.password
    assert ",t=2," in renewed
    await enter(keys=stronger)
    assert (await database.users.get(ada.id)).password == renewed
    stronger.close()


async def test_a_short_password_that_another_application_took_still_signs_in_when_its_hash_is_renewed(
    database: Database, keyring: Keyring, settings: Settings, ada: User, enter: Any
) -> None:
    short = keyring._hasher.hash("short")
    await database.users.patch({"_id": ada.id}, {"$set": {"password": short}})
    stronger = Keyring(msgspec.structs.replace(settings, argon2_time_cost=2))
    await enter(password="short", keys=stronger)
    await enter(password="short", keys=stronger)
    stronger.close()


async def test_a_password_that_changed_while_its_hash_was_renewed_stays_changed(
    database: Database, keyring: Keyring, settings: Settings, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    stronger = Keyring(msgspec.structs.replace(settings, argon2_time_cost=2))
    changed = await keyring.hash_password("another password")
    renew = stronger.rehash

    async def meanwhile(stored: str, password: str) -> str | None:
        await database.users.patch({"_id": ada.id}, {"$set": {"password": changed}})
        return await renew(stored, password)

    monkeypatch.setattr(stronger, "rehash", meanwhile)
    with pytest.raises(sessions.BadCredentials):
        await sessions.sign_in(database, stronger, settings, ANYBODY, email=ada.email, password=PASSWORD)
    assert (await database.users.get(ada.id)).password == changed
    stronger.close()
