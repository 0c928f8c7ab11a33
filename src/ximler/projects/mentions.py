"""Ids in canvases, settings and archives: the one rule of what mentions an asset or a project.

An id is mentioned where its 24 hexadecimal digits occur: in an address, as a file's id, as a key, also between further
digits. Ids are random, so that nothing else has them.

Texts have up to 64 MB. They are searched in pieces, because other threads wait for a call of `re`; only a thread may
search more than a piece.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from os.path import commonprefix
from typing import Any, AnyStr

from bson import ObjectId

__all__ = ["mentioned", "renamer"]

_ID = 24  # digits
_PIECE = 256_000  # characters: some milliseconds


def mentioned(encoded: bytes, ids: Collection[bytes]) -> set[ObjectId]:
    """Which of the ids, in hexadecimal digits, an encoded canvas mentions."""
    if not ids:
        return set()
    found = {each for _, each in _mentions(_pattern(ids), encoded, ids)}
    return {ObjectId(each.decode()) for each in found}


def renamer(names: Mapping[AnyStr, AnyStr]) -> Callable[[AnyStr], AnyStr]:
    """A function that makes a text with other ids in place of those that it mentions."""
    pattern = _pattern(names)

    def renamed(text: AnyStr) -> AnyStr:
        parts: list[AnyStr] = []
        kept = 0
        for start, found in _mentions(pattern, text, names):
            parts += text[kept:start], names[found]
            kept = start + _ID
        parts.append(text[kept:])
        return text[:0].join(parts)

    return renamed


def _pattern(ids: Collection[AnyStr]) -> re.Pattern[AnyStr]:
    """Finds what may be one of the ids. They begin alike, with the time, so that few other digits do."""
    first: Any = commonprefix([min(ids), max(ids)])  # noqa: RUF071 (of strings, as it is meant)
    source = "[0-9a-f]{%d}" % (_ID - len(first))  # noqa: UP031 (it has braces)
    return re.compile(first + (source if isinstance(first, str) else source.encode()))


def _mentions(pattern: re.Pattern[AnyStr], text: AnyStr, ids: Collection[AnyStr]) -> Iterator[tuple[int, AnyStr]]:
    """Where the text mentions which of the ids."""
    at = 0
    for end in range(_PIECE, len(text) + _PIECE, _PIECE):
        while found := pattern.search(text, at, end + _ID - 1):
            if found[0] in ids:
                yield found.start(), found[0]
                at = found.end()
            else:
                at = found.start() + 1
        at = max(at, end)
