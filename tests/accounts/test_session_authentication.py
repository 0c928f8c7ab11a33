"""Sessions over time: known without asking, extended by use, exchanged,
and ended by whoever shows a token twice."""

import asyncio
from datetime import timedelta

import pytest
from tests.database.following import running, until

from ximler.accounts import sessions
from ximler.accounts.account_status import AccountLocked
from ximler.accounts.session_authentication import SessionAuthenticator, SessionExpired
from ximler.core.actor import Actor
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.schema.session import SESSIONS

PASSWORD = "correct horse battery"
ANYBODY = Actor(address="192.0.2.7", user_agent="a browser")


@pytest.fixture
async def authenticator(database, keyring, settings):
    feed = Feed(database)
    authenticator = SessionAuthenticator(database, keyring, settings, feed)
    async with running(feed):
        await until(lambda: feed.fresh)
        yield authenticator
    database.feed = None


@pytest.fixture
def enter(database, keyring, settings, ada):
    async def enter():
        return await sessions.sign_in(database, keyring, settings, ANYBODY, email="ada@example.com", password=PASSWORD)

    return enter


def acting(signed_in):
    return Actor(
        kind="user", via="session", user_id=signed_in.user.id, session_id=signed_in.session.id, address="192.0.2.7"
    )


async def refresh(database, keyring, settings, signed_in):
    return await sessions.refresh(database, keyring, settings, acting(signed_in), signed_in.user)


async def is_over(authenticator, token):
    try:
        await authenticator.authenticate(token, ANYBODY)
    except SessionExpired:
        return True
    return False


async def travel(database, **delta):
    database.clock.offset_ms += int(timedelta(**delta).total_seconds() * 1000)
    await database.feed.caught_up()


async def test_a_session_costs_one_round_trip_and_then_none(database, ada, enter, authenticator):
    token = (await enter()).token
    await database.feed.caught_up()
    with round_trips() as trips:
        found = await authenticator.authenticate(token, ANYBODY)
    assert trips == [("aggregate", "sessions")]
    assert (found.account.user.id, found.account.operator) == (ada.id, False)
    with round_trips() as trips:
        for _ in range(100):
            await authenticator.authenticate(token, ANYBODY)
    assert trips == []


@pytest.mark.slow
async def test_the_end_of_a_session_is_noticed_whatever_its_cause(database, ada, enter, authenticator):
    for end in (
        lambda _: database.raw.sessions.delete_many({"userId": ada.id}),
        lambda _: database.transaction(lambda transaction: sessions.revoke_all(transaction, ada.id)),
        lambda signed_in: sessions.sign_out(database, acting(signed_in)),
        lambda signed_in: sessions.revoke(database, acting(signed_in), signed_in.session.public_id),
    ):
        signed_in = await enter()
        await database.feed.caught_up()
        assert not await is_over(authenticator, signed_in.token)
        await end(signed_in)
        await database.feed.caught_up()
        assert await is_over(authenticator, signed_in.token)


@pytest.mark.slow
async def test_ending_a_session_takes_effect_with_the_next_request(database, ada, enter, authenticator):
    signed_in, other = await enter(), await enter()
    await database.feed.caught_up()
    assert not await is_over(authenticator, signed_in.token)
    assert not await is_over(authenticator, other.token)
    await sessions.revoke_others(database, acting(signed_in))
    assert await is_over(authenticator, other.token)
    await sessions.sign_out(database, acting(signed_in))
    assert await is_over(authenticator, signed_in.token)


@pytest.mark.slow
async def test_a_lock_and_a_role_take_effect_at_once(database, ada, enter, authenticator):
    token = (await enter()).token
    await database.feed.caught_up()
    assert not (await authenticator.authenticate(token, ANYBODY)).account.operator
    await database.raw.credentials.update_one({"_id": ada.id}, {"$set": {"role": "operator"}})
    await database.feed.caught_up()
    assert (await authenticator.authenticate(token, ANYBODY)).account.operator
    await database.raw.credentials.update_one({"_id": ada.id}, {"$set": {"lockedAt": database.clock.now()}})
    await database.feed.caught_up()
    with pytest.raises(AccountLocked):
        await authenticator.authenticate(token, ANYBODY)


@pytest.mark.slow
async def test_use_extends_a_session_to_its_end_and_no_further(database, settings, enter, authenticator):
    signed_in = await enter()
    ends = signed_in.session.created_at + timedelta(days=settings.session_max_days)
    for _ in range(4):
        await travel(database, days=20)
        await authenticator.authenticate(signed_in.token, ANYBODY)
        await authenticator.extend()
    await database.feed.caught_up()
    stored = await database[SESSIONS].get(signed_in.session.id)
    assert abs(stored.expires_at - ends) < timedelta(seconds=1)
    await travel(database, days=11)
    assert await is_over(authenticator, signed_in.token)


async def test_a_session_that_is_not_used_ends(database, enter, authenticator):
    token = (await enter()).token
    await travel(database, days=31)
    assert await is_over(authenticator, token)


@pytest.mark.slow
async def test_use_is_written_down_once_an_hour(database, enter, authenticator):
    token = (await enter()).token
    await travel(database, minutes=59)
    await authenticator.authenticate(token, ANYBODY)
    with round_trips() as trips:
        await authenticator.extend()
    assert trips == []
    await travel(database, minutes=2)
    for _ in range(20):
        await authenticator.authenticate(token, ANYBODY)
    with round_trips() as trips:
        await authenticator.extend()
        await authenticator.extend()
    assert trips == [("update", "sessions")]


async def test_extending_does_not_revive_ended_sessions(database, ada, enter, authenticator):
    signed_in = await enter()
    await travel(database, days=1)
    await authenticator.authenticate(signed_in.token, ANYBODY)  # its use waits to be written down
    await database.transaction(lambda transaction: sessions.revoke_all(transaction, ada.id))
    await authenticator.extend()
    assert await database[SESSIONS].count({}) == 0


async def test_an_exchange_keeps_the_sign_in_and_its_end(database, keyring, settings, enter, authenticator):
    first = await enter()
    await travel(database, days=10)
    fresh = await refresh(database, keyring, settings, first)
    assert fresh.token != first.token
    assert fresh.session.created_at == first.session.created_at
    assert fresh.session.ends_at == first.session.ends_at
    assert fresh.session.proved_at == first.session.proved_at  # an exchange proves nothing
    assert fresh.session.expires_at > first.session.expires_at
    assert not await is_over(authenticator, fresh.token)
    assert await is_over(authenticator, first.token)
    assert [session.id for session in await sessions.mine(database, acting(fresh))] == [fresh.session.id]


@pytest.mark.slow
async def test_reuse_of_an_exchanged_token_ends_only_its_sign_in(database, keyring, settings, enter, authenticator):
    other, first = await enter(), await enter()
    second = await refresh(database, keyring, settings, first)
    third = await refresh(database, keyring, settings, second)
    assert await is_over(authenticator, first.token)  # too soon to be a theft: it was on its way
    assert not await is_over(authenticator, third.token)
    await travel(database, seconds=11)
    assert await is_over(authenticator, first.token)
    assert await is_over(authenticator, third.token)
    assert await is_over(authenticator, second.token)
    assert not await is_over(authenticator, other.token)
    (entry,) = await database.raw.auditlogs.find({"action": "accounts.session.reused"}).to_list()
    assert entry["userId"] == first.user.id


async def test_of_racing_exchanges_one_succeeds(database, keyring, settings, enter, authenticator):
    first = await enter()
    results = await asyncio.gather(
        *(refresh(database, keyring, settings, first) for _ in range(8)), return_exceptions=True
    )
    won = [result for result in results if isinstance(result, sessions.SignedIn)]
    assert len(won) == 1
    assert {type(result) for result in results} == {sessions.SignedIn, SessionExpired}
    assert not await is_over(authenticator, won[0].token)


@pytest.mark.slow
async def test_an_exchange_under_way_revives_no_session_that_is_revoked(database, keyring, settings, ada, enter):
    """Whoever wins: after the revocation has returned, nothing of the sign-in opens anything."""
    for _ in range(25):
        first = await enter()
        await asyncio.gather(
            refresh(database, keyring, settings, first),
            database.transaction(lambda transaction: sessions.revoke_all(transaction, ada.id)),
            return_exceptions=True,
        )
        assert await database[SESSIONS].count({"userId": ada.id}) == 0


async def test_a_frozen_session_authenticator_queries_the_database(database, ada, enter, keyring, settings):
    feed = Feed(database)
    authenticator = SessionAuthenticator(database, keyring, settings, feed)
    token = (await enter()).token
    async with running(feed):
        await until(lambda: feed.fresh)
        assert not await is_over(authenticator, token)
    await database.raw.sessions.delete_many({})  # nobody tells us
    assert await is_over(authenticator, token)
    database.feed = None
