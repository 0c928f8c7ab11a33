"""Ids in canvases, settings and archives: the one rule of what mentions an asset or a project.

An id is mentioned where its 24 hexadecimal digits occur: in an address, as a file's id, as a key, also between further
digits. Ids are random, so that nothing else has them.

Texts have up to 64 MB. They are searched in pieces, because other threads wait for a call of `re`; only a thread may
search more than a piece.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, AnyStr, Generic

from bson import ObjectId

__all__ = ["mentioned", "renamer"]

_ID = 24  # digits
_PIECE = 256_000  # characters: some milliseconds
# A mention has one of the blocks that begin at each eighth digit of a run: these are looked up.
_STEP, _BLOCK = 8, 16
_RUNS: dict[type, re.Pattern[Any]] = {str: re.compile("[0-9a-f]{24,}"), bytes: re.compile(rb"[0-9a-f]{24,}")}


def mentioned(encoded: bytes, ids: Collection[bytes]) -> set[ObjectId]:
    """Which of the ids, in hexadecimal digits, an encoded canvas mentions."""
    if not ids:
        return set()
    found = {each for _, each in _Ids(ids).found_in(encoded)}
    return {ObjectId(each.decode()) for each in found}


def renamer(names: Mapping[AnyStr, AnyStr]) -> Callable[[AnyStr], AnyStr]:
    """A function that makes a text with other ids in place of those that it mentions."""
    ids = _Ids(names)

    def renamed(text: AnyStr) -> AnyStr:
        parts: list[AnyStr] = []
        kept = 0
        for start, found in ids.found_in(text):
            if start >= kept:  # not within another
                parts += text[kept:start], names[found]
                kept = start + _ID
        parts.append(text[kept:])
        return text[:0].join(parts)

    return renamed


class _Ids(Generic[AnyStr]):
    """Ids that are looked for. `_offsets` has the places, the last first, that a block has in any of them."""

    def __init__(self, ids: Collection[AnyStr]) -> None:
        self._ids: Collection[AnyStr] = ids
        self._offsets: dict[AnyStr, list[int]] = {}
        for offset in reversed(range(_STEP)):
            for each in ids:
                offsets = self._offsets.setdefault(each[offset : offset + _BLOCK], [])
                if offset not in offsets:
                    offsets.append(offset)

    def found_in(self, text: AnyStr) -> Iterator[tuple[int, AnyStr]]:
        """Where the text mentions which of the ids, in order."""
        for piece in range(0, len(text), _PIECE):
            for found in _RUNS.get(type(text), _RUNS[str]).finditer(text[piece : piece + _PIECE + _ID - 1]):
                run = found[0]
                for start in self._places(run):
                    yield piece + found.start() + start, run[start : start + _ID]

    def _places(self, run: AnyStr) -> Iterator[int]:
        find = self._offsets.get
        for at in range(0, len(run) - _BLOCK + 1, _STEP):
            for offset in find(run[at : at + _BLOCK], ()):
                start = at - offset
                if start >= 0 and run[start : start + _ID] in self._ids:
                    yield start
