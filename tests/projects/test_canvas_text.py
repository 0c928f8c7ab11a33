"""The JSON of a canvas in parts is that of the canvas."""

import itertools
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.projects import canvas, canvas_text, packing, records
from ximler.projects.packing import Damaged
from ximler.projects.records import DEFAULT, Effect

ODD = [
    datetime(2026, 1, 2, tzinfo=UTC),
    Int64(5), Decimal128("1.5"), ObjectId(), Regex("^a", 2), Timestamp(1, 2), MinKey(), MaxKey(),
    Code("x"), Code("x", {"a": 1}), Binary(b"x", 5), b"x", None, True, 2**40, 1.5, "ü", {"$ref": "a", "$id": 1},
]  # fmt: skip
NAMES = st.sampled_from(["id", "elements", "a", "ü"])
VALUES = st.recursive(
    st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)
IDS = st.sampled_from("abcd")
RECORDS = st.fixed_dictionaries({"id": IDS, "x": st.integers(0, 9)})
CANVASES = st.fixed_dictionaries(
    {}, optional={"a": VALUES, "elements": st.lists(RECORDS | VALUES, max_size=6) | st.none(), "z": VALUES}
)
CHANGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "remove": st.lists(IDS, max_size=2),
            "put": st.lists(RECORDS, max_size=2),
            "set": st.dictionaries(IDS, st.fixed_dictionaries({"y": st.integers(0, 9)}), max_size=2),
        },
    ),
    max_size=4,
)


def _joined(data: Any, changes: Any = ()) -> bytes:
    return b"".join(canvas_text.parts(packing.pack(packing.plain(data, b"the file")), Effect(changes, DEFAULT)))


def _expected(data: Any, changes: Any = ()) -> bytes:
    value = packing.unpack(packing.pack(packing.plain(data)))
    return canvas.encoded(records.applied(value, changes, DEFAULT) if changes else value)


@pytest.mark.parametrize("piece", [20, 65_536])
@given(CANVASES | st.lists(VALUES, max_size=5), CHANGES)
@settings(max_examples=40, deadline=None)
def test_the_parts_are_the_text(piece: int, data: Any, changes: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(canvas_text, "_PIECE", piece)
        patched.setattr(canvas_text, "_READ", 7 if piece == 20 else 262_144)
        changes = changes if isinstance(data, dict) else []
        assert _joined(data, changes) == _expected(data, changes)


def test_a_part_is_made_of_a_piece_of_the_canvas_when_it_is_taken() -> None:
    data = {"elements": [{"id": str(n), "t": "x" * 500} for n in range(10_000)], "deep": {"a": [["y" * 500]] * 5000}}
    packed = packing.pack(packing.plain(data))
    cut = canvas_text.parts(packed[: len(packed) // 2], Effect([], DEFAULT))
    assert len(b"".join(itertools.islice(cut, 10))) > 100_000  # before the damage is met
    with pytest.raises(Damaged):
        list(cut)
    parts = list(canvas_text.parts(packed, Effect([], DEFAULT)))
    assert max(map(len, parts)) < 2 * canvas_text._PIECE
    assert msgspec.json.decode(b"".join(parts)) == data


@pytest.mark.parametrize("damaged", [b"", b"x", packing.pack(b"\x05\0\0\0\0"), packing.pack(b"no BSON")])
def test_damaged_bytes_are_reported(damaged: bytes) -> None:
    with pytest.raises(Damaged):
        list(canvas_text.parts(damaged, Effect([], DEFAULT)))
