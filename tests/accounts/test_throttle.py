"""Whoever tries too often waits, in every process; and nobody can lock somebody else's devices out."""

import asyncio
from typing import Any

import msgspec
import pytest
from bson import ObjectId

from ximler.accounts import attempts, credentials, registration, sessions, throttle
from ximler.accounts.keyring import Keyring
from ximler.accounts.sessions import BadCredentials, SignedIn
from ximler.accounts.throttle import Throttled
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.schema.throttle import THROTTLES
from ximler.schema.user import User

PASSWORD = "correct horse battery"
HOME = Actor(address="192.0.2.7", user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Firefox/128.0")
ELSEWHERE = Actor(address="198.51.100.1", user_agent="curl/8.9")


@pytest.fixture
def enter(database: Database, keyring: Keyring, settings: Settings) -> Any:
    async def enter(
        password: str = PASSWORD, *, by: Actor = ELSEWHERE, email: str = "ada@example.com", device: str | None = None
    ) -> SignedIn:
        return await sessions.sign_in(database, keyring, settings, by, email=email, password=password, device=device)

    return enter


async def outcomes(tries: list[Any]) -> dict[str, int]:
    """How often each ending came, all at once."""
    ends = await asyncio.gather(*tries, return_exceptions=True)
    names = [type(end).__name__ for end in ends]
    return {name: names.count(name) for name in names}


@pytest.fixture
def exhaust(database: Database, enter: Any) -> Any:
    async def exhaust(email: str = "ada@example.com") -> Throttled:
        """An attack from many addresses, until the account makes everybody wait a minute or more."""
        for n in range(100):
            with pytest.raises((BadCredentials, Throttled)) as ended:
                await enter("a wrong guess", by=Actor(address=f"203.0.113.{n}"), email=email)
            if isinstance(ended.value, Throttled):
                assert ended.value.retry_after_s is not None
                if ended.value.retry_after_s > 60:
                    return ended.value
                database.clock.offset_ms += int(ended.value.retry_after_s * 1000) + 1
        raise AssertionError("never throttled")

    return exhaust


async def test_after_five_wrong_passwords_even_the_right_one_is_throttled_with_a_delay(ada: User, enter: Any) -> None:
    for _ in range(5):
        with pytest.raises(BadCredentials):
            await enter("a wrong guess")
    with pytest.raises(Throttled) as refused:
        await enter()
    assert refused.value.code == "TOO_MANY_ATTEMPTS"
    assert refused.value.retry_after_s == 2
    assert refused.value.message == "Too many attempts: try again in 2 seconds"


@pytest.mark.slow
async def test_each_further_failure_doubles_the_wait_up_to_a_quarter_of_an_hour(
    database: Database, ada: User, enter: Any
) -> None:
    waits: list[float] = []
    while len(waits) < 11:
        with pytest.raises((BadCredentials, Throttled)) as ended:
            await enter("a wrong guess")
        if isinstance(ended.value, Throttled):
            assert ended.value.retry_after_s is not None
            waits.append(ended.value.retry_after_s)
            database.clock.offset_ms += int(ended.value.retry_after_s * 1000) + 1
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    signed_in = await enter()
    assert signed_in.user.id == ada.id


async def test_the_right_password_makes_the_owners_own_slips_forgotten(
    database: Database, ada: User, enter: Any
) -> None:
    for _ in range(3):
        for _ in range(4):
            with pytest.raises(BadCredentials):
                await enter("a slip of the finger")
        await enter()


@pytest.mark.slow
async def test_an_account_that_is_not_there_makes_wait_all_the_same(ada: User, enter: Any, exhaust: Any) -> None:
    known, unknown = await exhaust(), await exhaust(email="nobody@example.com")
    assert (known.message, known.retry_after_s) == (unknown.message, unknown.retry_after_s)


@pytest.mark.slow
async def test_one_address_that_tries_many_accounts_waits(database: Database, ada: User, enter: Any) -> None:
    for n in range(50):
        with pytest.raises(BadCredentials):
            await enter("Summer2026!", email=f"person{n}@example.com")
    with pytest.raises(Throttled):
        await enter("Summer2026!", email="one.more@example.com")
    assert await enter(by=HOME)  # from elsewhere the account is as open as ever


@pytest.mark.slow
async def test_all_addresses_of_an_ipv6_customer_count_as_one(ada: User, enter: Any) -> None:
    for n in range(50):
        with pytest.raises(BadCredentials):
            await enter("Summer2026!", email=f"p{n}@example.com", by=Actor(address=f"2001:db8:1:2::{n:x}"))
    with pytest.raises(Throttled):
        await enter("Summer2026!", email="one.more@example.com", by=Actor(address="2001:db8:1:2:ffff::1"))
    with pytest.raises(BadCredentials):
        await enter("Summer2026!", email="one.more@example.com", by=Actor(address="2001:db8:1:3::1"))


@pytest.mark.slow
async def test_a_burst_makes_no_more_guesses_than_the_budget_and_those_under_way(
    database: Database, settings: Settings, mongodb_uri: str, ada: User
) -> None:
    """Two processes, 60 guesses each, all at once:
    what passes is the budget, and the other turns under way."""
    other = await connect(mongodb_uri, name=database.name)
    rings = [Keyring(settings), Keyring(settings)]
    tries = [
        sessions.sign_in(
            where, ring, settings, Actor(address=f"203.0.113.{n}"), email="ada@example.com", password=f"guess {n}"
        )
        for n in range(60)
        for where, ring in ((database, rings[0]), (other, rings[1]))
    ]
    ends = await outcomes(tries)
    assert 5 <= ends["BadCredentials"] <= 5 + 2 * settings.argon2_threads * len(rings) - 1
    assert ends["Throttled"] == 120 - ends["BadCredentials"]
    for ring in rings:
        ring.close()
    await other.close()


@pytest.mark.slow
async def test_during_an_attack_a_device_that_shows_its_token_gets_in(ada: User, enter: Any, exhaust: Any) -> None:
    device = (await enter(by=HOME)).device
    await exhaust()
    with pytest.raises(Throttled):
        await enter()
    assert (await enter(by=ELSEWHERE, device=device)).user.id == ada.id


@pytest.mark.slow
async def test_during_an_attack_a_browser_that_is_signed_in_gets_in_from_its_address(
    ada: User, enter: Any, exhaust: Any
) -> None:
    await enter(by=HOME)
    await exhaust()
    updated = msgspec.structs.replace(HOME, user_agent=(HOME.user_agent or "").replace("128", "129"))
    assert (await enter(by=updated)).user.id == ada.id
    with pytest.raises(Throttled):
        await enter(by=msgspec.structs.replace(HOME, user_agent="curl/8.9"))
    with pytest.raises(Throttled):
        await enter(by=msgspec.structs.replace(HOME, address="198.51.100.9"))


async def test_a_known_device_has_a_budget_of_its_own(ada: User, enter: Any) -> None:
    """A stolen laptop's token buys ten guesses, not any number."""
    device = (await enter()).device
    for _ in range(10):
        with pytest.raises(BadCredentials):
            await enter("a wrong guess", device=device)
    with pytest.raises(Throttled):
        await enter(device=device)
    assert await enter(by=HOME)  # and has not slowed the owner down


@pytest.mark.slow
async def test_a_device_is_known_to_one_account_only_and_for_half_a_year(
    database: Database, keyring: Keyring, ada: User, enter: Any, exhaust: Any
) -> None:
    signed_in = await enter(by=HOME)
    somebody_elses = msgspec.structs.replace(signed_in.session, user_id=ObjectId())
    mine, theirs = signed_in.device, attempts.remember(keyring, somebody_elses, ada.password)
    await exhaust()
    for wrong in (theirs, mine[:-1] + "_", mine[:20], "x" * 59, "", "\ud800" * 59, "ü" * 59):
        with pytest.raises(Throttled):
            await enter(device=wrong)
    assert await enter(device=mine)
    database.clock.offset_ms = 181 * 24 * 3600 * 1000
    await exhaust()
    with pytest.raises(Throttled):
        await enter(device=mine)


@pytest.mark.slow
async def test_a_reset_lets_the_owner_in_during_an_attack(
    database: Database, keyring: Keyring, ada: User, enter: Any, exhaust: Any
) -> None:
    await exhaust()
    await credentials.request_reset(database, keyring, HOME, email="ada@example.com")
    job = await database.raw["outbox"].find_one({"kind": credentials.send_reset.name})
    assert job is not None
    token = keyring.sign("reset", job["_id"])
    stored = {"passwordResetToken": credentials._stored(token), "passwordResetExpires": database.clock.now()}
    stored["passwordResetExpires"] += credentials._VALIDITY
    await database.users.patch({"_id": ada.id}, {"$set": stored})
    await credentials.reset(database, keyring, Actor(), token=token, password="a bridge over sighs")
    assert await enter("a bridge over sighs", by=HOME)


@pytest.mark.slow
async def test_registrations_of_one_mailbox_and_from_one_address_are_bounded_under_races(
    database: Database, keyring: Keyring
) -> None:
    async def register(n: int, email: str, address: str) -> None:
        await registration.register(database, keyring, Actor(address=address), name="M", email=email, password=PASSWORD)

    one_mailbox = await outcomes([register(n, "victim@example.com", f"203.0.113.{n}") for n in range(12)])
    assert one_mailbox == {"NoneType": 5, "Throttled": 7}
    one_address = await outcomes([register(n, f"p{n}@example.com", "198.51.100.1") for n in range(40)])
    assert one_address == {"NoneType": 30, "Throttled": 10}


async def test_reset_links_per_mailbox_are_limited_and_refused_requests_do_not_prolong_the_wait(
    database: Database, keyring: Keyring
) -> None:
    async def ask() -> None:
        await credentials.request_reset(database, keyring, HOME, email="victim@example.com")

    assert await outcomes([ask() for _ in range(12)]) == {"NoneType": 5, "Throttled": 7}
    with pytest.raises(Throttled) as refused:
        await ask()
    assert refused.value.retry_after_s is not None
    assert 58 <= refused.value.retry_after_s <= 60
    database.clock.offset_ms = 61_000
    await ask()
    with pytest.raises(Throttled) as again:
        await ask()
    assert again.value.retry_after_s == 120
    assert again.value.message.endswith("2 minutes")
    assert await database.raw["outbox"].count_documents({}) == 6


async def test_stored_counters_contain_no_personal_data(ada: User, enter: Any, database: Database) -> None:
    with pytest.raises(BadCredentials):
        await enter("a wrong guess")
    rows = await database.raw["throttles"].find({}).to_list()
    assert len(rows) == 3  # of the account, the address, and the network around it
    assert "ada" not in str(rows)
    assert "198.51" not in str(rows)


async def test_an_expired_window_starts_again(database: Database, keyring: Keyring) -> None:
    rule = throttle.Rule(name="t", free=2, window=throttle.timedelta(minutes=1))
    at = throttle.key(keyring, rule, "subject")
    for _ in range(3):
        await throttle.spend(database, [at])
        await throttle.spend(database, [at])
        with pytest.raises(Throttled):
            await throttle.spend(database, [at])
        database.clock.offset_ms += 61_000


async def test_a_throttled_caller_does_not_use_up_the_budget_of_mailboxes(database: Database, keyring: Keyring) -> None:
    attacker = Actor(address="198.51.100.7")
    for n in range(20):
        await credentials.request_reset(database, keyring, attacker, email=f"p{n}@example.com")
    counted = await database[THROTTLES].count({})
    for n in range(10):
        with pytest.raises(Throttled):
            await credentials.request_reset(database, keyring, attacker, email=f"q{n}@example.com")
    assert await database[THROTTLES].count({}) == counted


@pytest.mark.slow
async def test_a_device_is_forgotten_with_the_password_it_knew(
    database: Database, keyring: Keyring, ada: User, enter: Any, exhaust: Any
) -> None:
    device = (await enter(by=HOME)).device
    changed = await keyring.hash_password("another long password")
    await database.users.patch({"_id": ada.id}, {"$set": {"password": changed}})
    await exhaust()
    with pytest.raises(Throttled):
        await enter("another long password", device=device)


@pytest.mark.slow
async def test_an_account_knows_ten_devices_and_scripts_displace_no_browser(
    ada: User, enter: Any, exhaust: Any
) -> None:
    browsers = [(await enter(by=HOME)).device for _ in range(5)]
    for known in browsers:
        assert (await enter(by=HOME, device=known)).device == known
    first, *others = [(await enter(by=HOME)).device for _ in range(6)]  # a script that does not keep its token
    others = browsers + others
    await exhaust()
    with pytest.raises(Throttled):
        await enter(device=first)
    for known in others:
        assert (await enter(device=known)).device == known
