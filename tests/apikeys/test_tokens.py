"""The form of a key: typing errors show without asking anybody."""

import hashlib
import string

import pytest

from ximler.apikeys import tokens


def test_a_key_is_prefix_160_bits_and_checksum():
    keys = {tokens.mint() for _ in range(1000)}
    assert len(keys) == 1000
    for key in keys:
        assert len(key) == 37
        assert key.startswith("xim_")
        assert set(key[4:]) <= set(string.ascii_letters + string.digits)
        assert tokens.is_well_formed(key)


def test_every_single_wrong_character_and_every_swap_of_neighbours_is_found():
    key = tokens.mint()
    alphabet = string.ascii_letters + string.digits
    for place in range(4, len(key)):
        for other in alphabet:
            if other != key[place]:
                assert not tokens.is_well_formed(key[:place] + other + key[place + 1 :])
        if place + 1 < len(key) and key[place] != key[place + 1]:
            swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
            assert not tokens.is_well_formed(swapped)


@pytest.mark.parametrize("mangle", [str.upper, str.lower, lambda k: k[:-1], lambda k: k + "x", lambda k: " " + k[:-1],
                                    lambda k: "", lambda k: "xim_", lambda k: k.replace("xim_", "xim-"), lambda k: k[4:],
                                    lambda k: "é" * 37, lambda k: k[:10] + "\x00" + k[11:], lambda k: k * 1000])  # fmt: skip
def test_truncated_and_mistyped_keys_are_detected(mangle):
    assert not tokens.is_well_formed(mangle(tokens.mint()))


def test_a_key_is_stored_as_its_sha_256():
    key = tokens.mint()
    assert tokens.hash_of(key) == hashlib.sha256(key.encode()).hexdigest()
