"""The JSON of a large canvas in parts, from its compressed base and the patches of records since.

The base is decompressed and decoded piece by piece, so that a reader takes the memory of the compressed base
and of one piece, however large the canvas is, and however slowly the parts are taken.
"""

import io
from collections.abc import Iterator
from typing import Any

import bson
import msgspec
import zstandard

from ximler.core.extended_json import plain
from ximler.core.garbage import paused_collection
from ximler.database import mixed
from ximler.projects import packing
from ximler.projects.packing import Damaged
from ximler.projects.records import Effect

__all__ = ["parts"]

_PIECE = 65_536  # bytes of BSON that are decoded at once
_READ = 262_144  # bytes that are decompressed at once
_OBJECT, _ARRAY = 3, 4
# Bytes of BSON's values by their type; of the others, the length that they begin with, plus these.
_FIXED = {1: 8, 6: 0, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8, 19: 16, 127: 0, 255: 0}
_PREFIXED = {2: 4, _OBJECT: 0, _ARRAY: 0, 5: 5, 12: 16, 13: 4, 14: 4, 15: 0}
_REGEX = 11


def parts(packed: bytes, effect: Effect) -> Iterator[bytes]:
    """The JSON of the canvas in `packed` bytes, an object or array, after patches of its records.
    Raises Damaged, also after the first part.
    """
    source = _Source(packed)
    source.take(4)
    kind, name = source.head()
    if name != b"v" or kind not in (_OBJECT, _ARRAY):
        raise Damaged("The stored bytes are no canvas")
    if kind == _ARRAY:
        yield from _container(source, kind)
        return
    source.take(4)
    before, listed = b"{", False
    while kind := source.kind():
        name = source.name()
        key = msgspec.json.encode(name.decode()) + b":"
        if not effect.changes or name.decode() != effect.declared.list:
            yield before + key
            yield from _value(source, kind)
        else:
            listed = True
            yield before + key + b"["
            yield from _records(source, kind, effect)
            yield b"]"
        before = b","
    if effect.changes and not listed:
        yield before + msgspec.json.encode(effect.declared.list) + b":" + _json(effect.added())
        before = b","
    yield b"{}" if before == b"{" else b"}"


def _records(source: "_Source", kind: int, effect: Effect) -> Iterator[bytes]:
    before = b""
    for values in _pieces(source) if kind == _ARRAY else _none(source, kind):
        if inner := _json(effect.on(values))[1:-1]:
            yield before + inner
            before = b","
    if inner := _json(effect.added())[1:-1]:
        yield before + inner


def _none(source: "_Source", kind: int) -> Iterator[list[Any]]:
    """Of null, which stands for an empty list."""
    source.take(source.size(kind))
    return iter(())


def _pieces(source: "_Source") -> Iterator[list[Any]]:
    """The values of an array."""
    source.take(4)
    yield from (list(piece.values()) for piece, _, _ in _runs(source))


def _value(source: "_Source", kind: int) -> Iterator[bytes]:
    size = source.size(kind)
    if kind in (_OBJECT, _ARRAY) and size > _PIECE:
        yield from _container(source, kind)
    else:
        yield _json(_decoded(bytes([kind]) + b"v\0" + source.take(size))["v"])


def _container(source: "_Source", kind: int) -> Iterator[bytes]:
    source.take(4)
    yield b"{" if kind == _OBJECT else b"["
    before = b""
    for piece, large, name in _runs(source, nested=True):
        if piece:
            yield before + _json(piece if kind == _OBJECT else list(piece.values()))[1:-1]
            before = b","
        if large:
            yield before + (msgspec.json.encode(name.decode()) + b":" if kind == _OBJECT else b"")
            yield from _container(source, large)
            before = b","
    yield b"}" if kind == _OBJECT else b"]"


def _runs(source: "_Source", *, nested: bool = False) -> Iterator[tuple[dict[str, Any], int, bytes]]:
    """The values of an object or array up to its end, by their names, some at a time.

    `nested`: each run may be followed by a large value,
    of which type and name are given: the caller takes it.
    """
    run: list[bytes] = []
    length = 0
    while kind := source.kind():
        name = source.name()
        size = source.size(kind)
        if nested and size > _PIECE and kind in (_OBJECT, _ARRAY):
            yield _decoded(b"".join(run)), kind, name
            run, length = [], 0
            continue
        run += [bytes([kind]), name, b"\0", source.take(size)]
        length += size
        if length > _PIECE:
            yield _decoded(b"".join(run)), 0, b""
            run, length = [], 0
    yield _decoded(b"".join(run)), 0, b""


def _decoded(elements: bytes) -> dict[str, Any]:
    try:
        with paused_collection():
            found = bson.decode((len(elements) + 5).to_bytes(4, "little") + elements + b"\0")
    except bson.errors.BSONError as error:
        raise Damaged(f"The stored canvas cannot be read: {error}") from error
    decoded: dict[str, Any] = mixed.native(found, references=True)
    return decoded


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=plain)


class _Source:
    """The bytes of a packed canvas, in their order."""

    def __init__(self, packed: bytes) -> None:
        self._reader = zstandard.ZstdDecompressor(max_window_size=packing.MAX_WINDOW).stream_reader(io.BytesIO(packed))
        self._data = b""
        self._at = 0
        self._total = 0

    def take(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return self._data[self._at - count : self._at]

    def head(self) -> tuple[int, bytes]:
        return self.kind(), self.name()

    def kind(self) -> int:
        """The next value's type; 0 at the end of an object or array."""
        return self.take(1)[0]

    def name(self) -> bytes:
        found = self.take(self._end(0))
        self.take(1)
        return found

    def size(self, kind: int) -> int:
        """Bytes of the next value."""
        if (fixed := _FIXED.get(kind)) is not None:
            return fixed
        if kind == _REGEX:
            return self._end(self._end(0) + 1) + 1
        if kind not in _PREFIXED:
            raise Damaged(f"The stored canvas has a value of the unknown type {kind}")
        self._need(4)
        return int.from_bytes(self._data[self._at : self._at + 4], "little") + _PREFIXED[kind]

    def _end(self, after: int) -> int:
        """The bytes up to the next NUL, which is no sooner than `after` so many."""
        while (end := self._data.find(b"\0", self._at + after)) < 0:
            self._need(len(self._data) - self._at + 1)
        return end - self._at

    def _need(self, count: int) -> None:
        while len(self._data) - self._at < count:
            try:
                more = self._reader.read(max(_READ, min(count, packing.MOST)))
            except zstandard.ZstdError as error:
                raise Damaged(f"The stored canvas cannot be read: {error}") from error
            self._total += len(more)
            if not more or self._total > packing.MOST:
                raise Damaged("The stored canvas is incomplete" if not more else "The stored canvas is too large")
            self._data = self._data[self._at :] + more
            self._at = 0
