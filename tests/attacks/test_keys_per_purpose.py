"""Attacks on keyed hashes: a value made for one use is worth nothing for another."""

import itertools

import pytest
from bson import ObjectId

from ximler.accounts.keyring import Keyring
from ximler.core.settings import Settings


@pytest.fixture
def keyring(settings: Settings) -> Keyring:
    return Keyring(settings)


def test_no_text_that_a_caller_chooses_makes_the_id_of_a_session(keyring: Keyring) -> None:
    """An Idempotency-Key of the right length once made a reply whose `_id` was
    that of a session for a known token."""
    for purpose in ("reply", "throttle", "reply request", "reply answer"):
        for prefix in ("address:192.0.2.7|", "user:", ""):
            text = f"{prefix}{'x' * 43}"
            seen = {keyring.digest(purpose, text)}
            for start, length in itertools.product(range(4), (43,)):
                for whole in (f"ximler:{purpose}:{text}", text, f"{purpose}:{text}"):
                    assert not seen & set(keyring.token_ids(whole[start : start + length]))


def test_digests_and_signatures_of_different_purposes_differ(keyring: Keyring) -> None:
    subject = ObjectId()
    purposes = ("confirm", "reset", "email", "unsubscribe", f"device:{subject}:hash")
    tokens = {keyring.sign(purpose, subject) for purpose in purposes}
    assert len(tokens) == len(purposes)
    assert all(keyring.verify(one, keyring.sign(other, subject)) is None
               for one, other in itertools.permutations(purposes, 2))  # fmt: skip
    assert len({keyring.digest(purpose, "same") for purpose in ("reply", "throttle", "reply request")}) == 3


def test_seals_of_different_purposes_differ(keyring: Keyring) -> None:
    mac = keyring.seal("asset url", b"content")
    assert keyring.is_sealed("asset url", b"content", mac)
    assert not keyring.is_sealed("asset url", b"Content", mac)
    assert not keyring.is_sealed("other", b"content", mac)
    assert mac != keyring.digest("asset url", "content")
