"""Registering tells nobody anything, and only the mailbox's owner gets the account."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.serving import REGISTER, Client

from ximler.accounts import addresses, registration, sessions
from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import AccountExists
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

PASSWORD = "correct horse battery"
ANYBODY = Actor()


class Door:
    """Registration with this test's database, keys and settings."""

    def __init__(self, database: Database, keyring: Keyring, settings: Settings) -> None:
        self.database, self.keyring, self.settings = database, keyring, settings

    async def register(self, email: str = "ada@example.com", *, name: str = "Ada", password: str = PASSWORD) -> str:
        await registration.register(self.database, self.keyring, Actor(), name=name, email=email, password=password)
        newest = await self.database.raw["registrations"].find_one({}, sort=[("_id", -1)])
        assert newest is not None
        return self.keyring.sign("confirm", newest["_id"])

    async def confirm(self, token: str, password: str = PASSWORD) -> User:
        return await registration.confirm(self.database, self.keyring, ANYBODY, token, password=password)

    async def can_sign_in(self, email: str, password: str) -> bool:
        try:
            await sessions.sign_in(self.database, self.keyring, self.settings, ANYBODY, email=email, password=password)
        except sessions.BadCredentials:
            return False
        return True


@pytest.fixture
def door(database: Database, keyring: Keyring, settings: Settings) -> Door:
    return Door(database, keyring, settings)


async def test_a_registration_becomes_an_account_only_when_it_is_confirmed(door: Door) -> None:
    token = await door.register("Ada@Example.COM", name="  Ada ")
    assert await door.database.users.count({}) == 0
    assert not await door.can_sign_in("ada@example.com", PASSWORD)
    user = await door.confirm(token)
    assert (user.name, user.email, user.email_verified) == ("Ada", "ada@example.com", True)
    assert await door.can_sign_in("ada@example.com", PASSWORD)


async def test_a_link_works_once(door: Door) -> None:
    token = await door.register()
    await door.confirm(token)
    with pytest.raises(Invalid) as refused:
        await door.confirm(token)
    assert refused.value.fields.keys() == {"token"}
    assert await door.database.raw["registrations"].count_documents({}) == 0


async def test_a_link_that_is_opened_ten_times_at_once_makes_one_account(door: Door) -> None:
    token = await door.register()
    ends = await asyncio.gather(*(door.confirm(token) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(end, User) for end in ends) == 1
    assert all(isinstance(end, User | Invalid) for end in ends)
    assert await door.database.users.count({}) == 1


async def test_two_links_for_one_address_opened_at_once_make_one_account(door: Door) -> None:
    tokens = [await door.register() for _ in range(5)]
    ends = await asyncio.gather(*(door.confirm(token) for token in tokens), return_exceptions=True)
    assert sum(isinstance(end, User) for end in ends) == 1
    assert sum(isinstance(end, AccountExists) for end in ends) == 4
    assert await door.database.users.count({}) == 1


async def test_a_link_ends_after_a_day_even_before_the_database_removes_it(door: Door) -> None:
    token = await door.register()
    door.database.clock.offset_ms = int(timedelta(hours=23, minutes=59).total_seconds() * 1000)
    late = await door.register("bob@example.com")
    door.database.clock.offset_ms += 2 * 60_000
    with pytest.raises(Invalid, match="24 hours"):
        await door.confirm(token)
    assert (await door.confirm(late)).email == "bob@example.com"
    assert await door.database.raw["registrations"].count_documents({}) == 1


@pytest.mark.parametrize("token", ["", "x", "x" * 59, "ü" * 59, "x" * 100_000, "\0" * 59, "\ud800" * 59, "{'$gt': ''}"])
async def test_a_forged_link_is_rejected(door: Door, token: str) -> None:
    await door.register()
    with pytest.raises(Invalid) as refused:
        await door.confirm(token)
    assert refused.value.fields.keys() == {"token"}


async def test_registering_a_victims_address_first_gains_nothing(door: Door) -> None:
    theirs = await door.register("victim@example.com", name="Mallory", password="the attacker's own")
    own = await door.register("victim@example.com", name="Victim", password=PASSWORD)
    user = await door.confirm(own)
    assert user.name == "Victim"
    assert not await door.can_sign_in("victim@example.com", "the attacker's own")
    with pytest.raises(Invalid, match="password"):  # the victim's own password on the attacker's link
        await door.confirm(theirs)
    with pytest.raises(AccountExists):
        await door.confirm(theirs, "the attacker's own")
    assert (await door.database.users.get(user.id)).password == user.password
    assert await door.can_sign_in("victim@example.com", PASSWORD)


async def test_registering_an_address_that_has_an_account_changes_nothing(door: Door, ada: User) -> None:
    token = await door.register("ada@example.com", name="Mallory", password="the attacker's own")
    with pytest.raises(AccountExists) as refused:
        await door.confirm(token, "the attacker's own")
    assert refused.value.fields == {"email": "has an account"}
    assert await door.database.users.get(ada.id) == ada


async def test_neither_token_nor_password_is_in_the_database(door: Door, secrets_in: Any) -> None:
    token = await door.register()
    assert await secrets_in(token, PASSWORD, token[16:]) == []
    await door.confirm(token)
    assert await secrets_in(token, PASSWORD) == []


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("ada@example.com", "ada@example.com"),
        ("  Ada.Lovelace+tag@Example.COM\n", "ada.lovelace+tag@example.com"),
        ("用户@例子.广告", "用户@例子.广告"),
        ("ada@xn--bcher-kva.example", "ada@bücher.example"),
    ],
)  # fmt: skip
def test_an_address_is_stored_normalised(given: str, stored: str) -> None:
    assert addresses.normalised(given) == stored


@pytest.mark.parametrize(
    "email",
    ["", " ", "ada", "@example.com", "ada@", "ada@@example.com", "a b@example.com", "ada@example.com, b@example.com",
     "Ada <ada@example.com>", "ada@localhost", "ada@[127.0.0.1]", "a\0@example.com", "a\r\nBcc: b@example.com",
     "\u202eada@example.com", "\ud800@example.com", "x@" + "y" * 250 + ".com"],
)  # fmt: skip
def test_an_invalid_address_is_rejected_by_name(email: str) -> None:
    with pytest.raises(Invalid) as refused:
        addresses.normalised(email)
    assert refused.value.fields.keys() == {"email"}
    assert len(refused.value.message) < 300


async def test_a_megabyte_of_address_is_refused_at_once(door: Door) -> None:
    loop = asyncio.get_running_loop()
    for email in (
        "a" * 10_000_000 + "@example.com",
        "é" * 5_000_000,
        '"' + "a" * 10_000_000 + '"@x.com',
        "a@" + "b." * 5_000_000,
    ):
        began = loop.time()
        with pytest.raises(Invalid):
            await door.register(email)
        assert loop.time() - began < 0.2


@pytest.mark.parametrize(
    "name", ["Ada", "Nguyễn Văn A", "محمد", "علی‌رضا", "山田　太郎", "👩‍🚀 Ada", "O'Neill-Šmit", "x" * 100, "José"]
)
def test_real_names_are_accepted_unchanged(name: str) -> None:
    assert names.checked(f" {name} ", most=names.MAX_PERSON) == name


@pytest.mark.parametrize(
    "name", ["", "   ", "\n", "a\nb", "a\0b", "\u202eevil", "\u200b", "\u200d", "a\u2028b", "\ud800", "x" * 101]
)
def test_an_invalid_name_is_rejected_by_name(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        names.checked(name, most=names.MAX_PERSON)
    assert refused.value.fields.keys() == {"name"}


async def test_the_owner_of_a_mistyped_address_does_not_guess_the_password(door: Door) -> None:
    token = await door.register("somebody.else@example.com")
    for guess in range(5):
        with pytest.raises(Invalid, match="password"):
            await door.confirm(token, f"guess number {guess}")
    with pytest.raises(Invalid, match="token"):
        await door.confirm(token)
    assert await door.database.users.count({}) == 0
    await door.confirm(await door.register("somebody.else@example.com"))  # whoever registered does so again


async def test_a_registration_that_was_made_before_passwords_were_counted_still_works(door: Door) -> None:
    token = await door.register()
    await door.database.raw["registrations"].update_one({}, {"$unset": {"attempts": ""}})
    assert await door.confirm(token)


async def test_every_wrong_field_of_a_registration_is_named_at_once(client: Client) -> None:
    answer = await client.ask(REGISTER, input={"name": " ", "email": "ada@", "password": "short"})
    assert answer.fields.keys() == {"name", "email", "password"}
