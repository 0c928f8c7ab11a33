"""What operators do to accounts, and that it is all noted."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from ximler.accounts import administration, credentials, roles, second_factor_enrolment, sessions, step_up
from ximler.accounts.attempts import AccountLocked
from ximler.accounts.keyring import Keyring
from ximler.accounts.sessions import BadCredentials, SessionExpired, SignedIn
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

PASSWORD = "correct horse battery"
CLI = Actor(kind="operator", via="cli")
HOME = Actor(address="192.0.2.7", user_agent="a browser")


@pytest.fixture
def enter(database: Database, keyring: Keyring, settings: Settings) -> Any:
    async def enter(password: str = PASSWORD, by: Actor = HOME) -> SignedIn:
        return await sessions.sign_in(database, keyring, settings, by, email="ada@example.com", password=password)

    return enter


async def entries(database: Database, action: str) -> list[dict[str, Any]]:
    return await database.raw["auditlogs"].find({"action": action}).sort("_id").to_list()


async def test_a_lock_ends_the_sessions_and_is_revealed_only_after_the_password(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    token = (await enter()).token
    account = await administration.lock(database, CLI, ada.id, reason="a chargeback")
    assert (account.lock_reason, account.locked_at is not None) == ("a chargeback", True)
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, token)
    with pytest.raises(AccountLocked):
        await enter()
    with pytest.raises(BadCredentials):
        await enter("a wrong guess")
    account = await administration.unlock(database, CLI, ada.id)
    assert (account.lock_reason, account.locked_at) == (None, None)
    with pytest.raises(SessionExpired):  # unlocking revives nothing
        await sessions.authenticate(database, keyring, token)
    assert await enter()
    locked = (await entries(database, "accounts.user.locked"))[0]
    assert (locked["userId"], locked["metadata"]["reason"], locked["metadata"]["sessions"]) == (
        ada.id,
        "a chargeback",
        1,
    )
    assert len(await entries(database, "accounts.user.unlocked")) == 1


@pytest.mark.slow
async def test_no_sign_in_under_way_outlives_a_lock(
    database: Database, keyring: Keyring, settings: Settings, ada: User, enter: Any
) -> None:
    for _ in range(5):
        ends = await asyncio.gather(
            *(enter() for _ in range(6)),
            administration.lock(database, CLI, ada.id, reason="an attack"),
            *(enter() for _ in range(6)),
            return_exceptions=True,
        )
        wrong = [end for end in ends if isinstance(end, BaseException) and not isinstance(end, AccountLocked)]
        assert wrong == []
        assert await administration.open_sessions(database, CLI, ada.id) == []
        await administration.unlock(database, CLI, ada.id)


async def test_no_change_of_password_under_way_outlives_a_lock(
    database: Database, keyring: Keyring, settings: Settings, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())
    start = sessions.start

    async def lock_first(*args: Any, **kwargs: Any) -> Any:
        await administration.lock(database, CLI, ada.id, reason="an attack")
        return await start(*args, **kwargs)

    monkeypatch.setattr(sessions, "start", lock_first)
    with pytest.raises(AccountLocked):
        await credentials.change(database, keyring, settings, actor, ada, current=PASSWORD, new="a bridge over sighs")
    assert await administration.open_sessions(database, CLI, ada.id) == []


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
async def test_a_lock_needs_a_reason(database: Database, ada: User, reason: str) -> None:
    with pytest.raises(Invalid, match="reason"):
        await administration.lock(database, CLI, ada.id, reason=reason)


async def test_operators_cannot_lock_themselves_out(database: Database, ada: User) -> None:
    with pytest.raises(Conflict):
        await administration.lock(
            database,
            Actor(kind="operator", via="session", user_id=ada.id, authenticated_at=database.clock.now()),
            ada.id,
            reason="oops",
        )


@pytest.mark.slow
async def test_accounts_are_found_by_the_beginning_of_address_or_name_and_by_id(
    database: Database, keyring: Keyring, ada: User
) -> None:
    bob = await administration.create(
        database, keyring, SYSTEM, name="Bob Adams", email="bob@example.com", password=PASSWORD
    )

    async def found(text: str) -> set[str]:
        return {account.user.email for account in (await administration.page(database, CLI, search=text)).items}

    assert await found("ada") == {"ada@example.com"}
    assert await found("ADA@EX") == {"ada@example.com"}
    assert await found("bob adams") == {"bob@example.com"}
    assert await found("Bob") == {"bob@example.com"}
    assert await found(str(bob.id)) == {"bob@example.com"}
    assert await found("") == await found("  ") == {"ada@example.com", "bob@example.com"}
    for nobody in ("@example", ".*", "^", "$", "(", "\\", "zoe", "\0", "a" * 24):
        assert await found(nobody) == set(), nobody
    with pytest.raises(Invalid):
        await found("x" * 321)


async def test_reads_by_operators_are_audited_with_the_users_shown(database: Database, ada: User, enter: Any) -> None:
    await enter()
    await administration.page(database, CLI, search="ada")
    await administration.get(database, CLI, ada.id)
    await administration.open_sessions(database, CLI, ada.id)
    await administration.history(database, CLI, ada.id)
    assert (await entries(database, "accounts.users.listed"))[0]["metadata"]["seen"] == [ada.id]
    viewed = await entries(database, "accounts.user.viewed")
    assert [entry["metadata"].get("part") for entry in viewed] == [None, "sessions", "history"]
    assert {entry["userId"] for entry in viewed} == {ada.id}
    assert {entry["metadata"]["via"] for entry in viewed} == {"cli"}


@pytest.mark.slow
async def test_the_history_has_sign_ins_that_succeeded_and_those_that_failed(
    database: Database, ada: User, enter: Any
) -> None:
    await enter()
    for n in range(3):
        with pytest.raises(BadCredentials):
            await enter("a wrong guess", Actor(address=f"203.0.113.{n}"))
    page = await administration.history(database, CLI, ada.id)
    assert [(event.action.split(".")[1], event.address) for event in page.items] == [
        ("sign_in", "203.0.113.2"), ("sign_in", "203.0.113.1"), ("sign_in", "203.0.113.0"), ("session", "192.0.2.7"),
    ]  # fmt: skip
    short = await administration.history(database, CLI, ada.id, first=2)
    assert (len(short.items), short.has_next) == (2, True)


@pytest.mark.slow
async def test_sessions_are_ended_by_operators_and_addresses_verified(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    tokens = [(await enter()).token for _ in range(3)]
    assert len(await administration.open_sessions(database, CLI, ada.id)) == 3
    assert await administration.revoke_sessions(database, CLI, ada.id) == 3
    for token in tokens:
        with pytest.raises(SessionExpired):
            await sessions.authenticate(database, keyring, token)
    await database.users.patch({"_id": ada.id}, {"$set": {"emailVerified": False}})
    assert (await administration.verify(database, CLI, ada.id)).user.email_verified
    await administration.verify(database, CLI, ada.id)  # nothing left to do
    assert len(await entries(database, "accounts.user.verified")) == 1


async def test_an_operators_stolen_session_cannot_change_accounts(database: Database, ada: User) -> None:
    old = Actor(
        kind="operator",
        via="session",
        user_id=ObjectId(),
        session_id=b"s" * 32,
        authenticated_at=database.clock.now() - timedelta(minutes=11),
    )
    for change in (
        administration.lock(database, old, ada.id, reason="r"),
        administration.unlock(database, old, ada.id),
        administration.verify(database, old, ada.id),
        administration.revoke_sessions(database, old, ada.id),
        second_factor_enrolment.remove(database, old, ada.id),
    ):
        with pytest.raises(step_up.StepUpRequired):
            await change


async def test_roles_are_granted_and_withdrawn_on_the_command_line_only(
    database: Database, keyring: Keyring, ada: User, enter: Any
) -> None:
    for actor in (
        Actor(kind="operator", via="session", user_id=ada.id),
        Actor(kind="user", via="session", user_id=ada.id),
    ):
        with pytest.raises(Forbidden):
            await roles.grant(database, actor, ada.id, "operator")
    assert await roles.grant(database, CLI, ada.id, "operator")
    assert not await roles.grant(database, CLI, ada.id, "operator")
    assert (await administration.get(database, CLI, ada.id)).role == "operator"
    token = (await enter()).token
    assert await roles.withdraw(database, CLI, ada.id)
    assert not await roles.withdraw(database, CLI, ada.id)
    assert (await administration.get(database, CLI, ada.id)).role is None
    with pytest.raises(SessionExpired):
        await sessions.authenticate(database, keyring, token)
    assert (
        len(await entries(database, "accounts.role.granted"))
        == len(await entries(database, "accounts.role.withdrawn"))
        == 1
    )


async def test_administration_requires_an_operator_and_unknown_users_are_not_found(
    database: Database, keyring: Keyring, ada: User
) -> None:
    stranger = ObjectId()
    calls = {
        "page": lambda actor, _: administration.page(database, actor),
        "get": lambda actor, who: administration.get(database, actor, who),
        "verify": lambda actor, who: administration.verify(database, actor, who),
        "lock": lambda actor, who: administration.lock(database, actor, who, reason="r"),
        "unlock": lambda actor, who: administration.unlock(database, actor, who),
        "open_sessions": lambda actor, who: administration.open_sessions(database, actor, who),
        "revoke_sessions": lambda actor, who: administration.revoke_sessions(database, actor, who),
        "history": lambda actor, who: administration.history(database, actor, who),
        "grant": lambda actor, who: roles.grant(database, actor, who, "operator"),
        "withdraw": lambda actor, who: roles.withdraw(database, actor, who),
    }
    for name, call in calls.items():
        for actor, error in (
            (Actor(), Unauthenticated),
            (Actor(kind="user", via="session", user_id=ada.id), Forbidden),
        ):
            with pytest.raises(error):
                await call(actor, ada.id)
        if name != "page":
            with pytest.raises(NotFound):
                await call(CLI, stranger)
    assert await database.raw["credentials"].count_documents({}) == 0
