"""Logs show what clients sent without doing what it says."""

from hypothesis import given
from hypothesis import strategies as st

from ximler.core.logs import printable


def test_control_characters_are_spelled_out() -> None:
    assert printable("/a\x1b[2J\r\nb\u202e\ud800é") == r"/a\x1b[2J\r\nb\u202e\ud800é"


def test_long_texts_are_cut() -> None:
    assert printable("x" * 60_000) == "x" * 199 + "…"
    assert printable("x" * 200) == "x" * 200


@given(st.text(max_size=300))
def test_whatever_comes_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()
