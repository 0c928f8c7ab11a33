"""Mixed values (`settings`, `canvasData`, `metadata`): which values can be stored, and how they are read.

Rejected on writing, with their path: keys that start with `$` or contain `.`, which updates cannot address
reliably (`$set: {"a.b": …}` beside a key "a.b" creates a second path); keys with NUL, which ends a key in
BSON; nesting beyond MongoDB's limit of 100 levels; and values with so many parts that walking them takes long
(18 MB of `[]` are six million).
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from bson import Binary, DatetimeMS, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "MAX_NODES", "check", "native", "shown", "time_problem"]

# 100 levels, less the document itself and room for a container around it.
MAX_DEPTH = 98
# Items of lists and objects over all levels: what 16 MB of freehand strokes have.
MAX_NODES = 1_600_000
# Of these, lists and objects: each costs twenty times what a number does, and walking them keeps others waiting.
MAX_CONTAINERS = 250_000
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_CONTAINERS = (dict, list, tuple)
_PLAIN = frozenset({float, bool, type(None)})
# Types beyond JSON that another application may have stored, and that copies contain.
_BSON = (bytes, ObjectId, Decimal128, DatetimeMS, Binary, Regex, Timestamp, DBRef, MinKey, MaxKey, Int64, str, float)

# A value's place: its parent's place, and its key there. Formatted only for an error message, because a path
# for each of 100,000 values under a long key would take gigabytes.
_Place = tuple[Any, Any]


def check(value: Any, path: str, *, depth: int = 1, any_keys: bool = False) -> None:
    """Raise Invalid naming a path in `value` that cannot be stored. `depth` is the level of `value`.

    `any_keys`: keys may start with `$` and contain `.`, because no path of an update will name them.
    """
    top: _Place = (None, path)
    if not isinstance(value, _CONTAINERS):
        _check_scalar(value, top)
        return
    pending = [(value, top, depth)]
    nodes = containers = 0
    while pending:
        current, place, level = pending.pop()
        nodes += len(current)
        if nodes > MAX_NODES:
            raise Invalid.field(shown(path), f"has {nodes:,} values or more, the limit is {MAX_NODES:,}: split it up")
        if level > MAX_DEPTH:
            raise Invalid.field(shown(path), f"is nested deeper than {MAX_DEPTH} levels")
        items: Iterable[tuple[Any, Any]]
        if isinstance(current, dict):
            for key in current:
                if type(key) is not str or key[:1] == "$" or "." in key or "\0" in key or not key.isascii():
                    _check_key(key, place, any_keys)
            items = current.items()
        else:
            items = enumerate(current)
        for key, item in items:
            kind = type(item)
            if kind in _PLAIN or (kind is str and item.isascii()) or (kind is int and _LOWEST <= item <= _HIGHEST):
                continue
            if isinstance(item, _CONTAINERS):
                containers += 1
                if containers > MAX_CONTAINERS:
                    problem = f"has more lists and objects than the limit of {MAX_CONTAINERS:,}: split it up"
                    raise Invalid.field(shown(path), problem)
                pending.append((item, (place, key), level + 1))
            else:
                _check_scalar(item, (place, key))


def native(value: Any, *, references: bool = False) -> Any:
    """Convert the driver's value in place: naive datetimes to aware UTC, Int64 to int. With `references`, objects that the
    driver read as DBRef, because they have `$ref` and `$id`, are objects again.
    """
    if references and isinstance(value, DBRef):
        value = dict(value.as_doc())
    if not isinstance(value, dict | list):
        if isinstance(value, datetime):
            return EPOCH + (value - _EPOCH_NAIVE) if value.tzinfo is None else value
        return int(value) if isinstance(value, Int64) else value
    pending: list[dict[str, Any] | list[Any]] = [value]
    while pending:
        current = pending.pop()
        items: Iterable[tuple[Any, Any]] = current.items() if isinstance(current, dict) else enumerate(current)
        for key, item in items:
            kind = type(item)
            if references and kind is DBRef:
                current[key] = restored = dict(item.as_doc())
                pending.append(restored)
            elif kind is dict or kind is list:
                pending.append(item)
            elif kind is Int64:
                current[key] = int(item)
            elif kind is datetime and item.tzinfo is None:
                current[key] = EPOCH + (item - _EPOCH_NAIVE)
    return value


def time_problem(moment: datetime) -> str | None:
    """The reason to reject a time: it is naive, or outside the calendar in UTC."""
    if moment.tzinfo is None:
        return "is a time without a time zone: make it aware, for instance datetime.now(UTC)"
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return "is outside the years 1 to 9999, in UTC"
    return None


def _check_key(key: Any, place: _Place, any_keys: bool) -> None:
    if not isinstance(key, str):
        raise Invalid.field(_path(place), f"the key {shown(repr(key))} must be text")
    if key.startswith("$") and not any_keys:
        raise Invalid.field(_path(place), f"the key {shown(key)!r} must not start with '$'")
    if "." in key and not any_keys:
        raise Invalid.field(_path(place), f"the key {shown(key)!r} must not contain '.'")
    if "\0" in key:
        raise Invalid.field(_path(place), f"the key {shown(key)!r} must not contain a NUL byte")
    if not key.isascii():
        _check_text(key, place)


def _check_scalar(value: Any, place: _Place) -> None:
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, place)
    elif type(value) is int:
        if not _LOWEST <= value <= _HIGHEST:
            raise Invalid.field(_path(place), "is a number that does not fit in 64 bits: send it as a string")
    elif isinstance(value, datetime):
        if problem := time_problem(value):
            raise Invalid.field(_path(place), problem)
    elif type(value) not in _PLAIN and not isinstance(value, _BSON):
        raise Invalid.field(_path(place), f"is a {type(value).__name__}, which cannot be stored: convert it first")


def _check_text(text: str, place: _Place) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise Invalid.field(
            _path(place), f"contains an unpaired surrogate at character {problem.start}: it is not valid Unicode"
        ) from None


def _path(place: _Place | None) -> str:
    keys = []
    while place is not None:
        place, key = place
        keys.append(str(key))
    return shown(".".join(reversed(keys)))


def shown(path: str) -> str:
    """Shortened for a message, as valid Unicode."""
    if len(path) > 120:
        path = f"{path[:100]}…{path[-16:]}"
    return path.encode("utf-8", "backslashreplace").decode()
