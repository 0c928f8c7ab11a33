"""JSON that is stored as it was sent: decoded strictly, and rejected with its place.

Decoders differ where RFC 8259 is silent: which of two equal keys wins, whether `NaN` is a number, how `1e400`
and half a surrogate pair are read. Each case loses data without an error. This decoder rejects them all, as
well as a byte order mark and nesting beyond a limit.

A correct text costs msgspec's decoding, one walk and, if strings contain colons, encoding it. The place of a
problem is searched for only afterwards, by the standard library's parser, which accepts all of these. Limits
are checked before the work that they bound: decoding 20 MB of `[]` takes a second, and 460 MB of memory.
"""

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec

from ximler.core.garbage import paused_collection

__all__ = ["NotJson", "decode", "pointer"]

_MAX_DEPTH = 100  # what MongoDB stores
# Possessive: a way back from each escape would take 160 bytes of memory.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

# Decoders read the text `-0` as an integer, which has no negative zero. Possessive: no backtracking.
# An exponent (`1e-0`) is none.
_NEGATIVE_ZERO = re.compile(rb"(?<![eE])-0(?=[\s,\]}]|\Z)")
# To the end if there is none: a search that begins inside a string would take the string's text for numbers.
_UP_TO_ONE = re.compile(
    rb'(?:[^"-]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?<=[eE])-|-(?!0(?:[\s,\]}]|\Z)))*+(?:(-0)(?=[\s,\]}]|\Z)|\Z)',
    re.DOTALL,
)

_MOST_ZEROS = 20_000  # 0.03 s

_PIECE = 1 << 20

_ESCAPED_COLON = rb"\u003"  # and then an A, in either case

_NUMBERS = frozenset({int, float})
_CONTAINERS = frozenset({dict, list})

_SEARCHED = 1_600_000  # values of a text whose problem is searched for
_LARGE = 1_000_000  # bytes

# A value's place: its parent's place, and its key or index there.
_Place = tuple[Any, Any]


class NotJson(ValueError):
    """The text is not JSON that can be kept. `place` is a JSON Pointer to the value,
    or a byte, as `byte 12`."""

    def __init__(self, problem: str, place: str) -> None:
        super().__init__(f"{problem} (at {place})" if place else problem)
        self.problem = problem
        self.place = place

    def about(self, subject: str) -> str:
        """A sentence about the whole text, which it calls `subject`, or about a value in it."""
        if self.place.startswith("/"):
            return f"{self.place} in {subject[:1].lower()}{subject[1:]} {self.problem}"
        return f"{subject} {self.problem}" + (f", at {self.place}" if self.place else "")


def decode(data: bytes, *, values: int, containers: int, depth: int = _MAX_DEPTH) -> Any:
    """The value of a JSON text in UTF-8, with at most so many values,
    and objects and arrays among them. Raises NotJson.

    Integers keep all their digits. Numbers with a fraction or an exponent become doubles, and so do the
    first 20,000 `-0` of a text. Others become 0.
    """
    if data.startswith(codecs.BOM_UTF8):
        raise NotJson("starts with a byte order mark: send UTF-8 without one", "byte 0")
    if _brackets(data) > containers and _exceeds(data, containers):
        raise NotJson(f"has more objects and arrays than the limit of {containers:,}", "")
    try:
        with paused_collection(len(data) > _LARGE):
            value = msgspec.json.decode(data)
            if _NEGATIVE_ZERO.search(data):
                value = msgspec.json.decode(_UP_TO_ONE.sub(_as_double, data, _MOST_ZEROS))
    except RecursionError:
        raise _too_deep(depth, "") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if not data.strip():
            raise NotJson("is empty", "") from None
        raise _problem(data, depth) or NotJson(f"is not JSON: {error}", "") from None
    keys = _keys(value, depth, values)
    if keys != data.count(b":") and _repeats(data, value, keys):
        raise _problem(data, depth) or NotJson("has a key twice", "")
    return value


def _as_double(found: re.Match[bytes]) -> bytes:
    return found[0] + b".0" if found[1] else found[0]


def pointer(keys: Iterable[Any]) -> str:
    """The JSON Pointer (RFC 6901) of a value: shortened in the middle, as valid Unicode."""
    path = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
    if len(path) > 120:
        path = f"{path[:100]}…{path[-16:]}"
    return path.encode("utf-8", "backslashreplace").decode()


def _repeats(data: bytes, value: Any, keys: int) -> bool:
    """Whether a text has more keys than its value. Outside of strings, a colon follows each key."""
    if _ESCAPED_COLON in data:
        return keys != _STRING.sub(b"", data).count(b":")
    return data.count(b":") != msgspec.json.encode(value).count(b":")  # takes a tenth of the other's time


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _exceeds(data: bytes, containers: int) -> bool:
    """Whether more objects and arrays than that begin outside of strings. Ends at the first too many."""
    bare = data.replace(rb"\\", b"").replace(rb"\"", b"")
    found = within = 0
    for start in range(0, len(bare), _PIECE):
        pieces = bare[start : start + _PIECE].split(b'"')
        found += _brackets(b"".join(pieces[within::2]))
        if found > containers:
            return True
        within ^= not len(pieces) % 2  # an odd number of quotes
    return False


def _keys(value: Any, depth: int, values: int) -> int:
    """How many keys all objects have together.
    Raises NotJson for nesting beyond `depth`, and for too many values."""
    count = total = level = 0
    containers = [value] if type(value) in _CONTAINERS else []
    while containers:  # a level at a time, without a step of Python for each number
        level += 1
        if level > depth:
            raise _too_deep(depth, _pointer(_place_at(value, level)))
        total += sum(map(len, containers))
        if total > values:
            raise NotJson(f"has more values than the limit of {values:,}", "")
        dicts = [each for each in containers if type(each) is dict]
        lists = [each for each in containers if type(each) is list]
        count += sum(map(len, dicts))
        items = chain(chain.from_iterable(map(dict.values, dicts)), chain.from_iterable(lists))
        containers = [item for item in items if type(item) is list or type(item) is dict]
    return count


def _place_at(value: Any, level: int) -> _Place | None:
    """The place of an object or array at this level."""
    walks: list[tuple[_Place | None, Iterator[tuple[Any, Any]]]] = [(None, _items(value))]
    while len(walks) < level:
        place, walk = walks[-1]
        for key, item in walk:
            if type(item) in _CONTAINERS:
                walks.append(((place, key), _items(item)))
                break
        else:
            walks.pop()
    return walks[-1][0]


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter(value.items() if isinstance(value, dict) else enumerate(value))


class _Twice:
    """In place of an object that has a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


class _NotANumber:
    """In place of NaN and Infinity."""

    def __init__(self, text: str) -> None:
        self.text = text


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return _Twice(key)
        seen.add(key)
    raise AssertionError("a dict has fewer keys than pairs only if one is repeated")


_lenient = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_NotANumber)


def _problem(data: bytes, depth: int) -> NotJson | None:
    """A problem of a text. None if the standard library finds none,
    and for a text that may have too many values."""
    if data.count(b",") > _SEARCHED:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return NotJson(f"is not UTF-8: {error.reason}", f"byte {error.start}")
    try:
        value = _lenient.decode(text)
    except json.JSONDecodeError as error:
        return NotJson(f"is not JSON: {error.msg}", f"byte {len(text[: error.pos].encode())}")
    except RecursionError:
        return _too_deep(depth, "")
    except ValueError as error:  # an integer of thousands of digits
        return NotJson(f"has a number that cannot be read: {error}", "")
    if not isinstance(value, dict | list):
        return _named(value, None)
    pending: list[tuple[Any, _Place | None]] = [(value, None)]
    while pending:
        current, place = pending.pop()
        items: Iterable[tuple[Any, Any]] = current.items() if isinstance(current, dict) else enumerate(current)
        for key, item in items:
            if type(key) is str and (problem := _problem_of(key)) is not None:
                return NotJson(f"the key {problem}", _pointer((place, key)))
            if isinstance(item, dict | list):
                pending.append((item, (place, key)))  # only these: a tuple for each number would take seconds
            elif type(item) in _NUMBERS and abs(item) != math.inf:
                continue  # most of a large canvas
            elif (found := _named(item, (place, key))) is not None:
                return found
    return None


def _named(value: Any, place: _Place | None) -> NotJson | None:
    problem = _problem_of(value)
    if problem is None:
        return None
    return NotJson(problem, _pointer((place, value.key) if isinstance(value, _Twice) else place))


def _problem_of(value: Any) -> str | None:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"contains an unpaired surrogate at character {error.start}: it is not valid Unicode"
    if isinstance(value, float) and math.isinf(value):
        return "is a number beyond the range of a double: send it as a string"
    if isinstance(value, _NotANumber):
        return f"is {value.text}, which JSON does not have: send null or a string"
    if isinstance(value, _Twice):
        return "is a key that its object has twice"
    return None


def _too_deep(depth: int, place: str) -> NotJson:
    return NotJson(f"is nested deeper than {depth} levels", place)


def _pointer(place: _Place | None) -> str:
    """Of the whole text: empty in RFC 6901, and no help in a message."""
    keys = []
    while place is not None:
        place, key = place
        keys.append(key)
    return pointer(reversed(keys)) or "the top"
