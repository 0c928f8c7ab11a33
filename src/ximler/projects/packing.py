"""Packs canvases for storage: BSON, compressed with zstd. Decompression has a limit that a frame's declared size cannot raise.

BSON, because a canvas that another application wrote may have types that JSON lacks.
"""

import io
from typing import Any

import bson
import zstandard

from ximler.core.collection import paused_collection
from ximler.core.errors import Invalid
from ximler.database import mixed

__all__ = ["MOST", "Damaged", "pack", "plain", "text", "unpack"]

MOST = 64_000_000  # bytes of a canvas in BSON
_LEVEL = 1  # level 3 takes twice as long and saves 2 %
_MAX_WINDOW = 1 << 27


class Damaged(Invalid):
    """Stored bytes are no compressed canvas, or one that is too large."""

    code = "CANVAS_DAMAGED"


def plain(canvas: Any, text: bytes | None = None) -> bytes:
    """The canvas in BSON, under the key `v`, and the text under `t`. Equal canvases have equal bytes."""
    return bson.encode({"v": canvas} if text is None else {"v": canvas, "t": text})


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def unpack(packed: bytes, *, most: int = MOST) -> Any:
    """The canvas in `pack`ed bytes. Raises Damaged."""
    return mixed.native(_unpacked(packed, "v", most), references=True)


def text(packed: bytes) -> bytes:
    """The text that was packed with a canvas. Raises Damaged."""
    return bytes(_unpacked(packed, "t", MOST))


def _unpacked(packed: bytes, name: str, most: int) -> Any:
    # Read as a stream: `decompress(max_output_size=…)` allocates the size that a frame declares.
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(io.BytesIO(packed))
    try:
        data = reader.read(most + 1)
        if len(data) > most:
            raise Damaged(f"The stored canvas is larger than {most:,} bytes")
        with paused_collection():
            return bson.decode(data)[name]
    except (zstandard.ZstdError, bson.errors.BSONError, KeyError) as error:
        raise Damaged(f"The stored canvas cannot be read: {error}") from error
