"""Names that people choose: which are refused, and in what form they are kept."""

import unicodedata

import pytest

from ximler.core import names
from ximler.core.errors import Invalid


@pytest.mark.parametrize(
    "name",
    [
        "Ada Lovelace", "Dr.Oetker", "J.R.R. O'Neill-Škvorecký, PhD", "李小龍", "محمد علي", "می‌خواهم", "हिन्दी", "👩‍👩‍👧 family",
        "Node.js",
        "example.com redesign", "A/B test", "1", "?", "24/7 monitoring", "and/or", "C++/Rust", "e.g. this", "v1.2/beta",
        "Booking.com", "Note: this", "data:q3", "tel:support", "Version 1.2.3", "9:30 a.m.", "s/o Ada", "Tel Aviv",
        "Mr.Smith", "TCP/IP 10.0.0.1",
        "n//2", "St. John's: a tale",
    ],
)  # fmt: skip
def test_ordinary_names_are_valid(name: str) -> None:
    assert names.checked(f"  {name} ", most=100) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "\u200b",
        "\u200d",
        "\u3164",
        "\u2800",
        "\u115f\u1160",
        "\u0301",
        "\ufe0f",
        "\u00a0\u2003",
        "\u00ad",
        "\ufffc",
    ],
)
def test_an_invisible_name_is_rejected(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        names.checked(name, most=100)
    assert refused.value.fields.keys() == {"name"}


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\0b", "a\u202eb", "a\u200bb", "a\ud800b", "a\u2028b", "a\x1b[31mb", "a\u2066b", "a\ufeffb", "a\U000e0041b",
     "a\u034fb", "a\u3164", "a\uffa0b", "a\u17b4b", "a\ufff0b"],
)  # fmt: skip
def test_a_name_has_no_controls_and_nothing_invisible(name: str) -> None:
    with pytest.raises(Invalid, match="control characters"):
        names.checked(name, most=100, field="title")


@pytest.mark.parametrize(
    "name",
    [
        "WIN 1000$ http://evil.example/claim now", "HTTPS://EVIL.EXAMPLE", "javascript://x", "www.evil.example",
        "see evil.example/x", "evil.example?x=1", "go to evil-site.co/a", "http:\\\\evil.example", "javascript:alert(1)",
        "mailto:x@evil.example", "ftp:evil.example", "evil.example:8080", "evil。example/x", "пример.рф/x",
        "xn--e1afmkfd.xn--p1ai/x",
        "192.0.2.7/x", "192.0.2.7:8080", "ｗｗｗ．evil.example", "ftp.evil.example", "//evil.example", "[click](http://evil.example)",
    ],
)  # fmt: skip
def test_a_name_is_no_link(name: str) -> None:
    with pytest.raises(Invalid, match="link"):
        names.checked(name, most=100)


def test_a_long_name_is_refused_at_once() -> None:
    with pytest.raises(Invalid, match="longer than 100"):
        names.checked("x" * 10_000_000, most=100)
    with pytest.raises(Invalid):
        names.checked("e" + "\u0301" * 10_000_000, most=100)
    assert names.checked("e\u0301" * 100, most=200) == "é" * 100
