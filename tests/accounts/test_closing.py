"""Closing and reopening an account; a closed account is revealed only by password or mail."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pyotp
import pytest
from tests.deleting import restore, soft_delete
from tests.mailing import Mailbox, worker_of
from tests.serving import PASSWORD, Client

from ximler.accounts import (
    closing,
    credentials,
    registration,
    second_factor,
    second_factor_enrolment,
    sessions,
    step_up,
)
from ximler.accounts.keyring import Keyring
from ximler.accounts.reopening import AccountClosed
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.session import SESSIONS
from ximler.schema.user import User
from ximler.worker import Worker

ANYBODY = Actor(address="192.0.2.1")
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def worker(database: Database, settings: Settings, keyring: Keyring, mailbox: Mailbox) -> Worker:
    return worker_of(database, settings, keyring, mailbox)


class Door:
    """Ada's ways in and out."""

    def __init__(self, database: Database, keyring: Keyring, settings: Settings, ada: User) -> None:
        self.database, self.keyring, self.settings, self.ada = database, keyring, settings, ada
        self.actor = Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())

    async def sign_in(self, password: str = PASSWORD, email: str = "ada@example.com") -> sessions.SignedIn:
        return await sessions.sign_in(
            self.database, self.keyring, self.settings, ANYBODY, email=email, password=password
        )

    async def close(self) -> Any:
        user = await self.database.users.get(self.ada.id)
        actor = msgspec.structs.replace(self.actor, authenticated_at=self.database.clock.now())
        return await closing.close(self.database, actor, user)

    async def reopen(self, password: str = PASSWORD, **more: Any) -> sessions.SignedIn:
        return await closing.reopen(
            self.database, self.keyring, self.settings, ANYBODY, email="Ada@example.com", password=password, **more
        )


@pytest.fixture
def door(database: Database, keyring: Keyring, settings: Settings, ada: User) -> Door:
    return Door(database, keyring, settings, ada)


async def test_closing_ends_every_session_and_says_when_all_is_erased(door: Door) -> None:
    tokens = [(await door.sign_in()).token for _ in range(3)]
    erased_at = await door.close()
    assert erased_at - door.database.clock.now() > timedelta(days=30, seconds=-10)
    for token in tokens:
        with pytest.raises(sessions.SessionExpired):
            await sessions.authenticate(door.database, door.keyring, token)
    assert await door.database.users.find_one({"_id": door.ada.id}) is None


async def test_closing_costs_six_commands(door: Door) -> None:
    user = await door.database.users.get(door.ada.id)
    with round_trips() as trips:
        await closing.close(door.database, door.actor, user)
    assert trips == [
        ("update", "users"),
        ("delete", "sessions"),
        ("insert", "outbox"),
        ("insert", "outbox"),
        ("insert", "auditlogs"),
        ("commitTransaction", ""),
    ]


async def test_closing_an_account_requires_a_recent_sign_in_of_its_owner(door: Door) -> None:
    user = await door.database.users.get(door.ada.id)
    stranger = msgspec.structs.replace(door.actor, user_id=type(door.ada.id)())
    with pytest.raises(NotFound):
        await closing.close(door.database, stranger, user)
    door.database.clock.offset_ms += 11 * 60_000
    with pytest.raises(step_up.StepUpRequired):
        await closing.close(door.database, door.actor, user)
    key = msgspec.structs.replace(door.actor, via="api_key", authenticated_at=door.database.clock.now())
    with pytest.raises(step_up.StepUpRequired):
        await closing.close(door.database, key, user)
    assert await door.database.users.find_one({"_id": door.ada.id})


async def test_a_password_change_at_the_same_moment_comes_before_closing(door: Door) -> None:
    user = await door.database.users.get(door.ada.id)
    fresh = await door.keyring.hash_password("quite another password")
    await door.database.users.patch({"_id": user.id}, {"$set": {"password": fresh}})
    with pytest.raises(Conflict):
        await closing.close(door.database, door.actor, user)


async def test_the_right_password_alone_learns_that_an_account_is_closed(door: Door) -> None:
    await door.close()
    with pytest.raises(AccountClosed, match="reopen it"):
        await door.sign_in()
    for wrong in ({"password": "not the right one"}, {"email": "nobody@example.com"}):
        with pytest.raises(sessions.BadCredentials) as refused:
            await door.sign_in(**wrong)
        assert "closed" not in refused.value.message
    assert await door.database[SESSIONS].count({}) == 0


async def test_within_thirty_days_the_right_password_brings_everything_back(door: Door, worker: Worker) -> None:
    await door.close()
    door.database.clock.offset_ms += 29 * DAY_MS
    await worker.run_due()
    with pytest.raises(sessions.BadCredentials):
        await door.reopen("not the right one")
    back = await door.reopen()
    assert (await sessions.authenticate(door.database, door.keyring, back.token))[1].id == door.ada.id
    door.database.clock.offset_ms += 300 * DAY_MS
    await worker.run_due()  # the job that closing left finds nothing to do
    user = await door.database.users.get(door.ada.id)
    assert (user.name, user.email, user.password) == ("Ada", "ada@example.com", door.ada.password)


async def test_an_account_deleted_by_another_application_cannot_be_reopened(door: Door) -> None:
    await soft_delete(door.database.users, {"_id": door.ada.id})
    for attempt in (door.sign_in, door.reopen):
        with pytest.raises(sessions.BadCredentials):
            await attempt()
    # Nor one that they closed, and that was restored and deleted since.
    await restore(door.database.users, {"_id": door.ada.id})
    await door.close()
    await restore(door.database.users, {"_id": door.ada.id})
    door.database.clock.offset_ms += 1000
    await soft_delete(door.database.users, {"_id": door.ada.id})
    with pytest.raises(sessions.BadCredentials):
        await door.reopen()


async def test_reopening_an_account_that_is_open_just_signs_in(door: Door) -> None:
    assert (await door.reopen()).user.id == door.ada.id
    assert await door.database.audit_logs.count({"action": "accounts.account.reopened"}) == 0


async def test_closed_again_it_has_thirty_days_again(door: Door, worker: Worker) -> None:
    await door.close()
    door.database.clock.offset_ms += 20 * DAY_MS
    await door.reopen()
    await door.close()
    door.database.clock.offset_ms += 29 * DAY_MS  # 49 after the first time
    await worker.run_due()
    assert (await door.reopen()).user.email == "ada@example.com"


@pytest.mark.slow
async def test_closed_and_reopened_by_many_at_once_it_is_one_or_the_other(door: Door) -> None:
    for _ in range(3):
        ends = await asyncio.gather(
            *(door.close() for _ in range(4)), *(door.reopen() for _ in range(4)), return_exceptions=True
        )
        strange = [
            end for end in ends if isinstance(end, Exception) and type(end).__name__ not in
            ("Conflict", "NotFound", "BadCredentials")
        ]  # fmt: skip
        assert strange == []
        user = await door.database.users.find_one({"_id": door.ada.id}, deleted=True)
        assert user is not None
        if user.deleted_at is not None:
            assert await door.database[SESSIONS].count({"userId": user.id}) == 0
        await door.reopen()


async def test_closing_and_reopening_are_mailed_and_logged(door: Door, worker: Worker, mailbox: Mailbox) -> None:
    await door.close()
    await worker.run_due()
    assert [m["Subject"] for m in mailbox.messages] == ["Your account is closed"]
    body = mailbox.messages[0].get_body(("plain",))
    assert body is not None
    assert "You can reopen it until" in body.get_content()
    await door.reopen()
    await worker.run_due()
    assert mailbox.messages[-1]["Subject"] == "Your account is open again"
    log = await door.database.audit_logs.find({"userId": door.ada.id}, sort=[("_id", 1)])
    assert [e.action for e in log if "account." in e.action] == ["accounts.account.closed", "accounts.account.reopened"]


async def test_registering_a_closed_address_mails_an_offer_to_reopen_and_says_nothing_else(
    door: Door, worker: Worker, mailbox: Mailbox
) -> None:
    await door.close()
    await worker.run_due()
    said = await registration.register(
        door.database, door.keyring, ANYBODY, name="Ada", email="ada@example.com", password="quite another one"
    )
    assert said is None
    await worker.run_due()
    assert mailbox.messages[-1]["Subject"] == "Your account can be reopened"
    body = mailbox.messages[-1].get_body(("plain",))
    assert body is not None
    assert "token=" not in body.get_content()


@pytest.mark.slow
async def test_a_password_that_was_forgotten_can_be_replaced_to_come_back(
    door: Door, worker: Worker, mailbox: Mailbox
) -> None:
    await door.close()
    await credentials.request_reset(door.database, door.keyring, ANYBODY, email="ada@example.com")
    await worker.run_due()
    new = "quite another password"
    await credentials.reset(door.database, door.keyring, ANYBODY, token=mailbox.last_token, password=new)
    assert (await door.database.users.find_one({"_id": door.ada.id})) is None  # still closed
    with pytest.raises(sessions.BadCredentials):
        await door.reopen()
    await door.reopen(new)
    await soft_delete(door.database.users, {"_id": door.ada.id})  # by somebody else: nothing is mailed
    await worker.run_due()
    mailbox.messages.clear()
    await credentials.request_reset(door.database, door.keyring, ANYBODY, email="ada@example.com")
    await worker.run_due()
    assert mailbox.messages == []


async def test_reopening_requires_the_second_factor(door: Door) -> None:
    enrolment_ = await second_factor_enrolment.begin(door.database, door.keyring, door.actor, door.ada)
    totp = pyotp.TOTP(enrolment_.secret)
    code = totp.at(door.database.clock.now())
    await second_factor_enrolment.confirm(door.database, door.keyring, door.actor, door.ada, code=code)
    await door.close()
    with pytest.raises(AccountClosed):
        await door.sign_in()
    with pytest.raises(second_factor.SecondFactorRequired):
        await door.reopen()
    assert await door.database.users.find_one({"_id": door.ada.id}) is None
    door.database.clock.offset_ms += 60_000
    await door.reopen(code=totp.at(door.database.clock.now()))
    assert await door.database.users.find_one({"_id": door.ada.id})


async def test_keys_of_a_closed_account_are_rejected_until_it_is_reopened(app: Any) -> None:
    eve = await Client(app).join("eve@example.com")
    create = 'mutation { createApiKey(input: {name: "CI", permissions: ["account:read"]}) { secret } }'
    key = Client(app, token=(await eve.ask(create))["createApiKey"]["secret"])
    assert (await key.ask("{ me { email } }"))["me"]["email"] == "eve@example.com"
    await eve.ask("mutation { closeAccount { erasedAt } }")
    deadline = asyncio.get_running_loop().time() + 2
    while (refused := await key.ask("{ me { email } }")).status != 401:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    assert refused.data is None
    for client in (eve, key):
        await client.http.aclose()


@pytest.mark.slow
async def test_over_graphql(app: Any, database: Database) -> None:
    eve = await Client(app).join("eve@example.com")
    assert (await eve.ask("mutation { closeAccount { erasedAt } }"))["closeAccount"]["erasedAt"]
    assert (await eve.ask("{ me { id } }")).code == "SESSION_EXPIRED"
    refused = await eve.sign_in("eve@example.com")
    assert refused.code == "ACCOUNT_CLOSED"
    assert "can be reopened until 20" in refused.fields["account"]
    reopen = 'mutation ($p: String!) { reopenAccount(email: "eve@example.com", password: $p) { token user { email } } }'
    assert (await eve.ask(reopen, p="not the right one")).code == "BAD_CREDENTIALS"
    eve.token = (await eve.ask(reopen, p=PASSWORD))["reopenAccount"]["token"]
    assert (await eve.ask("{ me { email unreadNotifications } }"))["me"] == {
        "email": "eve@example.com",
        "unreadNotifications": 1,
    }
    await eve.http.aclose()
