"""Ranges of bytes, as headers ask for them."""

import time

import pytest

from ximler.http.ranges import Unsatisfiable, byte_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        (" Bytes = 2 - 4 ", (2, 5)),
        ("bytes=-1000", (0, 10)),
        ("bytes=9-", (9, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=٢-3", None),
    ],
)
def test_a_single_range_is_read(header: str | None, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == expected
    assert byte_range(header, 0) is None


def test_a_range_after_the_end_is_refused() -> None:
    with pytest.raises(Unsatisfiable):
        byte_range("bytes=10-", 10)


@pytest.mark.parametrize("header", ["bytes=0-" + " " * 60_000 + "x", " " * 60_000, "bytes" + " " * 60_000 + "=x"])
def test_long_headers_cost_no_more_than_their_length(header: str) -> None:
    began = time.process_time()
    assert byte_range(header, 10) is None
    assert time.process_time() - began < 0.1
