"""The choice of an encoding."""

import pytest

from ximler.http.conditional import encoding_of


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip", "gzip"),
        ("GZIP; Q=0.5, zstd;q=0.4", "gzip"),
        ("zstd;q=0, *", "gzip"),
        ("*;q=0.1", "zstd"),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=0, zstd;q=0.000", None),
        ("zstd;q=2, gzip;q=x, zstd;level=1", None),
    ],
)
def test_the_encoding_with_the_highest_weight_is_chosen(accepted: str, chosen: str | None) -> None:
    assert encoding_of(accepted, ["zstd", "gzip"]) == chosen
