"""The second factor's life: begun, proved, renewed, removed;
never without a recent sign-in, never unnoticed."""

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from bson import ObjectId
from tests.accounts.authenticator import Authenticator, Person
from tests.mailing import Mailbox

from ximler.accounts import second_factor_enrolment, sessions
from ximler.accounts.second_factor import SecondFactorRequired, WrongCode
from ximler.accounts.step_up import StepUpRequired
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, Forbidden, Invalid, NotFound
from ximler.database import Database
from ximler.worker import Worker


async def test_the_enrolment_uri_is_readable_by_authenticator_apps(person: Person) -> None:
    shown = await second_factor_enrolment.begin(person.database, person.keyring, person.actor(), person.user)
    parts = urlsplit(shown.uri)
    assert (parts.scheme, parts.netloc, unquote(parts.path)) == ("otpauth", "totp", "/Ximler:ada@example.com")
    assert parse_qs(parts.query) == {"secret": [shown.secret], "issuer": ["Ximler"]}
    assert len(shown.secret) == 32  # 160 bits, as RFC 4226 recommends
    assert shown.secret not in repr(shown)


async def test_nothing_changes_until_the_secret_is_proved(person: Person) -> None:
    shown = await second_factor_enrolment.begin(person.database, person.keyring, person.actor(), person.user)
    assert await person.enter()
    app = Authenticator(person.database, shown.secret)
    with pytest.raises(Invalid) as refused:
        await second_factor_enrolment.confirm(
            person.database, person.keyring, person.actor(), person.user, code=app.wrong_codes(1)[0]
        )
    assert refused.value.fields.keys() == {"code"}
    assert await person.enter()
    assert (await second_factor_enrolment.status(person.database, person.actor())).since is None


async def test_a_factor_stays_in_force_until_the_new_one_is_confirmed(person: Person) -> None:
    old = await person.enrol()
    shown = await second_factor_enrolment.begin(person.database, person.keyring, person.actor(), person.user)
    assert await person.enter(old.next_code())
    new = Authenticator(person.database, shown.secret)
    await second_factor_enrolment.confirm(
        person.database, person.keyring, person.actor(), person.user, code=new.next_code()
    )
    with pytest.raises(WrongCode):
        await person.enter(old.next_code())
    assert await person.enter(new.next_code())


async def test_a_secret_has_to_be_proved_within_a_quarter_of_an_hour(person: Person) -> None:
    shown = await second_factor_enrolment.begin(person.database, person.keyring, person.actor(), person.user)
    app = Authenticator(person.database, shown.secret)
    person.database.clock.offset_ms += 15 * 60_000
    with pytest.raises(Conflict, match="begin again"):
        await second_factor_enrolment.confirm(
            person.database, person.keyring, person.actor(), person.user, code=app.code()
        )


async def test_of_racing_confirmations_one_shows_recovery_codes(person: Person) -> None:
    shown = await second_factor_enrolment.begin(person.database, person.keyring, person.actor(), person.user)
    app = Authenticator(person.database, shown.secret)
    confirm = second_factor_enrolment.confirm
    found = await asyncio.gather(
        *(confirm(person.database, person.keyring, person.actor(), person.user, code=app.code()) for _ in range(6)),
        return_exceptions=True,
    )
    (codes,) = [end for end in found if isinstance(end, list)]
    assert all(isinstance(end, Conflict) for end in found if end is not codes)
    assert await person.enter(codes[0])


async def test_a_new_factor_ends_every_session_but_the_one_that_made_it(person: Person) -> None:
    own, *_ = [await person.enter() for _ in range(4)]
    await person.enrol(own)
    left = await sessions.mine(person.database, person.actor(own))
    assert [session.id for session in left] == [own.session.id]


async def test_a_removed_factor_requires_no_code_and_its_recovery_codes_are_deleted(person: Person) -> None:
    await person.enrol()
    await second_factor_enrolment.disable(person.database, person.actor())
    assert await person.enter()
    with pytest.raises(NotFound):
        await second_factor_enrolment.disable(person.database, person.actor())
    with pytest.raises(NotFound):
        await second_factor_enrolment.regenerate(person.database, person.actor(), person.user.id)
    old = person.recovery_codes
    await person.enrol()
    with pytest.raises(WrongCode):
        await person.enter(old[0])


async def test_new_recovery_codes_replace_the_old(person: Person) -> None:
    await person.enrol()
    await person.enter(person.recovery_codes[0])
    assert (await second_factor_enrolment.status(person.database, person.actor())).recovery_codes_left == 9
    fresh = await second_factor_enrolment.regenerate(person.database, person.actor(), person.user.id)
    assert (await second_factor_enrolment.status(person.database, person.actor())).recovery_codes_left == 10
    with pytest.raises(WrongCode):
        await person.enter(person.recovery_codes[1])
    assert await person.enter(fresh[0])


async def test_every_change_needs_a_recent_sign_in(person: Person) -> None:
    app = await person.enrol()
    stale = person.actor(ago=timedelta(minutes=10, seconds=1))
    for change in (
        second_factor_enrolment.begin(person.database, person.keyring, stale, person.user),
        second_factor_enrolment.confirm(person.database, person.keyring, stale, person.user, code=app.code()),
        second_factor_enrolment.regenerate(person.database, stale, person.user.id),
        second_factor_enrolment.disable(person.database, stale),
    ):
        with pytest.raises(StepUpRequired):
            await change
    with pytest.raises(SecondFactorRequired):
        await person.enter()


async def test_only_an_operator_removes_a_lost_second_factor(person: Person) -> None:
    await person.enrol()
    with pytest.raises(Forbidden):
        await second_factor_enrolment.remove(person.database, person.actor(), person.user.id)
    with pytest.raises(StepUpRequired):
        await second_factor_enrolment.remove(
            person.database, Actor(kind="operator", via="session", user_id=ObjectId()), person.user.id
        )
    with pytest.raises(NotFound):
        await second_factor_enrolment.remove(person.database, SYSTEM, ObjectId())
    await second_factor_enrolment.remove(person.database, Actor(kind="operator", via="cli"), person.user.id)
    assert await person.enter()


async def test_every_change_is_in_the_log_and_in_the_mail(
    person: Person, database: Database, worker: Worker, mailbox: Mailbox
) -> None:
    await person.enrol()
    await person.enter(person.recovery_codes[0])
    await second_factor_enrolment.regenerate(database, person.actor(), person.user.id)
    await second_factor_enrolment.disable(database, person.actor())
    entries = await database.audit_logs.find({"userId": person.user.id, "resourceId": str(person.user.id)})
    actions = [entry.action for entry in entries if "sign_in" not in entry.action]
    expected = ["factor.enabled", "recovery_code.used", "recovery_codes.made", "factor.disabled"]
    assert [action for action in actions if action.removeprefix("accounts.") in expected] == [
        f"accounts.{name}" for name in expected
    ]
    await worker.run_due()
    assert [message["Subject"] for message in mailbox.messages] == [
        "A second factor protects your account",
        "A recovery code was used",
        "You have new recovery codes",
        "Your second factor was removed",
    ]
    assert {message["To"] for message in mailbox.messages} == {"ada@example.com"}


async def test_the_log_holds_no_secret(person: Person, database: Database, secrets_in: Any) -> None:
    app = await person.enrol()
    code = person.recovery_codes[0]
    await person.enter(code)
    log = str(await database.raw["auditlogs"].find({}).to_list()) + str(await database.raw["outbox"].find({}).to_list())
    for secret in (app.totp.secret, code, code.replace("-", "")):
        assert secret not in log
