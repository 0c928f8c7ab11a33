"""Ids that a text mentions."""

import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from ximler.projects import mentions

IDS = st.text("01", min_size=24, max_size=24) | st.integers(0, 9).map(lambda n: f"{n:024x}")
TEXTS = st.lists(IDS | st.text("01g", max_size=12)).map("".join)


@given(st.sets(IDS, max_size=5), TEXTS, st.integers(1, 60))
def test_ids_are_found_and_renamed_between_any_digits(ids: set[str], text: str, piece: int) -> None:
    expected, at = "", 0
    while at < len(text):
        known = text[at : at + 24] in ids
        expected += "x" * 24 if known else text[at]
        at += 24 if known else 1
    with mock.patch.object(mentions, "_PIECE", piece):
        shown = mentions.mentioned(text.encode(), {each.encode() for each in ids})
        renamed = mentions.renamer(dict.fromkeys(ids, "x" * 24))(text)
    assert {str(each) for each in shown} == {each for each in ids if each in text}
    assert renamed == expected


def test_megabytes_of_digits_that_ids_begin_with_take_little_time() -> None:
    text, ids = b"69" * 1_500_000, {b"%08x%016x" % (0x69000000 + n * 50_000, n) for n in range(300)}
    began = time.process_time()
    assert mentions.mentioned(text, ids) == set()
    rename = mentions.renamer({b"%024x" % n: b"f" * 24 for n in range(1, 300)})  # an archive's may be of any digits
    zeros = b"0" * 3_000_000
    assert rename(zeros) == zeros
    assert time.process_time() - began < 0.4
