"""Passwords that are easy to guess are refused, with a word of advice, wherever one is chosen."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from ximler.accounts import administration, breaches, credentials, registration, strength
from ximler.accounts.keyring import Keyring
from ximler.accounts.strength import WeakPassword
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

OWN = ("Ada Lovelace", "ada.byron@analytical.example")


@pytest.mark.parametrize(
    "password",
    [
        "password1234", "1234567890", "qwertyuiop", "aaaaaaaaaaaa", "iloveyou123", "P@ssw0rd123", "abcdefghij",
        "AdaLovelace12", "lovelace2026", "adabyronanalytical", "ximler2026!", "XimlerXimler", "Analytical1!",
    ],
)  # fmt: skip
async def test_common_passwords_are_rejected(keyring: Keyring, password: str) -> None:
    with pytest.raises(WeakPassword) as refused:
        await strength.check(keyring, password, field="new", own=OWN)
    assert refused.value.code == "WEAK_PASSWORD"
    assert refused.value.fields.keys() == {"new"}
    assert refused.value.message.startswith("new: is ")


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery",
        "Tr0ub4dor&3xyz",
        "lovelace correct horse",
        "größe über alles",
        "蝶々が花に止まる静かな朝だ",
    ],
)
async def test_passwords_that_are_hard_to_guess_pass(keyring: Keyring, password: str) -> None:
    await strength.check(keyring, password, own=OWN)


async def test_a_rejection_of_a_weak_password_has_advice(keyring: Keyring) -> None:
    with pytest.raises(WeakPassword, match=r"is too easy to guess\. This is a very common password\. Add another word"):
        await strength.check(keyring, "password1234")
    with pytest.raises(WeakPassword, match="unrelated words"):
        await strength.check(keyring, "lovelace2026", own=OWN)


async def test_every_way_to_choose_a_password_asks_for_a_strong_one(
    database: Database, keyring: Keyring, settings: Settings, ada: User
) -> None:
    actor = Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())
    token = keyring.sign("reset", ada.id)
    expires = database.clock.now() + credentials._VALIDITY
    stored = {"passwordResetToken": credentials._stored(token), "passwordResetExpires": expires}
    await database.users.patch({"_id": ada.id}, {"$set": stored})
    ways = {
        "register": lambda: registration.register(
            database, keyring, Actor(), name="Eve", email="eve@example.com", password="password1234"
        ),
        "create": lambda: administration.create(
            database, keyring, SYSTEM, name="Eve", email="eve@example.com", password="password1234"
        ),
        "change": lambda: credentials.change(
            database, keyring, settings, actor, ada, current="correct horse battery", new="password1234"
        ),
        "reset": lambda: credentials.reset(database, keyring, Actor(), token=token, password="password1234"),
    }
    for name, way in ways.items():
        with pytest.raises(WeakPassword):
            await way()
        assert (await database.users.get(ada.id)).password == ada.password, name
    assert await database.raw["users"].count_documents({}) == 1
    assert await database.raw["registrations"].count_documents({}) == 0


async def test_a_password_that_was_chosen_under_other_rules_still_signs_in(
    database: Database, keyring: Keyring, settings: Settings, ada: User
) -> None:
    from ximler.accounts import sessions

    old = await keyring.hash_password("password1234")
    await database.users.patch({"_id": ada.id}, {"$set": {"password": old}})
    await sessions.sign_in(database, keyring, settings, Actor(), email=ada.email, password="password1234")


L33T = "4@8({[<3691!|7$5+0%2"


@pytest.mark.parametrize(
    "password",
    [
        "('1!|7(<{[4@$5+69" * 5,
        "1!|7(<{[4@$5+69" * 70,
        "|1!7+" * 200,
        "".join(random.Random(1).choices(L33T, k=1000)),
        "".join(random.Random(2).choices(L33T + "aeiost ", k=1000)),
        "a" * 1000,
        "ab" * 500,
        "lkjsdf8273h fkjsdhf8w7yr" * 40,
        "蝶々が花に止まる" * 125,
        "19921992" * 125,
    ],
)
def test_no_password_takes_longer_to_estimate_than_to_hash(password: str) -> None:
    words = strength._words([f"{'Ada Lovelace ' * 7}", f"{'ada.' * 15}@{'analytical.' * 20}example"])
    strength._problem("a first look", words)
    costs = []
    for _ in range(3):
        began = time.process_time()
        strength._problem(password, words)
        costs.append(time.process_time() - began)
    assert min(costs) < 0.1  # 3.6 s in version 4.5 of Python's zxcvbn


def test_symbols_that_no_substitution_is_tried_for_count_as_symbols() -> None:
    assert strength._problem("('1!|7(<{[4@$5+69", []) is None
    assert strength._bounded("p4$5w0rd!") == "p4$5w0rd!"
    assert strength._bounded("a1!|7+4@8$") == "a1!|7+4~^&"
    assert strength._problem("1234567890", []) is not None


class Service:
    """A breach service on its own port that records its requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = ""
        self.status = 200
        self.url = ""
        self.silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        if self.silent:
            await reader.read()  # until the client gives up
            writer.close()
            return
        body = self.answer.encode()
        writer.write(
            f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/range/"
    yield service
    server.close()
    await server.wait_closed()


def looking_up(settings: Settings, url: str) -> Keyring:
    return Keyring(msgspec.structs.replace(settings, breach_lookup_url=url))


async def test_a_breached_password_is_refused_and_five_digits_of_its_hash_are_all_that_is_sent(
    settings: Settings, service: Service
) -> None:
    keyring = looking_up(settings, service.url)
    digest = hashlib.sha1(b"correct horse battery").hexdigest().upper()
    service.answer = f"{'0' * 35}:3\r\n{digest[5:]}:42\r\n"
    with pytest.raises(WeakPassword, match="breach"):
        await strength.check(keyring, "correct horse battery")
    assert f"GET /range/{digest[:5]} " in service.asked[0]
    assert "add-padding: true" in service.asked[0].lower()
    assert digest[5:10] not in service.asked[0]
    service.answer = f"{digest[5:]}:0\r\n"  # padding
    await strength.check(keyring, "correct horse battery")
    keyring.close()


@pytest.mark.parametrize("failure", ["error", "closed", "not a URL"])
async def test_a_failed_breach_look_up_accepts_the_password(settings: Settings, service: Service, failure: str) -> None:
    service.status = 503
    url = {"error": service.url, "closed": "http://127.0.0.1:9/", "not a URL": "http://[x"}[failure]
    keyring = looking_up(settings, url)
    await strength.check(keyring, "correct horse battery")
    keyring.close()


async def test_a_slow_breach_look_up_is_bounded_and_does_not_block_the_loop(
    settings: Settings, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaches, "_TIMEOUT_S", 0.3)
    service.answer = f"{'0' * 35}:3"
    service.silent = True
    began = time.process_time()
    keyring = looking_up(settings, service.url)
    assert time.process_time() - began < 0.05  # the client is created in its own thread
    checks = [strength.check(keyring, f"correct horse battery {number}") for number in range(12)]
    slowest = 0.0
    checking = asyncio.gather(*checks)
    while not checking.done():
        turn = time.perf_counter()
        await asyncio.sleep(0.01)
        slowest = max(slowest, time.perf_counter() - turn)
    await checking
    assert slowest < 0.25
    keyring.close()


async def test_one_client_serves_all_look_ups(settings: Settings, service: Service) -> None:
    keyring = looking_up(settings, service.url)
    assert keyring.breaches is not None
    client = await asyncio.wrap_future(keyring.breaches._client)
    for number in range(3):
        await strength.check(keyring, f"correct horse battery {number}")
    assert len(service.asked) == 3
    assert not client.is_closed
    keyring.close()
    async with asyncio.timeout(10):
        while not client.is_closed:  # noqa: ASYNC110 (closed in another thread)
            await asyncio.sleep(0.01)


async def test_nothing_is_looked_up_unless_it_is_asked_for(keyring: Keyring, service: Service) -> None:
    await strength.check(keyring, "correct horse battery")
    assert service.asked == []
