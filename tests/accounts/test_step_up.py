"""Step-up: a session alone keeps nobody's account; a sign-in of the last ten minutes does."""

from datetime import timedelta

import pytest
from tests.accounts.authenticator import PASSWORD, Person

from ximler.accounts import credentials, email_change, sessions, step_up
from ximler.accounts.second_factor import SecondFactorRequired, WrongCode
from ximler.accounts.sessions import SessionExpired
from ximler.accounts.step_up import StepUpRequired
from ximler.accounts.throttle import Throttled
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden, Unauthenticated
from ximler.database.monitoring import round_trips


async def test_a_sign_in_older_than_ten_minutes_requires_reauthentication(person: Person) -> None:
    step_up.require(person.database, person.actor(ago=timedelta(minutes=9, seconds=59)))
    with pytest.raises(StepUpRequired, match="reauthenticate") as refused:
        step_up.require(person.database, person.actor(ago=timedelta(minutes=10, seconds=1)))
    assert refused.value.code == "STEP_UP_REQUIRED"


async def test_a_decision_costs_no_round_trip(person: Person) -> None:
    with round_trips() as trips:
        step_up.require(person.database, person.actor())
    assert trips == []


async def test_api_keys_and_anonymous_callers_cannot_step_up(person: Person) -> None:
    key = Actor(kind="user", via="api_key", user_id=person.user.id, authenticated_at=person.database.clock.now())
    with pytest.raises(StepUpRequired, match="API key"):
        step_up.require(person.database, key)
    with pytest.raises(Unauthenticated):
        step_up.require(person.database, Actor())
    with pytest.raises(StepUpRequired):
        step_up.require(person.database, Actor(kind="user", via="session", user_id=person.user.id))
    step_up.require(person.database, SYSTEM)


async def test_reauthenticating_makes_the_session_recent(person: Person) -> None:
    signed_in = await person.enter()
    person.database.clock.offset_ms += 3_600_000
    session, user = await sessions.authenticate(person.database, person.keyring, signed_in.token)
    stale = person.actor(signed_in, ago=person.database.clock.now() - session.proved_at)
    with pytest.raises(StepUpRequired):
        step_up.require(person.database, stale)
    until = await step_up.reauthenticate(person.database, person.keyring, stale, user, password=PASSWORD)
    assert abs(until - person.database.clock.now() - step_up.RECENT) < timedelta(seconds=5)
    session, _ = await sessions.authenticate(person.database, person.keyring, signed_in.token)
    step_up.require(person.database, person.actor(signed_in, ago=person.database.clock.now() - session.proved_at))


async def test_it_takes_the_second_factor_too(person: Person) -> None:
    signed_in = await person.enter()
    app = await person.enrol(signed_in)
    actor, user = person.actor(signed_in), person.user
    with pytest.raises(SecondFactorRequired):
        await step_up.reauthenticate(person.database, person.keyring, actor, user, password=PASSWORD)
    with pytest.raises(WrongCode):
        await step_up.reauthenticate(
            person.database, person.keyring, actor, user, password=PASSWORD, code=app.wrong_codes(1)[0]
        )
    with pytest.raises(Forbidden):
        await step_up.reauthenticate(
            person.database, person.keyring, actor, user, password="a wrong one", code=app.next_code()
        )
    await step_up.reauthenticate(person.database, person.keyring, actor, user, password=PASSWORD, code=app.code())


async def test_guessing_with_a_stolen_session_throttles_that_session_only(person: Person) -> None:
    stolen, own = await person.enter(), await person.enter()
    for _ in range(4):
        with pytest.raises(Forbidden) as wrong:
            await step_up.reauthenticate(
                person.database, person.keyring, person.actor(stolen), person.user, password="a guess"
            )
        assert wrong.value.fields == {"password": "is not right"}
    with pytest.raises(Forbidden):
        await credentials.change(
            person.database, person.keyring, person.settings, person.actor(stolen), person.user, current="x", new="y"
        )
    with pytest.raises(Throttled) as refused:
        await step_up.reauthenticate(
            person.database, person.keyring, person.actor(stolen), person.user, password=PASSWORD
        )
    assert refused.value.retry_after_s
    await step_up.reauthenticate(person.database, person.keyring, person.actor(own), person.user, password=PASSWORD)
    log = await person.database.audit_logs.find({"action": "accounts.password.refused"})
    assert {entry.user_id for entry in log} == {person.user.id}


async def test_exchanging_a_token_makes_no_second_known_device(person: Person) -> None:
    signed_in = await person.enter()
    later = await sessions.refresh(
        person.database, person.keyring, person.settings, person.actor(signed_in), person.user
    )
    again = await sessions.refresh(person.database, person.keyring, person.settings, person.actor(later), person.user)
    assert signed_in.device == later.device == again.device
    assert (await person.enter()).device != signed_in.device


async def test_a_session_that_ended_meanwhile_cannot_step_up(person: Person) -> None:
    signed_in = await person.enter()
    stale = await person.database.users.get(person.user.id)
    await credentials.change(
        person.database,
        person.keyring,
        person.settings,
        person.actor(),
        stale,
        current=PASSWORD,
        new="another long pass",
    )
    with pytest.raises(SessionExpired):
        await step_up.reauthenticate(person.database, person.keyring, person.actor(signed_in), stale, password=PASSWORD)


async def test_password_and_address_change_only_with_a_recent_sign_in(person: Person) -> None:
    stale = person.actor(ago=timedelta(minutes=11))
    with pytest.raises(StepUpRequired):
        await credentials.change(
            person.database,
            person.keyring,
            person.settings,
            stale,
            person.user,
            current=PASSWORD,
            new="another long pass",
        )
    with pytest.raises(StepUpRequired):
        await email_change.request(person.database, person.keyring, stale, person.user, email="new@example.com")
