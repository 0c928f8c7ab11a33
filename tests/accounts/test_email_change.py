"""Another address: only its reader and the account's owner together, once,
and never behind the old address's back."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.accounts.authenticator import PASSWORD, Person
from tests.deleting import soft_delete
from tests.mailing import Mailbox

from ximler.accounts import administration, credentials, email_change, registration, sessions
from ximler.accounts.account_status import AccountLocked
from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import AccountExists
from ximler.accounts.sessions import BadCredentials, SessionExpired
from ximler.accounts.throttle import Throttled
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Invalid
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.email_change import EMAIL_CHANGES
from ximler.schema.user import User
from ximler.worker import Worker

NEW = "new@example.com"
NOBODY = Actor(address="192.0.2.9", user_agent="a mail program")


class Move:
    """Ada moves to another address."""

    def __init__(self, person: Person, worker: Worker, mailbox: Mailbox) -> None:
        self.person, self.worker, self.mailbox = person, worker, mailbox
        self.database, self.keyring = person.database, person.keyring

    async def request(self, email: str = NEW, *, actor: Actor | None = None) -> str:
        """The link's token."""
        user = await self.database.users.get(self.person.user.id)
        await email_change.request(self.database, self.keyring, actor or self.person.actor(), user, email=email)
        change = await self.database[EMAIL_CHANGES].get(user.id)
        return self.keyring.sign("email", change.request_id)

    async def confirm(self, token: str, password: str = PASSWORD) -> User:
        return await email_change.confirm(self.database, self.keyring, NOBODY, token, password=password)

    async def is_refused(self, token: str, password: str = PASSWORD, *, field: str = "token") -> None:
        with pytest.raises(Invalid) as refused:
            await self.confirm(token, password)
        assert refused.value.fields.keys() == {field}

    async def mails(self) -> list[tuple[str, str]]:
        await self.worker.run_due()
        return [(message["To"], message["Subject"]) for message in self.mailbox.messages]


@pytest.fixture
def move(person: Person, worker: Worker, mailbox: Mailbox) -> Move:
    return Move(person, worker, mailbox)


@pytest.mark.slow
async def test_link_and_password_together_change_the_address(move: Move, person: Person) -> None:
    own, other = await person.enter(), await person.enter()
    await move.request("  New@Example.COM ", actor=person.actor(own))
    assert sorted(await move.mails()) == [
        ("ada@example.com", "Another address for your account"),
        (NEW, "Confirm your new e-mail address"),
    ]
    (letter,) = [message for message in move.mailbox.messages if message["To"] == NEW]
    move.mailbox.messages = [letter]
    changed = await move.confirm(move.mailbox.last_token)
    assert (changed.email, changed.email_verified) == (NEW, True)
    assert await person.enter(email=NEW)
    with pytest.raises(BadCredentials):
        await person.enter(email="ada@example.com")
    await sessions.authenticate(move.database, move.keyring, own.token)
    with pytest.raises(SessionExpired):
        await sessions.authenticate(move.database, move.keyring, other.token)
    assert (await move.mails())[1:] == [("ada@example.com", "The address of your account was changed")]


async def test_a_link_works_once_however_many_open_it(move: Move) -> None:
    token = await move.request()
    found = await asyncio.gather(*(move.confirm(token) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(end, User) for end in found) == 1
    assert all(isinstance(end, User | Invalid) for end in found)
    await move.is_refused(token)
    assert await move.database[EMAIL_CHANGES].count({}) == 0


async def test_a_link_ends_after_a_day_and_when_another_is_asked_for(move: Move) -> None:
    first = await move.request("first@example.com")
    second = await move.request("second@example.com")
    await move.is_refused(first)
    move.database.clock.offset_ms = int(timedelta(hours=24, seconds=1).total_seconds() * 1000)
    await move.is_refused(second)
    assert (await move.confirm(await move.request("third@example.com"))).email == "third@example.com"


@pytest.mark.slow
async def test_the_link_alone_changes_nothing_and_wrong_passwords_void_it(move: Move) -> None:
    """Whoever asks for a stranger's address cannot have the stranger confirm it by a click."""
    token = await move.request()
    for number in range(5):
        await move.is_refused(token, f"guess {number}", field="password")
    await move.is_refused(token)
    assert (await move.database.users.get(move.person.user.id)).email == "ada@example.com"


@pytest.mark.slow
async def test_of_guesses_at_the_same_moment_no_more_than_five_are_looked_at(
    move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await move.request()
    verify, looked_at = Keyring.verify_password, []

    async def count(self: Keyring, stored: str | None, password: str) -> bool:
        looked_at.append(password)
        return await verify(self, stored, password)

    monkeypatch.setattr(Keyring, "verify_password", count)
    await asyncio.gather(*(move.confirm(token, f"guess {number}") for number in range(30)), return_exceptions=True)
    assert len(looked_at) == 5


async def test_a_password_change_cancels_a_pending_change_of_address(move: Move, person: Person) -> None:
    token = await move.request()
    user = await move.database.users.get(person.user.id)
    other = "another long password"
    await credentials.change(
        move.database, move.keyring, person.settings, person.actor(), user, current=PASSWORD, new=other
    )
    await move.is_refused(token, other)


async def test_a_reset_link_in_the_old_mailbox_ends_with_the_address(move: Move) -> None:
    await credentials.request_reset(move.database, move.keyring, NOBODY, email="ada@example.com")
    await move.worker.run_due()
    reset = move.mailbox.last_token
    await move.confirm(await move.request())
    with pytest.raises(Invalid):
        await credentials.reset(move.database, move.keyring, NOBODY, token=reset, password="another long password")


async def test_giving_up_ends_the_link(move: Move, person: Person) -> None:
    token = await move.request()
    assert await email_change.cancel(move.database, person.actor())
    assert not await email_change.cancel(move.database, person.actor())
    await move.is_refused(token)
    assert len(await move.mails()) == 1  # the notice; the link was not yet on its way


@pytest.mark.slow
async def test_a_taken_address_gets_the_same_answer_and_a_notice_by_mail(
    move: Move, database: Database, keyring: Keyring
) -> None:
    await administration.create(database, keyring, SYSTEM, name="Bob", email="bob@example.com", password=PASSWORD)
    gone = await administration.create(
        database, keyring, SYSTEM, name="Eve", email="eve@example.com", password=PASSWORD
    )
    await soft_delete(database.users, {"_id": gone.id})
    trips = []
    await move.request("before@example.com")
    for email in ("free@example.com", "bob@example.com", "eve@example.com"):
        with round_trips() as found:
            await move.request(email)
        trips.append(found)
    assert trips[0] == trips[1] == trips[2]
    await move.mails()
    taken = [message for message in move.mailbox.messages if message["To"] == "eve@example.com"]
    assert [message["Subject"] for message in taken] == ["This address has an account already"]
    assert "token" not in taken[0].as_string()
    assert "Ada" not in taken[0].as_string()


async def test_an_address_taken_meanwhile_keeps_its_owner(move: Move, database: Database, keyring: Keyring) -> None:
    token = await move.request()
    bob = await administration.create(database, keyring, SYSTEM, name="Bob", email=NEW, password=PASSWORD)
    with pytest.raises(AccountExists):
        await move.confirm(token)
    assert (await database.users.get(bob.id)).email == NEW
    assert (await database.users.get(move.person.user.id)).email == "ada@example.com"


@pytest.mark.slow
async def test_two_accounts_that_race_for_one_address_end_with_one_that_has_it(
    move: Move, database: Database, keyring: Keyring, settings: Settings
) -> None:
    user = await administration.create(
        database, keyring, SYSTEM, name="Bob", email="bob@example.com", password=PASSWORD
    )
    bob = Move(Person(database, keyring, settings, user), move.worker, move.mailbox)
    tokens = [await move.request(), await bob.request()]
    found = await asyncio.gather(*(move.confirm(token) for token in tokens), return_exceptions=True)
    assert sorted(type(end).__name__ for end in found) == ["AccountExists", "User"]


async def test_requests_cannot_flood_a_mailbox(move: Move) -> None:
    for _ in range(5):
        await move.request("victim@example.com")
    with pytest.raises(Throttled) as refused:
        await move.request("victim@example.com")
    assert refused.value.retry_after_s == 60


@pytest.mark.slow
async def test_an_account_asks_for_so_many_addresses_a_day(move: Move) -> None:
    for number in range(10):
        await move.request(f"victim{number}@example.com")
    with pytest.raises(Throttled):
        await move.request("another@example.com")


@pytest.mark.parametrize("email", ["ada@example.com", " ADA@example.com"])
async def test_ones_own_address_is_no_new_one(move: Move, email: str) -> None:
    with pytest.raises(Invalid, match="already"):
        await move.request(email)


@pytest.mark.parametrize(
    "email",
    ["", "x", "a@example.com\r\nBcc: b@example.com", "a@example.com, b@example.com", '{"$gt": ""}', "Ada <a@example.com>"],
)  # fmt: skip
async def test_an_invalid_address_is_rejected(move: Move, email: str) -> None:
    with pytest.raises(Invalid) as refused:
        await move.request(email)
    assert refused.value.fields.keys() == {"email"}
    assert await move.mails() == []


async def test_links_of_one_purpose_are_rejected_for_another(move: Move) -> None:
    token = await move.request()
    request_id = (await move.database[EMAIL_CHANGES].get(move.person.user.id)).request_id
    for purpose in ("confirm", "reset", "unsubscribe", "emailx", ""):
        await move.is_refused(move.keyring.sign(purpose, request_id))
    with pytest.raises(Invalid):
        await registration.confirm(move.database, move.keyring, NOBODY, token, password=PASSWORD)
    with pytest.raises(Invalid):
        await credentials.reset(move.database, move.keyring, NOBODY, token=token, password="another long password")
    assert await move.confirm(token)


async def test_a_link_made_for_one_request_is_not_anothers(move: Move) -> None:
    await move.request()
    await move.is_refused(move.keyring.sign("email", ObjectId()))
    await move.is_refused(move.keyring.sign("email", move.person.user.id))


@pytest.mark.slow
@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_token_that_was_touched_anywhere_is_refused(data: st.DataObject, move: Move) -> None:
    token = move.keyring.sign("email", ObjectId("65a0000000000000000000ff"))
    position = data.draw(st.integers(0, len(token) - 1))
    mutant = data.draw(
        st.one_of(
            st.just(token[:position]),
            st.just(token[position + 1 :]),
            st.characters().map(lambda c: token[:position] + c + token[position + 1 :]),
            st.characters().map(lambda c: token[:position] + c + token[position:]),
            st.text(max_size=80),
        )
    )
    if mutant != token:
        assert move.keyring.verify("email", mutant) is None
        for use in (
            email_change.confirm(move.database, move.keyring, NOBODY, mutant, password=PASSWORD),
            registration.confirm(move.database, move.keyring, NOBODY, mutant, password=PASSWORD),
            credentials.reset(move.database, move.keyring, NOBODY, token=mutant, password="another long password"),
        ):
            with pytest.raises(Invalid):
                await use


async def test_the_log_has_both_addresses_and_no_secret(move: Move, secrets_in: Any) -> None:
    token = await move.request()
    assert await secrets_in(token, token[16:], PASSWORD) == []
    await move.confirm(token)
    entries = await move.database.audit_logs.find({"userId": move.person.user.id})
    actions = [entry.action for entry in entries if entry.action.startswith("accounts.email.")]
    assert actions == ["accounts.email.requested", "accounts.email.changed"]
    assert await secrets_in(token, token[16:]) == []


async def test_a_thief_cannot_take_over_a_locked_account(move: Move, database: Database, person: Person) -> None:
    token = await move.request("thief@example.com")
    await administration.lock(database, SYSTEM, person.user.id, reason="a break-in")
    await move.is_refused(token)
    await administration.unlock(database, SYSTEM, person.user.id)
    await move.is_refused(token)
    assert (await database.users.get(person.user.id)).email == "ada@example.com"


async def test_a_request_that_a_lock_overtook_ends_with_it(move: Move, database: Database, person: Person) -> None:
    await administration.lock(database, SYSTEM, person.user.id, reason="a break-in")
    token = await move.request("thief@example.com")  # by a session that was recognised a moment before
    with pytest.raises(AccountLocked):
        await move.confirm(token)
    await administration.unlock(database, SYSTEM, person.user.id)
    await move.is_refused(token)
