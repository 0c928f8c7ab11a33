"""Ids in canvases, settings and archives: the one rule of what mentions an asset or a project.

An id is mentioned where its 24 hexadecimal digits occur: in an address, as a file's id, as a key, also between further
digits. Ids are random, so that nothing else has them.
"""

import re
from collections.abc import Mapping
from typing import AnyStr

from bson import ObjectId

__all__ = ["mentioned", "renamed"]

_ID = 24  # digits
_RUNS, _RUNS_OF_BYTES = re.compile("[0-9a-f]{24,}"), re.compile(rb"[0-9a-f]{24,}")


def mentioned(encoded: bytes, ids: set[bytes]) -> set[ObjectId]:
    """Which of the ids, in hexadecimal digits, an encoded canvas mentions."""
    found: set[bytes] = set()
    if ids:
        for run in _RUNS_OF_BYTES.findall(encoded):
            found.update(ids.intersection(run[start : start + _ID] for start in range(len(run) - _ID + 1)))
    return {ObjectId(each.decode()) for each in found}


def renamed(text: AnyStr, names: Mapping[AnyStr, AnyStr]) -> AnyStr:
    """The text with other ids in place of those that it mentions."""

    def replaced(found: re.Match[AnyStr]) -> AnyStr:
        run = found[0]
        parts: list[AnyStr] = []
        start = kept = 0
        while start <= len(run) - _ID:
            other = names.get(run[start : start + _ID])
            if other is None:
                start += 1
                continue
            parts += run[kept:start], other
            start = kept = start + _ID
        parts.append(run[kept:])
        return run[:0].join(parts)

    if isinstance(text, str):
        return _RUNS.sub(replaced, text)
    return _RUNS_OF_BYTES.sub(replaced, text)
