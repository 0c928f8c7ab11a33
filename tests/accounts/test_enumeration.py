"""Whether an address has an account cannot be told: not by the answer, and not by its time."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import argon2
import pytest
from tests.deleting import soft_delete

from ximler.accounts import credentials, registration, sessions
from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import Throttled
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

pytestmark = pytest.mark.slow

BCRYPT = "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"


async def medians(
    database: Database, tries: int, attempts: dict[str, Callable[[], Awaitable[object]]]
) -> dict[str, float]:
    """The median time of each attempt.

    They take turns, so that a busy moment of the machine meets all alike. After 40 of each, medians within a
    fifth of one another are enough: the kinds of attempt that these tests tell apart differ by factors.
    """
    times: dict[str, list[float]] = {name: [] for name in attempts}
    for attempt in attempts.values():
        await attempt()  # the first of each also makes what later ones find
    taken: dict[str, float] = {}
    for done in range(1, tries + 1):
        await database.raw["throttles"].update_many({}, {"$set": {"count": 0}, "$unset": {"blockedUntil": ""}})
        for name, attempt in attempts.items():
            began = time.perf_counter()
            await attempt()
            times[name].append(time.perf_counter() - began)
        taken = {name: statistics.median(each) for name, each in times.items()}
        if done >= 40 and max(taken.values()) < 1.2 * min(taken.values()):
            break
    return taken


@pytest.fixture
def refuse(database: Database, keyring: Keyring, settings: Settings) -> Callable[[str], Callable[[], Awaitable[None]]]:
    """`refuse(email)`: an attempt to sign in with that address that fails."""

    def refuse(email: str) -> Callable[[], Awaitable[None]]:
        async def attempt() -> None:
            with pytest.raises(sessions.BadCredentials):
                await sessions.sign_in(database, keyring, settings, Actor(), email=email, password="not the right one")

        return attempt

    return refuse


async def test_signing_in_takes_as_long_for_an_unknown_address(
    database: Database, ada: User, refuse: Callable[[str], Callable[[], Awaitable[None]]]
) -> None:
    taken = await medians(
        database, 200, {"somebody": refuse("ada@example.com"), "nobody": refuse("nobody@example.com")}
    )
    # Without a hash to compute, an unknown address would take at most a tenth of the time.
    assert 0.67 < taken["nobody"] / taken["somebody"] < 1.5


async def test_accounts_that_cannot_sign_in_take_as_long_as_those_that_can(
    database: Database, ada: User, refuse: Callable[[str], Callable[[], Awaitable[None]]]
) -> None:
    gone = await database.users.insert(User(name="G", email="gone@example.com", password=ada.password))
    await soft_delete(database.users, {"_id": gone.id})
    await database.users.insert(User(name="B", email="theirs@example.com", password=BCRYPT))
    cheap = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("correct horse battery")
    await database.users.insert(User(name="E", email="earlier@example.com", password=cheap))
    taken = await medians(
        database,
        40,
        {
            "a hash of cheaper settings": refuse("earlier@example.com"),
            "wrong password": refuse("ada@example.com"),
            "no address": refuse("nothing of the kind"),
            "deleted account": refuse("gone@example.com"),
            "another application's hash": refuse("theirs@example.com"),
        },
    )
    expected = taken["wrong password"]
    assert {name: t / expected for name, t in taken.items() if not 0.6 < t / expected < 1.67} == {}


async def test_registering_has_the_same_answer_and_timing_for_every_address(
    database: Database, keyring: Keyring, settings: Settings, ada: User
) -> None:
    await registration.register(
        database, keyring, Actor(), name="W", email="waiting@example.com", password="correct horse battery"
    )
    fresh = iter(range(10_000))

    def attempt(email: Callable[[], str]) -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            said = await registration.register(
                database, keyring, Actor(), name="M", email=email(), password="correct horse battery"
            )
            assert said is None

        return run

    unknown, known = attempt(lambda: f"new{next(fresh)}@example.com"), attempt(lambda: "ada@example.com")
    taken = await medians(database, 200, {"new": unknown, "known": known})
    assert 0.67 < taken["known"] / taken["new"] < 1.5
    waiting = attempt(lambda: "waiting@example.com")
    taken = await medians(database, 30, {"new": unknown, "waiting": waiting})
    assert 0.6 < taken["waiting"] / taken["new"] < 1.67


async def test_a_reset_request_has_the_same_answer_and_timing_for_every_address(
    database: Database, keyring: Keyring, ada: User
) -> None:
    def attempt(email: str) -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            said = await credentials.request_reset(database, keyring, Actor(address="192.0.2.7"), email=email)
            assert said is None

        return run

    taken = await medians(
        database, 200, {"known": attempt("ada@example.com"), "unknown": attempt("nobody@example.com")}
    )
    assert 0.67 < taken["unknown"] / taken["known"] < 1.5


async def test_an_attack_on_an_unknown_address_is_throttled_alike(
    database: Database, keyring: Keyring, settings: Settings, ada: User
) -> None:
    def attempt(email: str) -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            await database.raw["throttles"].update_many({}, {"$set": {"count": 9, "blockedUntil": soon}})
            with pytest.raises(Throttled) as refused:
                await sessions.sign_in(database, keyring, settings, Actor(), email=email, password="a wrong guess")
            said.add((refused.value.code, refused.value.message, refused.value.retry_after_s))

        return run

    said: set[object] = set()
    soon = database.clock.now() + timedelta(hours=1)
    for email in ("ada@example.com", "nobody@example.com"):
        with pytest.raises(sessions.BadCredentials):
            await sessions.sign_in(database, keyring, settings, Actor(), email=email, password="a wrong guess")
    taken = await medians(database, 60, {"known": attempt("ada@example.com"), "unknown": attempt("nobody@example.com")})
    assert 0.6 < taken["unknown"] / taken["known"] < 1.67
    assert {code for code, _, _ in said} == {"TOO_MANY_ATTEMPTS"}  # type: ignore[misc]


async def test_ten_concurrent_sign_ins_all_succeed(
    database: Database, keyring: Keyring, settings: Settings, ada: User
) -> None:
    entered = await asyncio.gather(
        *(
            sessions.sign_in(
                database, keyring, settings, Actor(), email="ada@example.com", password="correct horse battery"
            )
            for _ in range(10)
        )
    )
    assert len({signed_in.token for signed_in in entered}) == 10
