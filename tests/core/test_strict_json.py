"""Strict JSON: nothing is lost without an error, and an error names its place."""

import json
import time
import tracemalloc
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.core import strict_json
from ximler.core.strict_json import NotJson, pointer

decode = partial(strict_json.decode, values=200_000, containers=200_000)

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "problem", "place"),
    [
        (b'{"e":[0,{"a":1,"b":2,"a":3}]}', "twice", "/e/1/a"),
        (b'{"a":1,"\\u0061":1}', "twice", "/a"),
        (b'{"":{"":1,"":1}}', "twice", "//"),
        (b'{"a/b":{"~":1,"~":1}}', "twice", "/a~1b/~0"),
        (b'{"a":[1,NaN]}', "NaN", "/a/1"),
        (b"[-Infinity]", "-Infinity", "/0"),
        (b'{"a":{"b":1e400}}', "beyond the range of a double", "/a/b"),
        (b"-1e400", "beyond the range of a double", "the top"),
        (b'["x","y\\ud800"]', "unpaired surrogate at character 1", "/1"),
        (b'{"a":{"\\udc00":1}}', "the key contains an unpaired surrogate", "/a/\\udc00"),
        (b'\xef\xbb\xbf{"a":1}', "byte order mark", "byte 0"),
        (b'{"a":"\xff"}', "not UTF-8", "byte 6"),
        (b'["\xed\xa0\x80"]', "not UTF-8", "byte 2"),
        ('["ä",}'.encode(), "not JSON", "byte 6"),
        (b"", "empty", ""),
        (b" \n", "empty", ""),
        (b"[1] 2", "not JSON", "byte 4"),
        (b"[01]", "not JSON", "byte 2"),
        (b'["a\x01"]', "not JSON", "byte 3"),
    ],
)
def test_a_text_that_decoders_read_differently_is_rejected_with_its_place(
    text: bytes, problem: str, place: str
) -> None:
    with pytest.raises(NotJson) as raised:
        decode(text)
    assert problem in raised.value.problem
    assert raised.value.place == place
    assert place in str(raised.value)


def test_colons_quotes_and_escapes_in_strings_do_not_count_as_keys() -> None:
    value = {'a":b': 'x":1,"a":', "c\\": ["\\", '\\":', ":"], "\n": '"'}
    assert decode(json.dumps(value).encode()) == value


def test_a_repeated_key_hidden_behind_escaped_quotes_is_still_found() -> None:
    with pytest.raises(NotJson):
        decode(rb'{"a":"\":\":\u0022:","a":"\\"}')


@pytest.mark.parametrize(
    "text", [b"9007199254740993", b"-9223372036854775808", b"[0.1,-0.0,1e2]", b"123456789012345678901"]
)
def test_numbers_keep_their_digits(text: bytes) -> None:
    assert json.loads(text) == decode(text)
    assert repr(json.loads(text)) == repr(decode(text))


def test_negative_zero_is_kept() -> None:
    text = b'[-0,-0 ,"-0,\\"-0 ",{"a-0":-0,"b":"\\\\"},-0.5,-0e1,-7,0,-0\n]'
    kept = b'[-0.0,-0.0,"-0,\\"-0 ",{"a-0":-0.0,"b":"\\\\"},-0.5,-0.0,-7,0,-0.0]'
    assert msgspec.json.encode(decode(text)) == kept
    assert repr(decode(b"-0")) == "-0.0"


def test_only_numbers_are_read_as_negative_zeros() -> None:
    text = b'{"a":-0,"b":1e-0,"c":-0,"d":[2E-0,-0],"-0 ":"-0","e-0":"x -0, e-0","s":"x -0, e-0","t -0":"\\"-0"}'
    kept = text.replace(b":-0,", b":-0.0,").replace(b"2E-0,-0]", b"2.0,-0.0]").replace(b"1e-0", b"1.0")
    assert msgspec.json.encode(decode(text)) == kept
    assert [decode(each) for each in (b"1e-0", b"[2E-0]", b'"e -0 "')] == [1.0, [2.0], "e -0 "]


def test_objects_that_look_like_extended_json_are_plain_objects() -> None:
    text = b'{"$date":"2026-01-01","x":{"$oid":"5f"},"n":{"$numberLong":"1"},"schema":{"com.tldraw.store":1}}'
    assert msgspec.json.encode(decode(text)) == text


def test_nesting_is_limited_by_levels_and_named() -> None:
    nested = b'{"a":' + b"[" * 99 + b"]" * 99 + b"}"
    assert decode(nested)
    with pytest.raises(NotJson, match="deeper than 100 levels") as raised:
        decode(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}")
    assert raised.value.place.startswith("/a/0/0")
    for text in (b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(NotJson, match="deeper than 100 levels"):
            decode(text)


def test_a_number_of_ten_thousand_digits_is_rejected_without_a_traceback() -> None:
    with pytest.raises(NotJson):
        decode(b"[" + b"9" * 10_000 + b"]")


@pytest.mark.slow
@given(ANYTHING, st.sampled_from([None, 1]), st.booleans())
def test_the_text_of_another_encoder_is_read_back(value: Any, indent: int | None, ascii_only: bool) -> None:
    assert decode(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.slow
@given(st.lists(st.tuples(st.text(st.sampled_from('a":\\{}'), max_size=3), ANYTHING), max_size=5))
def test_exactly_the_objects_with_a_repeated_key_are_rejected(pairs: list[tuple[str, Any]]) -> None:
    text = "{" + ",".join(f"{json.dumps(key)} :{json.dumps(value)}" for key, value in pairs) + "}"
    if len({key for key, _ in pairs}) == len(pairs):
        assert decode(text.encode()) == dict(pairs)
    else:
        with pytest.raises(NotJson, match="twice"):
            decode(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 3_000_000 + b"0]",
        b"[" + b'{"a":0},' * 1_500_000 + b"0]",
        b"[" + b'["\\"[",":"],' * 800_000 + b"0]",
        b"[" + b"0," * 5_000_000 + b"0]",
        b"[" + b'"",' * 4_000_000 + b"0]",
        b"[" + b"0," * 190_000 + b"NaN]",
        b"[" + b"0," * 5_000_000 + b"NaN]",
    ],
    ids=["lists", "objects", "lists and strings", "numbers", "strings", "a place at the end", "no place"],
)
def test_texts_of_too_many_parts_are_refused_quickly(text: bytes) -> None:
    began = time.process_time()
    with pytest.raises(NotJson):
        decode(text)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("zero", [b"", b"-0"])
def test_escapes_take_little_time_and_memory(zero: bytes) -> None:
    text = b'{"a":"\\u003a:' + b"\\n" * 1_000_000 + b'","b":[' + zero + b"]}"
    tracemalloc.start()
    began = time.process_time()
    decode(text)
    taken = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (taken < 1, peak < 10 * len(text)) == (True, True)


def test_brackets_in_strings_are_not_counted() -> None:
    value = {"code": ["[{" * 300_000, '"[', "\\"]}
    assert decode(json.dumps(value).encode()) == value


def test_a_long_place_is_shortened() -> None:
    assert len(pointer(["x" * 1000, 1])) < 130


@pytest.mark.parametrize("part", ['"[",', '"\\"{",', '"\\\\",[],', '{"a[":"\\\\\\"["},', '"",'])
def test_brackets_in_strings_are_no_containers(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "_PIECE", 7)
    text = b"[" + part.encode() * 30 + b"0]"
    containers = 1 + 30 * (part.startswith("{") or part.endswith("[],"))
    assert len(strict_json.decode(text, values=1000, containers=containers)) == 30 * (1 + part.endswith("[],")) + 1
    with pytest.raises(NotJson, match="more objects and arrays than"):
        strict_json.decode(text, values=1000, containers=containers - 1)


def test_the_work_for_negative_zeros_is_bounded() -> None:
    found = strict_json.decode(b"[" + b"-0," * 20_001 + b"1]", values=30_000, containers=1)
    assert [str(each) for each in found[-3:]] == ["-0.0", "0", "1"]
