"""Accounts as an operator makes and lists them."""

import asyncio

import pytest
from tests.deleting import soft_delete

from ximler.accounts import administration
from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import AccountExists
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden, Invalid, Unauthenticated
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")
PASSWORD = "correct horse battery"


async def test_an_address_has_one_account_in_every_spelling(database: Database, keyring: Keyring, ada: User) -> None:
    async def create() -> User:
        return await administration.create(
            database, keyring, OPERATOR, name="B", email=" BOB@Example.com", password=PASSWORD
        )

    with pytest.raises(AccountExists) as refused:
        await administration.create(database, keyring, OPERATOR, name="Ada", email="ADA@example.COM", password=PASSWORD)
    assert refused.value.fields == {"email": "is taken"}
    ends = await asyncio.gather(*(create() for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(end, User) for end in ends) == 1
    assert sum(isinstance(end, AccountExists) for end in ends) == 4


async def test_only_operators_make_and_list_accounts(database: Database, keyring: Keyring, ada: User) -> None:
    for actor, error in ((Actor(), Unauthenticated), (Actor(kind="user", via="session", user_id=ada.id), Forbidden)):
        with pytest.raises(error):
            await administration.create(database, keyring, actor, name="B", email="b@example.com", password=PASSWORD)
        with pytest.raises(error):
            await administration.page(database, actor)
    assert await database.users.count({}) == 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": " "}, "name"),
        ({"email": "no"}, "email"),
        ({"password": "short"}, "password"),
        ({"name": "a\nb"}, "name"),
    ],
)
async def test_invalid_input_is_named_and_nothing_is_stored(
    database: Database, keyring: Keyring, wrong: dict[str, str], field: str
) -> None:
    given = {"name": "Ada", "email": "ada@example.com", "password": PASSWORD} | wrong
    with pytest.raises(Invalid) as refused:
        await administration.create(database, keyring, OPERATOR, **given)
    assert refused.value.fields.keys() == {field}
    assert await database.raw["users"].count_documents({}) == 0


async def test_the_list_is_read_to_its_end_newest_first_without_the_deleted(
    database: Database, keyring: Keyring
) -> None:
    emails = [f"p{n}@example.com" for n in range(7)]
    for email in emails:
        await administration.create(database, keyring, SYSTEM, name="P", email=email, password=PASSWORD)
    await soft_delete(database.users, {"email": emails[3]})
    seen, after = [], None
    while True:
        page = await administration.page(database, OPERATOR, first=2, after=after)
        seen += [account.user.email for account in page.items]
        if not page.has_next:
            break
        assert page.end_cursor is not None
        after = decode_cursor(page.end_cursor)
    assert seen == [email for email in reversed(emails) if email != emails[3]]
