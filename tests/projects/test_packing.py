"""Compressed canvases."""

from datetime import UTC, datetime

import pytest
import zstandard
from bson import ObjectId

from ximler.projects.packing import Damaged, pack, plain, unpack


def test_a_canvas_comes_back_as_it_was() -> None:
    canvas = {"n": 2**53 + 1, "f": 1.0, "t": datetime(2026, 1, 1, tzinfo=UTC), "id": ObjectId(), "l": [None, {"": "é"}]}
    assert unpack(pack(plain(canvas))) == canvas


@pytest.mark.parametrize("declares", [True, False])
def test_decompression_is_bounded_whatever_a_frame_declares(declares: bool) -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=declares)
    with pytest.raises(Damaged, match="larger than"):
        unpack(compressor.compress(bytes(50_000_000)), most=1_000_000)


@pytest.mark.parametrize("damaged", [b"", b"x", pack(plain({}))[:-8], pack(b"\x05\0\0\0\0"), pack(b"no BSON")])
def test_damaged_bytes_are_reported(damaged: bytes) -> None:
    with pytest.raises(Damaged):
        unpack(damaged)


def test_objects_that_look_like_references_come_back_as_objects() -> None:
    reference = {"$ref": "x", "$id": "q", "keep": {"n": [1, {"$ref": "y", "$id": 2}]}}
    for canvas in (reference, {"elements": [reference, {"a": reference}]}):
        assert unpack(pack(plain(canvas))) == canvas
