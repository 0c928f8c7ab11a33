"""Passwords and tokens: what is stored, what is refused, and that neither blocks anybody else."""

import asyncio
import unicodedata
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import pytest

from ximler.accounts.keyring import MAX_PASSWORD, MIN_PASSWORD, Keyring
from ximler.core.errors import Invalid
from ximler.core.settings import Settings, SettingsError

Form = Literal["NFC", "NFD", "NFKC"]
KEY = "the first secret key that is long enough"


@pytest.fixture
def make(settings: Settings) -> Iterator[Callable[..., Keyring]]:
    """`make(secret_key=…)`: a keyring with these settings."""
    made = []

    def make(**changes: object) -> Keyring:
        made.append(Keyring(msgspec.structs.replace(settings, **changes)))
        return made[-1]

    yield make
    for keyring in made:
        keyring.close()


async def test_a_password_verifies_and_another_does_not(keyring: Keyring) -> None:
    stored = await keyring.hash_password("correct horse battery")
    assert stored.startswith("$argon2id$v=19$m=7168,t=1,p=1$")
    assert await keyring.verify_password(stored, "correct horse battery")
    assert not await keyring.verify_password(stored, "correct horse batterY")
    assert not await keyring.verify_password(stored, "")
    assert not await keyring.verify_password(None, "correct horse battery")
    assert stored != await keyring.hash_password("correct horse battery")


@pytest.mark.parametrize("length", [MIN_PASSWORD, MAX_PASSWORD])
async def test_a_password_of_an_allowed_length_is_accepted(keyring: Keyring, length: int) -> None:
    assert await keyring.verify_password(await keyring.hash_password("ü" * length), "ü" * length)


@pytest.mark.parametrize(
    "password", ["", "short", "x" * (MIN_PASSWORD - 1), "x" * (MAX_PASSWORD + 1), "x" * 10_000_000]
)
async def test_a_password_of_another_length_is_refused_by_name(keyring: Keyring, password: str) -> None:
    with pytest.raises(Invalid) as refused:
        await keyring.hash_password(password)
    assert refused.value.fields.keys() == {"password"}
    assert not await keyring.verify_password(await keyring.hash_password("long enough"), password)


async def test_a_password_that_is_not_unicode_is_refused_and_never_matches(keyring: Keyring) -> None:
    with pytest.raises(Invalid) as refused:
        await keyring.hash_password("ten or more \udc80")
    assert refused.value.fields.keys() == {"password"}
    assert not await keyring.verify_password(await keyring.hash_password("long enough"), "ten or more \udc80")
    assert not await keyring.verify_password(None, "ten or more \udc80")


@pytest.mark.parametrize(
    "stored", ["", "plain text", "$2b$10$abcdefghijklmnopqrstuv", "$argon2id$broken", "$argon2i$v=19$m=1"]
)
async def test_an_unknown_hash_format_matches_no_password(keyring: Keyring, stored: str) -> None:
    assert not await keyring.verify_password(stored, stored)
    assert not await keyring.verify_password(stored, "plain text")


async def test_a_hash_is_renewed_when_the_settings_have_changed_and_only_then(make: Callable[..., Keyring]) -> None:
    before, after = make(), make(argon2_time_cost=2)
    stored = await before.hash_password("correct horse battery")
    assert await before.rehash(stored, "correct horse battery") is None
    fresh = await after.rehash(stored, "correct horse battery")
    assert fresh is not None
    assert ",t=2," in fresh
    assert await after.verify_password(stored, "correct horse battery")
    assert await after.verify_password(fresh, "correct horse battery")
    assert await after.rehash(fresh, "correct horse battery") is None


@pytest.mark.slow
async def test_hashing_leaves_the_event_loop_free_and_takes_no_more_threads_than_set(
    make: Callable[..., Keyring],
) -> None:
    keyring = make(argon2_memory_kib=19456, argon2_time_cost=2, argon2_threads=2)
    turns = 0
    hashing = asyncio.gather(*(keyring.hash_password("correct horse battery") for _ in range(12)))
    while not hashing.done():
        await asyncio.sleep(0.001)
        turns += 1
    await hashing
    # Blocked by each hash, the loop would turn about once for each; left free, every millisecond.
    assert turns > 3 * 12
    assert len(keyring._threads._threads) == 2


def test_a_token_has_256_bits_and_is_stored_under_a_hash_that_needs_the_key(make: Callable[..., Keyring]) -> None:
    first, second = make(secret_key=KEY), make(secret_key=KEY[::-1])
    token, token_id = first.new_token()
    assert len(token) == 43
    assert len(token_id) == 32
    assert first.token_ids(token) == [token_id]
    assert token_id not in second.token_ids(token)
    assert len({first.new_token()[0] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("token", ["", "x", "x" * 42, "x" * 44, "ü" * 43, "x" * 10_000_000, "\ud800" * 43])
def test_a_malformed_token_has_no_ids(keyring: Keyring, token: str) -> None:
    assert keyring.token_ids(token) == []


def test_with_several_keys_the_first_makes_and_all_verify(make: Callable[..., Keyring]) -> None:
    old, new = make(secret_key=KEY), make(secret_key=f"{KEY[::-1]},{KEY}")
    token, token_id = old.new_token()
    assert token_id in new.token_ids(token)
    token, token_id = new.new_token()
    assert new.token_ids(token)[0] == token_id
    assert token_id not in old.token_ids(token)


@pytest.mark.parametrize("key", [None, "", "short", f"{KEY},short", ",,", "x" * 31])
def test_a_key_that_is_missing_or_too_short_is_refused_before_anything_is_served(
    make: Callable[..., Keyring], key: str | None
) -> None:
    with pytest.raises(SettingsError, match="XIMLER_SECRET_KEY"):
        make(secret_key=key)


FORMS = [
    ("Amélie à Genève", "NFC", "NFD"),
    ("Amélie à Genève", "NFD", "NFC"),
    ("ﬁne ①② passwords", "NFC", "NFKC"),
    ("ｐａｓｓｗｏｒｄ in full width", "NFC", "NFKC"),
    ("비밀번호는 길어야 한다", "NFC", "NFD"),
    ("Å is an Å and so is A with a ring", "NFC", "NFD"),
]


@pytest.mark.parametrize(("password", "chosen", "typed"), FORMS)
async def test_a_password_is_the_same_in_every_unicode_form(
    keyring: Keyring, password: str, chosen: Form, typed: Form
) -> None:
    stored = await keyring.hash_password(unicodedata.normalize(chosen, password))
    assert await keyring.verify_password(stored, unicodedata.normalize(typed, password))
    assert not await keyring.verify_password(stored, unicodedata.normalize(typed, password + "!"))
    assert await keyring.rehash(stored, unicodedata.normalize(typed, password)) is None


@pytest.mark.parametrize(("password", "chosen", "typed"), FORMS)
async def test_a_hash_of_the_form_that_was_typed_verifies_and_is_rewritten(
    keyring: Keyring, password: str, chosen: Form, typed: Form
) -> None:
    raw = unicodedata.normalize("NFD", password)  # hashed before passwords were normalised
    old = keyring._hasher.hash(raw)
    assert await keyring.verify_password(old, raw)
    fresh = await keyring.rehash(old, raw)
    if fresh is not None:
        assert await keyring.verify_password(fresh, unicodedata.normalize(chosen, password))
        assert await keyring.verify_password(fresh, unicodedata.normalize(typed, password))
        assert await keyring.rehash(fresh, raw) is None
    else:
        assert raw == unicodedata.normalize("NFKC", password)


async def test_a_wrong_password_costs_the_same_with_and_without_an_account(keyring: Keyring) -> None:
    hashed = []
    compute = keyring.compute

    async def counted(work, *args):  # type: ignore[no-untyped-def]
        hashed.append(work)
        return await compute(work, *args)

    stored = await keyring.hash_password("correct horse battery")
    await keyring.verify_password(None, "the decoy is made once")
    keyring.compute = counted  # type: ignore[method-assign]
    for password in ("plain ASCII, wrong", "Ame\u0301lie, decomposed", "Amélie, composed"):
        costs = []
        for known in (stored, None, "$2b$10$abcdefghijklmnopqrstuv"):
            hashed.clear()
            assert not await keyring.verify_password(known, password)
            costs.append(len(hashed))
        assert len(set(costs)) == 1, password
