"""Packs canvases for storage: BSON, compressed with zstd.
Decompression has a limit that a frame's declared size cannot raise.

BSON, because a canvas that another application wrote may have types that JSON lacks.
"""

import io
from typing import Any

import bson
import zstandard

from ximler.core.errors import Invalid
from ximler.core.garbage import paused_collection
from ximler.database import mixed

__all__ = ["MAX_WINDOW", "MOST", "Damaged", "pack", "plain", "text", "unpack", "unpacked", "value_of"]

MOST = 64_000_000  # bytes of a canvas in BSON
_LEVEL = 1  # level 3 takes twice as long and saves 2 %
MAX_WINDOW = 1 << 27


class Damaged(Invalid):
    """Stored bytes are no compressed canvas, or one that is too large."""

    code = "CANVAS_DAMAGED"


def plain(canvas: Any, text: bytes | None = None) -> bytes:
    """The canvas in BSON, under the key `v`, and the text under `t`. Equal canvases have equal bytes."""
    return bson.encode({"v": canvas} if text is None else {"v": canvas, "t": text})


def pack(data: bytes, *, base: bytes | None = None) -> bytes:
    """Compress `data`, with `base` as a dictionary: equal parts of similar canvases take no space."""
    if base is None:
        return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
    logs = max(14, len(base).bit_length() - 2)  # zstd indexes 8 << logs bytes of a dictionary, and ignores the rest
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        window_log=max(18, (len(base) + len(data)).bit_length()),
        hash_log=logs,
        chain_log=logs,
        write_checksum=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_known(base)).compress(data)


def unpack(packed: bytes, *, most: int = MOST) -> Any:
    """The canvas in `pack`ed bytes. Raises Damaged."""
    return value_of(unpacked(packed, most=most))[0]


def unpacked(packed: bytes, *, base: bytes | None = None, most: int = MOST) -> bytes:
    """The bytes that were packed, with the same `base`. Raises Damaged."""
    # Read as a stream: `decompress(max_output_size=…)` allocates the size that a frame declares.
    known = None if base is None else _known(base)
    decompressor = zstandard.ZstdDecompressor(dict_data=known, max_window_size=MAX_WINDOW)
    try:
        data: bytes = decompressor.stream_reader(io.BytesIO(packed)).read(most + 1)
    except zstandard.ZstdError as error:
        raise Damaged(f"The stored canvas cannot be read: {error}") from error
    if len(data) > most:
        raise Damaged(f"The stored canvas is larger than {most:,} bytes")
    return data


def value_of(data: bytes) -> tuple[Any, bytes | None]:
    """The canvas in `plain` bytes, and the text, if they have it. Raises Damaged."""
    found = _decoded(data)
    return mixed.native(found["v"], references=True), found.get("t")


def text(packed: bytes) -> bytes | None:
    """The text that was packed with a canvas, if there is one. Raises Damaged."""
    found: bytes | None = _decoded(unpacked(packed)).get("t")
    return found


def _decoded(data: bytes) -> Any:
    try:
        with paused_collection():
            found = bson.decode(data)
    except bson.errors.BSONError as error:
        raise Damaged(f"The stored canvas cannot be read: {error}") from error
    if "v" not in found:
        raise Damaged("The stored bytes are no canvas")
    return found


def _known(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
