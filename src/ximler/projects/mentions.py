"""Ids in canvases, settings and archives: the one rule of what mentions an asset or a project.

An id is mentioned where its 24 hexadecimal digits occur: in an address, as a file's id, as a key, also
between further digits. Ids are random, so that nothing else has them; an archive may have others, for which
the time is linear, too.

Texts have up to 64 MB. They are searched in pieces, because other threads wait for a call, and a piece's
matches are in memory; only a thread may search more than a piece.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, AnyStr

from ahocorasick_rs import AhoCorasick, BytesAhoCorasick
from bson import ObjectId

__all__ = ["mentioned", "renamer"]

_ID = 24  # digits
_PIECE = 256_000  # characters


def mentioned(encoded: bytes, ids: Collection[bytes]) -> set[ObjectId]:
    """Which of the ids, in hexadecimal digits, an encoded canvas mentions."""
    known, found = list(ids), set[int]()
    search = BytesAhoCorasick(known).find_matches_as_indexes
    for start in range(0, len(encoded), _PIECE):
        matches = search(encoded[start : start + _PIECE + _ID - 1], overlapping=True)
        found.update(which for which, _, _ in matches)
    return {ObjectId(known[each].decode()) for each in found}


def renamer(names: Mapping[AnyStr, AnyStr]) -> Callable[[AnyStr], AnyStr]:
    """A function that makes a text with other ids in place of those that it mentions."""
    known: list[Any] = list(names)
    new = list(names.values())
    automaton: Any = BytesAhoCorasick(known) if known and isinstance(known[0], bytes) else AhoCorasick(known)

    def renamed(text: AnyStr) -> AnyStr:
        parts: list[AnyStr] = []
        kept = start = 0
        while start < len(text):
            piece = text[start : start + _PIECE + _ID - 1]
            for which, begin, end in automaton.find_matches_as_indexes(piece):
                parts += text[kept : start + begin], new[which]
                kept = start + end
            start = max(start + _PIECE, kept)
        parts.append(text[kept:])
        return text[:0].join(parts)

    return renamed
