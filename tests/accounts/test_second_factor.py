"""The second factor at the door: a code once, guesses within the budget,
recovery codes when the device is lost."""

import asyncio
import base64
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.accounts.authenticator import PASSWORD, Person
from tests.mailing import Mailbox

from ximler.accounts import administration, second_factor, sessions
from ximler.accounts.keyring import KeyLost, Keyring
from ximler.accounts.second_factor import A_DAY, BUDGET, Renewed, SecondFactorRequired, TooManyCodes, WrongCode
from ximler.accounts.sessions import BadCredentials, SignedIn
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.database.monitoring import round_trips
from ximler.schema.credential import CREDENTIALS
from ximler.schema.user import User
from ximler.worker import Worker

MINUTE_MS = 60_000


async def ends(*attempts: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*attempts, return_exceptions=True)


def count(found: list[Any], kind: type) -> int:
    return sum(isinstance(end, kind) for end in found)


@pytest.mark.slow
async def test_the_second_factor_is_revealed_only_after_the_password(person: Person) -> None:
    assert await person.enter()
    app = await person.enrol()
    for nothing in (None, "", "  ", "-"):
        with pytest.raises(SecondFactorRequired):
            await person.enter(nothing)
    for code in (None, app.code(), app.wrong_codes(1)[0]):
        with pytest.raises(BadCredentials):
            await person.enter(code, password="a wrong password")
    assert (await person.enter(app.next_code())).user.id == person.user.id


async def test_a_code_is_accepted_once_in_a_race(person: Person) -> None:
    app = await person.enrol()
    code = app.next_code()
    found = await ends(*(person.enter(code) for _ in range(5)))
    assert (count(found, SignedIn), count(found, WrongCode)) == (1, 4)
    assert await person.enter(app.next_code())


async def test_the_code_that_enabled_the_factor_cannot_sign_in(person: Person) -> None:
    app = await person.enrol()
    with pytest.raises(WrongCode):
        await person.enter(app.code())


@pytest.mark.parametrize(("steps", "passes"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
async def test_a_clock_may_be_wrong_by_one_step(person: Person, steps: int, passes: bool) -> None:
    app = await person.enrol()
    person.database.clock.offset_ms += 10 * MINUTE_MS
    code = app.code(steps=steps)
    if passes:
        assert await person.enter(f" {code[:3]} {code[3:]} ")
    else:
        with pytest.raises(WrongCode):
            await person.enter(code)


@pytest.mark.parametrize(
    ("second", "code"),
    [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037")],
)
def test_codes_are_those_of_rfc_6238(second: int, code: str) -> None:
    secret = base64.b32encode(b"12345678901234567890")
    assert second_factor.matching_step(secret, code, second * 1000) == second // 30


async def test_codes_earlier_than_an_accepted_one_are_rejected(person: Person) -> None:
    app = await person.enrol()
    person.database.clock.offset_ms += 10 * MINUTE_MS
    await person.enter(app.code(steps=1))
    for steps in (-1, 0, 1):
        with pytest.raises(WrongCode):
            await person.enter(app.code(steps=steps))


@pytest.mark.slow
async def test_of_a_hundred_wrong_codes_at_once_five_are_looked_at(
    person: Person, database: Database, keyring: Keyring, mongodb_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two connections, as from two processes."""
    app = await person.enrol()
    looked_at = []
    matching = second_factor.matching_step
    monkeypatch.setattr(second_factor, "matching_step", lambda *args: looked_at.append(args) or matching(*args))
    other = await connect(mongodb_uri, name=database.name)
    stale = await database[CREDENTIALS].get(person.user.id)
    found = await ends(
        *(
            second_factor.prove((database, other)[number % 2], keyring, Actor(), stale, code)
            for number, code in enumerate(app.wrong_codes(100))
        )
    )
    assert len(looked_at) == BUDGET
    assert (count(found, WrongCode), count(found, TooManyCodes)) == (BUDGET, 100 - BUDGET)
    await other.close()

    with pytest.raises(TooManyCodes) as refused:  # not even the right one, now
        await person.enter(app.next_code())
    wait_s = refused.value.retry_after_s
    assert wait_s is not None
    assert 14 * 60 < wait_s <= 15 * 60
    database.clock.offset_ms += int(wait_s * 1000)
    assert await person.enter(app.code())


@pytest.mark.slow
async def test_in_no_fifteen_minutes_are_more_codes_looked_at_than_the_budget(
    person: Person, database: Database, keyring: Keyring
) -> None:
    app = await person.enrol()
    credential = await database[CREDENTIALS].get(person.user.id)
    looked_at = []
    for _ in range(60):
        database.clock.offset_ms += MINUTE_MS
        found = await ends(
            *(second_factor.prove(database, keyring, Actor(), credential, code) for code in app.wrong_codes(3))
        )
        looked_at += [database.clock.now()] * count(found, WrongCode)
    assert len(looked_at) >= 3 * BUDGET
    for first, sixth in zip(looked_at, looked_at[BUDGET:], strict=False):
        assert sixth - first >= second_factor.WINDOW - timedelta(seconds=1)


@pytest.mark.slow
async def test_in_no_day_are_more_codes_looked_at_than_fifty(
    person: Person, database: Database, keyring: Keyring
) -> None:
    app = await person.enrol()
    credential = await database[CREDENTIALS].get(person.user.id)
    looked_at = []
    for _ in range(30 * 4):
        database.clock.offset_ms += 15 * MINUTE_MS
        wrong = app.wrong_codes(BUDGET)
        found = await ends(*(second_factor.prove(database, keyring, Actor(), credential, code) for code in wrong))
        looked_at += [database.clock.now()] * count(found, WrongCode)
    assert len(looked_at) > A_DAY
    for first, beyond in zip(looked_at, looked_at[A_DAY:], strict=False):
        assert beyond - first >= timedelta(days=1) - timedelta(minutes=1)


@pytest.mark.slow
async def test_right_codes_do_not_use_up_the_budget(person: Person) -> None:
    app = await person.enrol()
    for _ in range(3 * BUDGET):
        await person.enter(app.next_code())


async def test_a_used_up_budget_is_reported_to_the_owner_once_a_day(
    person: Person, worker: Worker, mailbox: Mailbox
) -> None:
    now = person.database.clock.now()
    noon = now.replace(hour=12, minute=0) + timedelta(days=1)  # so that all of it is on one day
    person.database.clock.offset_ms += (noon - now) // timedelta(milliseconds=1)
    app = await person.enrol()
    for _ in range(2):
        await ends(*(person.enter(code) for code in app.wrong_codes(8)))
        person.database.clock.offset_ms += 16 * MINUTE_MS
    await worker.run_due()
    subjects = [message["Subject"] for message in mailbox.messages]
    assert subjects.count("Wrong codes were tried for your account") == 1
    log = await person.database.audit_logs.find({"userId": person.user.id})
    assert {entry.action for entry in log} >= {"accounts.factor.attempts_exhausted", "accounts.code.refused"}


async def test_each_recovery_code_works_once(person: Person) -> None:
    await person.enrol()
    assert len(set(person.recovery_codes)) == 10
    typed = [person.recovery_codes[0], person.recovery_codes[1].upper(), person.recovery_codes[2].replace("-", " ")]
    for code in typed:
        assert await person.enter(code)
        with pytest.raises(WrongCode):
            await person.enter(code)
    found = await ends(*(person.enter(person.recovery_codes[3]) for _ in range(8)))
    assert (count(found, SignedIn), count(found, WrongCode)) == (1, 7)
    left = (await person.database[CREDENTIALS].get(person.user.id)).recovery_codes
    assert len(left) == 6


async def test_guessing_does_not_lock_out_recovery_codes(person: Person) -> None:
    app = await person.enrol()
    await ends(*(person.enter(code) for code in app.wrong_codes(8)))
    with pytest.raises(TooManyCodes):
        await person.enter(app.next_code())
    assert await person.enter(person.recovery_codes[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    ["x", "12345", "1234567", "٠١٢٣٤٥", "１２３４５６", "x" * 1_000_000, "\0", "\ud800", '{"$gt": ""}', "a" * 16],
)
async def test_a_malformed_code_is_rejected_without_using_the_budget(person: Person, code: str) -> None:
    app = await person.enrol()
    for _ in range(BUDGET + 1):
        with pytest.raises(WrongCode):
            await person.enter(code)
    assert await person.enter(app.next_code())


async def test_codes_of_another_user_are_rejected(
    person: Person, database: Database, keyring: Keyring, settings: Settings
) -> None:
    await person.enrol()
    user = await administration.create(
        database, keyring, SYSTEM, name="Bob", email="bob@example.com", password=PASSWORD
    )
    bob = Person(database, keyring, settings, user)
    theirs = await bob.enrol()
    for code in (theirs.next_code(), bob.recovery_codes[0]):
        with pytest.raises(WrongCode):
            await person.enter(code)


async def test_neither_secret_nor_codes_are_in_the_database(person: Person, secrets_in: Any) -> None:
    app = await person.enrol()
    code = app.next_code()
    await person.enter(code)
    plain = [shown.replace("-", "") for shown in person.recovery_codes]
    assert await secrets_in(app.totp.secret, *person.recovery_codes, *plain) == []


async def test_a_secret_moved_to_another_account_is_unusable(
    person: Person, database: Database, keyring: Keyring
) -> None:
    """Who can write the database, but has no key, cannot put their own factor in place of somebody's."""
    await person.enrol()
    stored = (await database[CREDENTIALS].get(person.user.id)).totp_secret
    assert stored is not None
    with pytest.raises(KeyLost):
        keyring.decrypt(second_factor.PURPOSE, ObjectId(), stored)
    with pytest.raises(KeyLost):
        keyring.decrypt("another purpose", person.user.id, stored)
    for position in (0, 5, 20, len(stored) - 1):
        changed = bytearray(stored)
        changed[position] ^= 1
        with pytest.raises(KeyLost):
            keyring.decrypt(second_factor.PURPOSE, person.user.id, bytes(changed))
    for length in (0, 3, 4, 10, 16, 17):
        with pytest.raises(KeyLost):
            keyring.decrypt(second_factor.PURPOSE, person.user.id, stored[:length])


@pytest.fixture
def keys(settings: Settings) -> Any:
    made = []

    def keys(secret_key: str) -> Keyring:
        made.append(Keyring(msgspec.structs.replace(settings, secret_key=secret_key)))
        return made[-1]

    yield keys
    for keyring in made:
        keyring.close()


async def test_sign_ins_re_encrypt_secrets_under_the_newest_key(person: Person, keys: Any) -> None:
    old, both, new = keys("o" * 32), keys(f"{'n' * 32},{'o' * 32}"), keys("n" * 32)
    person.keyring = old
    app = await person.enrol()
    with pytest.raises(KeyLost):
        await person.enter(app.next_code(), keyring=new)
    assert await person.enter(app.next_code(), keyring=both)
    assert await person.enter(app.next_code(), keyring=new)
    with pytest.raises(KeyLost):
        await person.enter(app.next_code(), keyring=old)


async def test_everybodys_secret_moves_to_the_newest_key_at_once(person: Person, keys: Any) -> None:
    old, both, new, other = keys("o" * 32), keys(f"{'n' * 32},{'o' * 32}"), keys("n" * 32), keys("x" * 32)
    person.keyring = old
    app = await person.enrol()
    with pytest.raises(Forbidden):
        await second_factor.renew_secrets(person.database, both, person.actor())
    assert await second_factor.renew_secrets(person.database, other, SYSTEM) == Renewed(0, 1)
    assert await second_factor.renew_secrets(person.database, both, SYSTEM) == Renewed(1, 0)
    assert await second_factor.renew_secrets(person.database, both, SYSTEM) == Renewed(0, 0)
    assert await person.enter(app.next_code(), keyring=new)


async def test_recovery_codes_work_even_when_the_secret_key_is_lost(person: Person, keys: Any) -> None:
    await person.enrol()
    assert await person.enter(person.recovery_codes[0], keyring=keys("x" * 32))


async def test_a_sign_in_in_flight_fails_when_a_factor_is_enabled(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password was right and there was no factor; then, before the session is made, there is."""
    renew = Keyring.rehash

    async def meanwhile(self: Keyring, stored: str, password: str) -> str | None:
        await person.enrol()
        return await renew(self, stored, password)

    monkeypatch.setattr(Keyring, "rehash", meanwhile)
    with pytest.raises(SecondFactorRequired):
        await person.enter()
    assert await sessions.mine(person.database, person.actor()) == []


@pytest.mark.slow
async def test_of_sign_ins_that_race_an_enrolment_no_session_is_left(person: Person) -> None:
    for _ in range(3):
        own = await person.enter()
        found = await ends(person.enrol(own), *(person.enter() for _ in range(6)))
        assert not [end for end in found[1:] if not isinstance(end, SignedIn | SecondFactorRequired)]
        left = await sessions.mine(person.database, person.actor(own))
        assert [session.id for session in left] == [own.session.id]
        await person.database[CREDENTIALS].delete({"_id": person.user.id})
        await sessions.revoke_all(person.database, person.user.id)


async def test_a_code_costs_two_round_trips(person: Person, database: Database, keyring: Keyring) -> None:
    none = await database[CREDENTIALS].find_one({"_id": person.user.id})
    with round_trips() as trips:
        await second_factor.prove(database, keyring, Actor(), none, None)
    assert trips == []
    app = await person.enrol()
    credential = await database[CREDENTIALS].get(person.user.id)
    with round_trips() as trips:
        await second_factor.prove(database, keyring, Actor(), credential, app.next_code())
    assert trips == [("findAndModify", "credentials"), ("update", "credentials")]


async def test_a_user_without_a_factor_needs_no_code(person: Person, ada: User) -> None:
    assert await person.enter("123456")
    assert await person.enter("whatever")
