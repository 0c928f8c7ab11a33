"""Mixed values (`settings`, `canvasData`, `metadata`): what may be stored in them, and how they come back.

A key that starts with `$` or contains `.` could later be reached only by accident (`$set: {"a.b": …}` beside a key "a.b"
makes a second path), NUL ends a key in BSON, and MongoDB refuses documents nested deeper than 100 levels; so each is
refused on the way in, with the path.
"""

from datetime import datetime
from typing import Any

from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid

__all__ = ["MAX_DEPTH", "aware", "check"]

# 100 levels, less the document itself and room for a container around it.
MAX_DEPTH = 98
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)
_INT64 = range(-(2**63), 2**63)


def check(value: Any, path: str, *, depth: int = 1) -> None:
    """Raise Invalid naming the first path in `value` that must not be stored. `depth` is the level it sits at."""
    pending = [(value, path, depth)]
    while pending:
        current, place, level = pending.pop()
        if isinstance(current, str):
            if not current.isascii():
                _check_text(current, place)
        elif isinstance(current, dict):
            if level > MAX_DEPTH:
                raise Invalid.field(_shown(path), f"is nested deeper than {MAX_DEPTH} levels")
            for key, item in current.items():
                _check_key(key, place)
                pending.append((item, f"{place}.{key}", level + 1))
        elif isinstance(current, list | tuple):
            if level > MAX_DEPTH:
                raise Invalid.field(_shown(path), f"is nested deeper than {MAX_DEPTH} levels")
            pending.extend((item, f"{place}.{position}", level + 1) for position, item in enumerate(current))
        elif type(current) is int and current not in _INT64:
            raise Invalid.field(_shown(place), f"{current} does not fit in 64 bits: send it as a string")


def aware(value: Any) -> Any:
    """The value with its datetimes (which the driver leaves naive) made aware UTC, in place."""
    if isinstance(value, datetime):
        return EPOCH + (value - _EPOCH_NAIVE) if value.tzinfo is None else value
    pending = [value]
    while pending:
        current = pending.pop()
        for key, item in current.items() if isinstance(current, dict) else enumerate(current):
            if isinstance(item, dict | list):
                pending.append(item)
            elif isinstance(item, datetime) and item.tzinfo is None:
                current[key] = EPOCH + (item - _EPOCH_NAIVE)
    return value


def _check_key(key: Any, place: str) -> None:
    if not isinstance(key, str):
        raise Invalid.field(_shown(place), f"the key {key!r} must be text")
    if key.startswith("$"):
        raise Invalid.field(_shown(place), f"the key {_shown(key)!r} must not start with '$'")
    if "." in key:
        raise Invalid.field(_shown(place), f"the key {_shown(key)!r} must not contain '.'")
    if "\0" in key:
        raise Invalid.field(_shown(place), f"the key {_shown(key)!r} must not contain a NUL byte")
    if not key.isascii():
        _check_text(key, place)


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise Invalid.field(
            _shown(place), f"contains an unpaired surrogate at character {problem.start}: it is not valid Unicode"
        ) from None


def _shown(path: str) -> str:
    text = path.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 120 else f"{text[:100]}…{text[-16:]}"
