"""E-mail addresses: one form that is stored, and accounts that other applications stored in another."""

from typing import Any

import pytest

from ximler.accounts import addresses, administration, credentials, registration, sessions
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Invalid
from ximler.database import Database, monitoring
from ximler.schema.user import User

PASSWORD = "correct horse battery"
ANYBODY = Actor(address="192.0.2.7")


@pytest.mark.parametrize(
    "typed",
    ["x@münchen.de", "x@xn--mnchen-3ya.de", "X@MÜNCHEN.DE", " x@xn--MNCHEN-3ya.de ", "x@mu\u0308nchen.de", "x@münchen。de"],
)  # fmt: skip
def test_every_spelling_of_an_address_has_one_normal_form(typed: str) -> None:
    assert addresses.normalised(typed) == "x@münchen.de"
    assert addresses.alternatives(typed)[0] == "x@münchen.de"
    assert "x@xn--mnchen-3ya.de" in addresses.alternatives(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "a" * 65 + "@example.com", "a@" + "b" * 64 + ".com", "a" * 64 + "@" + ("b" * 60 + ".") * 3 + "example",
        "a..b@example.com", "x@example.com.", '"a b"@example.com', "a@localhost", "a@[127.0.0.1]", "a@x_y.com", "a@xn--a.com",
        "ö" * 33 + "@example.com", "計" * 22 + "@example.com",
        "a@b@example.com", "a\u200b@example.com", "Ada <a@example.com>", "a@example.com,b@example.com",
    ],
)  # fmt: skip
def test_addresses_that_no_server_takes_are_refused(typed: str) -> None:
    with pytest.raises(Invalid):
        addresses.normalised(typed)


def test_the_longest_addresses_are_valid() -> None:
    for longest in (
        "a" * 64 + "@example.com",
        "ö" * 32 + "@example.com",
        "a" * 63 + "@" + ("b" * 60 + ".") * 3 + "example",
    ):
        assert addresses.normalised(longest.upper()) == longest


@pytest.mark.parametrize("typed", ["", "x" * 400 + "@example.com", "a\0@example.com", "a\n@example.com"])
def test_addresses_that_no_account_can_have_are_not_looked_up(typed: str) -> None:
    assert addresses.alternatives(typed) == []
    with pytest.raises(Invalid):
        addresses.normalised(typed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("Ada@Example.com", "Ada@Example.com"),
        ("ada@xn--mnchen-3ya.de", "ada@xn--mnchen-3ya.de"),
        ("ada@xn--mnchen-3ya.de", "ADA@münchen.de"),
        ("root@localhost", "root@localhost"),
        ("o\u0308rs@example.com", "o\u0308rs@example.com"),
    ],
)
async def test_an_account_is_found_by_an_address_that_another_application_stored(
    database: Database, keyring: Any, settings: Any, ada: User, stored: str, typed: str
) -> None:
    await database.raw["users"].update_one({"_id": ada.id}, {"$set": {"email": stored}})
    signed_in = await sessions.sign_in(database, keyring, settings, ANYBODY, email=typed, password=PASSWORD)
    assert signed_in.user.id == ada.id
    (account,) = (await administration.page(database, SYSTEM, search=typed)).items
    assert account.user.id == ada.id
    if "localhost" not in typed:
        await credentials.request_reset(database, keyring, ANYBODY, email=typed)
        job = await database.raw["outbox"].find_one({"kind": "accounts.send_reset"})
        assert job is not None
        assert (await addresses.holder(database, job["payload"]["typed"])).id == ada.id  # type: ignore[union-attr]  # found


async def test_of_two_accounts_the_one_in_normal_form_counts(
    database: Database, keyring: Any, settings: Any, ada: User
) -> None:
    theirs = await administration.create(
        database, keyring, SYSTEM, name="Eve", email="eve@example.com", password=PASSWORD
    )
    await database.raw["users"].update_one({"_id": theirs.id}, {"$set": {"email": "Ada@example.com"}})
    for typed in ("ada@example.com", "Ada@example.com"):
        signed_in = await sessions.sign_in(database, keyring, settings, ANYBODY, email=typed, password=PASSWORD)
        assert signed_in.user.id == ada.id


ODD: list[tuple[str, object]] = [
    ("avatar", {"url": "x"}), ("avatar", 5), ("lastLogin", "yesterday"), ("lastLogin", 1700000000), ("stripeCustomerId", 17),
    ("emailVerified", "true"), ("notificationSettings", "all"), ("notificationSettings", {"email": {"billingAlerts": "no"}}),
    ("notificationSettings", {"email": False, "push": []}), ("createdAt", "2020-01-01"), ("updatedAt", False),
    ("passwordResetExpires", "soon"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), ODD)
async def test_a_field_of_an_odd_type_does_not_prevent_sign_in(
    database: Database, keyring: Any, settings: Any, ada: User, field: str, value: object
) -> None:
    await database.raw["users"].update_one({"_id": ada.id}, {"$set": {field: value}}, bypass_document_validation=True)

    def counted() -> float:
        return sum(sample.value for metric in monitoring.FORGIVEN.collect() for sample in metric.samples)

    before = counted()
    signed_in = await sessions.sign_in(database, keyring, settings, ANYBODY, email=ada.email, password=PASSWORD)
    assert signed_in.user.id == ada.id
    assert not signed_in.user.email_verified or field != "emailVerified"
    _, user = await sessions.authenticate(database, keyring, signed_in.token)
    assert user.id == ada.id
    assert counted() > before or field in ("lastLogin", "updatedAt")  # these the sign-in itself has written


@pytest.mark.parametrize(("field", "value"), [("deletedAt", "2020"), ("closedAt", 5), ("password", 5), ("name", {})])
async def test_a_field_that_decides_about_a_sign_in_is_never_defaulted(
    database: Database, keyring: Any, settings: Any, ada: User, field: str, value: object
) -> None:
    await database.raw["users"].update_one({"_id": ada.id}, {"$set": {field: value}}, bypass_document_validation=True)
    before = monitoring.UNREADABLE.labels("users")._value.get()
    with pytest.raises(sessions.BadCredentials):
        await sessions.sign_in(database, keyring, settings, ANYBODY, email=ada.email, password=PASSWORD)
    assert monitoring.UNREADABLE.labels("users")._value.get() == before + 1


async def test_a_link_in_a_name_is_refused_wherever_a_name_is_chosen(database: Database, keyring: Any) -> None:
    evil = {"name": "WIN 1000$ http://evil.example/claim now", "email": "eve@example.com", "password": PASSWORD}
    with pytest.raises(Invalid, match="link"):
        await registration.register(database, keyring, ANYBODY, **evil)
    with pytest.raises(Invalid, match="link"):
        await administration.create(database, keyring, SYSTEM, **evil)
