"""Ids and cursors: what comes in from outside is parsed strictly, or refused by the name of its field."""

import string
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.core.errors import Invalid
from ximler.core.ids import Position, decode_cursor, encode_cursor, object_id

ALPHABET = string.ascii_letters + string.digits + "-_"
LONGEST = 150

object_ids = st.binary(min_size=12, max_size=12).map(ObjectId)
moments = st.datetimes(timezones=st.just(UTC)).map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))
positions = st.tuples(st.none() | moments, object_ids)
EXAMPLE = encode_cursor((datetime(2026, 3, 1, 12, tzinfo=UTC), ObjectId("65f000000000000000000001")))


@settings(deadline=None)
@given(object_ids)
def test_an_id_is_its_24_digits(oid: ObjectId) -> None:
    assert object_id(str(oid)) == oid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "65f0",
        "65f000000000000000000001" + "0",
        "65f00000000000000000000",
        "65F000000000000000000001",
        "65f00000000000000000000g",
        " 65f000000000000000000001",
        "65f000000000000000000001\n",
        "65f00000000000000000000\0",
        "٦٥f000000000000000000001",
        "６5f000000000000000000001",
        "65f00000000000000000000\ud800",
        "bytes-of-12!",
        "null",
        "{'$gt': ''}",
        "x" * 1_000_000,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_malformed_id_is_rejected_by_field(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        object_id(text, "projectId")
    assert caught.value.fields.keys() == {"projectId"}
    assert len(caught.value.message) < LONGEST
    caught.value.message.encode()


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(positions)
def test_a_cursor_decodes_to_its_position(position: Position) -> None:
    text = encode_cursor(position)
    assert decode_cursor(text) == position
    assert len(text) == 32
    assert set(text) <= set(ALPHABET)


@pytest.mark.parametrize(
    "moment",
    [
        None,
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("oid", ["0" * 24, "f" * 24])
def test_places_at_the_edges_have_cursors_of_their_own(moment: datetime | None, oid: str) -> None:
    assert decode_cursor(encode_cursor((moment, ObjectId(oid)))) == (moment, ObjectId(oid))


def test_a_time_of_another_zone_is_the_same_place() -> None:
    from datetime import timezone

    here = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=-5)))
    oid = ObjectId()
    assert encode_cursor((here, oid)) == encode_cursor((here.astimezone(UTC), oid))


def test_a_cursor_with_any_one_character_changed_is_refused() -> None:
    for position, right in enumerate(EXAMPLE):
        for wrong in ALPHABET:
            if wrong != right:
                with pytest.raises(Invalid) as caught:
                    decode_cursor(EXAMPLE[:position] + wrong + EXAMPLE[position + 1 :], "after")
                assert caught.value.fields.keys() == {"after"}


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(positions, st.data())
def test_no_slip_of_the_hand_leads_to_another_place(position: Position, data: st.DataObject) -> None:
    text = encode_cursor(position)
    where = data.draw(st.integers(0, 31))
    slip = data.draw(
        st.sampled_from(
            [
                text[:where] + text[where + 1 :],
                text[:where] + text[where] + text[where:],
                text[:where] + data.draw(st.characters()) + text[where + 1 :],
                text[::-1],
                text.swapcase(),
            ]
        )
    )
    if slip != text:
        with pytest.raises(Invalid):
            decode_cursor(slip)


@pytest.mark.parametrize(
    "text",
    [
        "",
        EXAMPLE[:-1],
        EXAMPLE + "A",
        EXAMPLE + "=",
        EXAMPLE + "\n",
        f" {EXAMPLE}",
        EXAMPLE[:-1] + "=",
        EXAMPLE[:-1] + "+",
        EXAMPLE[:-1] + "é",
        EXAMPLE[:-1] + "\ud800",
        EXAMPLE[:-1] + "\0",
        "A" * 32,
        "_" * 32,
        "x" * 1_000_000,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_malformed_cursor_is_rejected_by_field(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode_cursor(text, "projects.after")
    assert caught.value.fields.keys() == {"projects.after"}
    assert len(caught.value.message) < LONGEST
    caught.value.message.encode()


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), object_ids)
def test_a_cursor_made_up_for_a_time_outside_the_calendar_is_refused(milliseconds: int, oid: ObjectId) -> None:
    """A forged cursor, whose check is public, is at most a wrong position."""
    import base64

    from ximler.core.ids import _check

    body = milliseconds.to_bytes(8, "big", signed=True) + oid.binary
    forged = base64.urlsafe_b64encode(_check(b"cursor", body) + body).decode()
    try:
        moment, found = decode_cursor(forged)
    except Invalid as refused:
        assert refused.fields.keys() == {"after"}  # noqa: PT017 (either outcome is right)
    else:
        assert found == oid
        assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize("text", ["x" * 20_000_000, "\x01" * 5_000_000], ids=["letters", "control characters"])
@pytest.mark.parametrize("read", [object_id, decode_cursor])
def test_huge_input_is_rejected_as_fast_as_short_input(read: Any, text: str) -> None:
    """Quoting 20 MB before cutting it takes a tenth of a second, and a request may try twenty times."""
    started = time.process_time()
    for _ in range(20):
        with pytest.raises(Invalid) as caught:
            read(text)
        assert len(caught.value.message) < 150
    assert time.process_time() - started < 0.2
