"""Authentication by API key: cached, otherwise one read, and never after revocation."""

import asyncio
import time
from datetime import timedelta

import pytest
from tests.database.following import running, until
from tests.deleting import restore, soft_delete

from ximler.accounts.account_status import AccountLocked
from ximler.apikeys import keys, tokens
from ximler.apikeys.verification import AddressRefused, ApiKeyRefused, Verifier
from ximler.core.errors import XimlerError
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.schema.credential import CREDENTIALS, Credential

READ = ["projects:read"]
HOME = "192.0.2.1"


async def make(database, actor, **more):
    return await keys.create(database, actor, **{"name": "ci", "permissions": READ, **more})


async def refused(verifier, secret, *, address=HOME):
    """Why, or None."""
    try:
        await verifier.verify(secret, address=address)
    except XimlerError as error:
        return type(error)
    return None


async def settled(database):
    await database.feed.caught_up()


async def test_an_unknown_key_costs_one_read_and_a_known_one_none(database, actor, ada, verifier):
    made = await make(database, actor)
    await settled(database)
    with round_trips() as trips:
        known = await verifier.verify(made.secret, address=HOME)
    assert trips == [("aggregate", "apikeys")]
    assert (known.user_id, known.scopes, known.account.user.email) == (ada.id, frozenset(READ), "ada@example.com")
    with round_trips() as trips:
        for _ in range(100):
            await verifier.verify(made.secret, address=HOME)
    assert trips == []


async def test_malformed_keys_cost_no_read_and_are_not_cached(database, verifier):
    with round_trips() as trips:
        for n in range(10_000):
            garbage = f"xim_{n:033d}"
            assert await refused(verifier, garbage) is ApiKeyRefused
    assert trips == []
    assert len(verifier._cache) == 0


async def test_a_key_that_was_never_made_is_looked_for_once(database, actor, verifier):
    stranger = tokens.mint()
    with round_trips() as trips:
        for _ in range(10):
            assert await refused(verifier, stranger) is ApiKeyRefused
    assert trips == [("aggregate", "apikeys")]


async def test_a_new_key_works_although_it_was_cached_as_unknown(database, actor, verifier, monkeypatch):
    secret = tokens.mint()
    assert await refused(verifier, secret) is ApiKeyRefused
    monkeypatch.setattr(tokens, "mint", lambda: secret)
    await make(database, actor)
    await settled(database)
    assert await refused(verifier, secret) is None


async def test_a_revoked_key_is_refused_at_once_here(database, actor, verifier):
    made = await make(database, actor)
    await settled(database)
    assert await refused(verifier, made.secret) is None
    await keys.revoke(database, actor, made.key.id)
    assert await refused(verifier, made.secret) is ApiKeyRefused


async def test_keys_expire_without_an_event(database, actor, verifier):
    made = await make(database, actor, expires_at=database.clock.now() + timedelta(hours=1))
    await settled(database)
    assert await refused(verifier, made.secret) is None
    database.clock.offset_ms += 3_600_000
    with round_trips() as trips:
        assert await refused(verifier, made.secret) is ApiKeyRefused
    assert trips == []


async def test_a_rotated_key_works_for_its_grace(database, actor, verifier):
    made = await make(database, actor)
    fresh = await keys.rotate(database, actor, made.key.id, grace=timedelta(hours=1))
    assert await refused(verifier, made.secret) is None
    assert await refused(verifier, fresh.secret) is None
    database.clock.offset_ms += 3_600_000
    assert await refused(verifier, made.secret) is ApiKeyRefused
    assert await refused(verifier, fresh.secret) is None


async def test_a_change_of_permissions_takes_effect(database, actor, verifier):
    made = await make(database, actor, permissions=["projects:read", "projects:write"])
    await settled(database)
    assert (await verifier.verify(made.secret, address=HOME)).scopes == {"projects:read", "projects:write"}
    await database.raw.apikeys.update_one({"_id": made.key.id}, {"$set": {"permissions": READ}})  # by whomever
    await settled(database)
    assert (await verifier.verify(made.secret, address=HOME)).scopes == {"projects:read"}


@pytest.mark.slow
async def test_the_keys_of_a_locked_or_closed_account_open_nothing(database, actor, ada, verifier):
    made = await make(database, actor)
    await settled(database)
    assert await refused(verifier, made.secret) is None
    await database[CREDENTIALS].insert(Credential(id=ada.id, locked_at=database.clock.now()))
    await settled(database)
    assert await refused(verifier, made.secret) is AccountLocked
    await database[CREDENTIALS].patch({"_id": ada.id}, {"$unset": {"lockedAt": ""}})
    await settled(database)
    assert await refused(verifier, made.secret) is None
    await soft_delete(database.users, {"_id": ada.id})
    await settled(database)
    assert await refused(verifier, made.secret) is ApiKeyRefused
    await restore(database.users, {"_id": ada.id})
    await settled(database)
    assert await refused(verifier, made.secret) is None


async def test_a_key_works_only_from_where_it_may(database, actor, verifier):
    made = await make(database, actor, allowed_addresses=["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"])
    for address, why in (
        ("10.1.2.3", None),
        ("::ffff:10.1.2.3", None),
        ("2001:db8::1", None),
        ("192.0.2.7", None),
        ("192.0.2.8", AddressRefused),
        ("::1", AddressRefused),
        (None, AddressRefused),
        ("testclient", AddressRefused),
    ):
        assert await refused(verifier, made.secret, address=address) is why


async def test_invalid_networks_of_another_application_admit_no_address(database, actor, verifier):
    made = await make(database, actor)
    await database.raw.apikeys.update_one({}, {"$set": {"allowedAddresses": ["the office"]}})
    await settled(database)
    assert await refused(verifier, made.secret) is AddressRefused


@pytest.mark.slow
async def test_last_used_is_written_once_a_minute_and_off_the_hot_path(database, actor, verifier):
    made = await make(database, actor)
    await settled(database)
    other = Verifier(database, database.feed)
    with round_trips() as trips:
        for _ in range(50):
            await verifier.verify(made.secret, address=HOME)
            await other.verify(made.secret, address=HOME)
        assert len(trips) == 2  # nothing but the two first reads
        await verifier.write_used()
        await other.write_used()
    first = (await database.api_keys.get(made.key.id)).last_used
    assert first is not None
    await settled(database)
    with round_trips() as trips:
        await verifier.verify(made.secret, address=HOME)  # being used is no change
        await verifier.write_used()
    assert trips == []
    database.clock.offset_ms += 61_000
    await verifier.verify(made.secret, address=HOME)
    await verifier.write_used()
    assert (await database.api_keys.get(made.key.id)).last_used > first + timedelta(minutes=1)


async def test_when_the_stream_is_cut_the_database_is_asked(database, actor):
    feed = Feed(database)
    verifier = Verifier(database, feed)
    made = await make(database, actor)
    async with running(feed):
        await until(lambda: feed.fresh)
        assert await refused(verifier, made.secret) is None
    await database.raw.apikeys.update_one({}, {"$set": {"revokedAt": database.clock.now()}})  # nobody tells us
    assert await refused(verifier, made.secret) is ApiKeyRefused
    database.feed = None


async def test_verifying_a_known_key_takes_microseconds(database, actor, verifier):
    """The figure is the benchmark's; this only finds what is ten times too slow."""
    made = await make(database, actor)
    await settled(database)
    await verifier.verify(made.secret, address=HOME)
    best = min([await _timed(verifier, made.secret) for _ in range(5)])
    assert best < 30e-6


async def _timed(verifier, secret):
    began = time.perf_counter()
    for _ in range(1000):
        await verifier.verify(secret, address=HOME)
    taken = (time.perf_counter() - began) / 1000
    await asyncio.sleep(0.01)
    return taken


@pytest.mark.soak
async def test_ten_thousand_garbage_keys_a_second_for_ten_seconds(database, verifier):
    import tracemalloc

    deadline = time.monotonic() + 10
    sent = 0
    with round_trips() as trips:
        for _ in range(1000):
            await refused(verifier, tokens.mint()[:-1] + "!")
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        while time.monotonic() < deadline or sent < 100_000:
            for n in range(1000):
                assert await refused(verifier, f"xim_{sent + n:033d}") is ApiKeyRefused
            sent += 1000
            await asyncio.sleep(0)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert trips == []
    assert grown < 500_000
    assert len(verifier._cache) == 0
