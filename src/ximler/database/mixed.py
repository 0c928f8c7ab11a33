"""Mixed values (`settings`, `canvasData`, `metadata`): which values can be stored, and how they are read.

Rejected on writing, with their path: keys that start with `$` or contain `.`, which updates cannot address
reliably (`$set: {"a.b": …}` beside a key "a.b" creates a second path); keys with NUL, which ends a key in
BSON; nesting beyond MongoDB's limit of 100 levels; and values that take too much memory (18 MB of `[]` take
600 MB).
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from bson import Binary, DatetimeMS, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "MAX_MEMORY", "MAX_VALUES", "check", "native", "shown", "time_problem"]

# 100 levels, less the document itself and room for a container around it.
MAX_DEPTH = 98
# Bytes of memory that a value takes, besides its texts. 17 MB of freehand strokes take 60 MB with all their
# digits, and 340 MB as points of small integers.
MAX_MEMORY = 400_000_000
_VALUE, _CONTAINER = 32, 64  # a container is a value, too
MAX_VALUES, MAX_CONTAINERS = MAX_MEMORY // _VALUE, MAX_MEMORY // (_VALUE + _CONTAINER)
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_CONTAINERS = (dict, list, tuple)
_PLAIN = frozenset({float, bool, type(None)})
_ONLY = frozenset({dict, list})
_JSON = _PLAIN | {int, str, dict, list}
# Types beyond JSON that another application may have stored, and that copies contain.
_BSON = (bytes, ObjectId, Decimal128, DatetimeMS, Binary, Regex, Timestamp, DBRef, MinKey, MaxKey, Int64, str, float)

# A value's place: its parent's place, and its key there. Formatted only for an error message, because a path
# for each of 100,000 values under a long key would take gigabytes.
_Place = tuple[Any, Any]


def check(value: Any, path: str, *, depth: int = 1, any_keys: bool = False) -> None:
    """Raise Invalid naming a path in `value` that cannot be stored. `depth` is the level of `value`.

    `any_keys`: keys may start with `$` and contain `.`, because no path of an update will name them.
    """
    if isinstance(value, _CONTAINERS):
        _check_parts(value, path, depth, any_keys)
    else:
        _check_scalar(value, (None, path))


def _check_parts(value: Any, path: str, depth: int, any_keys: bool) -> None:
    """Check whole levels, one after the other, without a step of Python for each number of a drawing.

    The place of a problem is searched for only if there is one.
    """
    level: list[Any] = [value]
    memory, first = 0, depth
    while level:
        if depth > MAX_DEPTH:
            raise Invalid.field(shown(path), f"is nested deeper than {MAX_DEPTH} levels")
        memory += _CONTAINER * len(level) + _VALUE * sum(map(len, level))
        if memory > MAX_MEMORY:
            problem = f"takes {memory:,} bytes of memory or more, the limit is {MAX_MEMORY:,}: split it up"
            raise Invalid.field(shown(path), problem)
        dicts = [each for each in level if isinstance(each, dict)]
        lists = [each for each in level if not isinstance(each, dict)] if len(dicts) < len(level) else []
        level = []
        sound = _sound_keys(list(chain.from_iterable(dicts)), any_keys)
        for items in (map(dict.values, dicts), lists):
            values = list(chain.from_iterable(items))
            kinds = set(map(type, values))
            if kinds and not kinds <= _PLAIN:
                sound = sound and _sound(values, kinds)
                level += values if kinds <= _ONLY else [item for item in values if isinstance(item, _CONTAINERS)]
        if not sound:
            _find_problem(value, path, first, any_keys)
        depth += 1


def _sound_keys(keys: list[Any], any_keys: bool) -> bool:
    try:
        text = "\n".join(keys)
        text if text.isascii() else text.encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return "\0" not in text and (any_keys or not ("." in text or "\n$" in text or text[:1] == "$"))


def _sound(values: list[Any], kinds: set[type]) -> bool:
    """Whether the scalars among values can be stored. False also if that takes a closer look."""
    if not kinds <= _JSON:
        return False
    if int in kinds:
        integers = [item for item in values if type(item) is int]
        if min(integers) < _LOWEST or max(integers) > _HIGHEST:
            return False
    if str in kinds:
        text = "".join([item for item in values if type(item) is str])
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return False
    return True


def _find_problem(value: Any, path: str, depth: int, any_keys: bool) -> None:
    """Raise Invalid naming the place of a key or scalar that cannot be stored,
    if there is one in the value."""
    places: list[_Place] = [(None, path)]
    walks = [_items(value, places[-1], any_keys)]
    while walks:
        for key, item in walks[-1]:
            if isinstance(item, _CONTAINERS):
                if depth + len(walks) <= MAX_DEPTH:  # deeper levels are refused as such
                    places.append((places[-1], key))
                    walks.append(_items(item, places[-1], any_keys))
                    break
            elif type(item) not in _PLAIN:
                _check_scalar(item, (places[-1], key))
        else:
            walks.pop()
            places.pop()


def _items(value: Any, place: _Place, any_keys: bool) -> Iterator[tuple[Any, Any]]:
    if not isinstance(value, dict):
        return iter(enumerate(value))
    for key in value:
        _check_key(key, place, any_keys)
    return iter(value.items())


def native(value: Any, *, references: bool = False) -> Any:
    """Convert the driver's value in place: naive datetimes to aware UTC, Int64 to int. With `references`,
    objects that the driver read as DBRef, because they have `$ref` and `$id`, are objects again.
    """
    if references and isinstance(value, DBRef):
        value = dict(value.as_doc())
    if not isinstance(value, dict | list):
        if isinstance(value, datetime):
            return EPOCH + (value - _EPOCH_NAIVE) if value.tzinfo is None else value
        return int(value) if isinstance(value, Int64) else value
    level: list[Any] = [value]
    while level:
        dicts = [each for each in level if type(each) is dict]
        lists = [each for each in level if type(each) is list]
        values = list(chain(chain.from_iterable(map(dict.values, dicts)), chain.from_iterable(lists)))
        if not _JSON.issuperset(map(type, values)):
            for each in level:
                _convert(each, references)
            values = list(chain(chain.from_iterable(map(dict.values, dicts)), chain.from_iterable(lists)))
        level = [item for item in values if type(item) is dict or type(item) is list]
    return value


def _convert(container: Any, references: bool) -> None:
    items: Iterable[tuple[Any, Any]] = container.items() if isinstance(container, dict) else enumerate(container)
    for key, item in items:
        kind = type(item)
        if references and kind is DBRef:
            container[key] = dict(item.as_doc())
        elif kind is Int64:
            container[key] = int(item)
        elif kind is datetime and item.tzinfo is None:
            container[key] = EPOCH + (item - _EPOCH_NAIVE)


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
