"""Record patches: changes of a canvas's list of records, addressed by the records' ids.

    {"client": "tab-1", "seq": 7, "put": [{"id": "a", …}], "set": {"b": {"x": 5}}, "remove": ["c"]}

`put` writes whole records, `set` properties of existing ones, `remove` removes records. Of two patches the
later one wins, property by property. A deleted record stays deleted: a `set` that names a missing id is
rejected, the rest of its patch holds. The order of records is a property of theirs (a fractional index),
never their position in the list.

This module is pure: it parses patches, and composes those that are applied
together to one change with the same effect.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ximler.core import strict_json
from ximler.core.errors import Invalid
from ximler.database import mixed

__all__ = [
    "DEFAULT",
    "MAX_RECORDS",
    "MEDIA_TYPE",
    "Composed",
    "Declared",
    "Effect",
    "RecordPatch",
    "applied",
    "compose",
    "declared",
    "ids_of",
    "lists",
    "parse",
    "sender",
]

MEDIA_TYPE = "application/vnd.ximler.records+json"
MAX_RECORDS = 1000  # of a patch: the server compares each with each record of the canvas
_MAX_ID = 200  # characters
_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_KEYS = frozenset({"client", "seq", "put", "set", "remove"})
_MAX_SEQ = 2**53 - 1  # JavaScript's exact integers

Record = dict[str, Any]


class Declared(msgspec.Struct, frozen=True):
    """The canvas's property with the list of records, and the records' property with their id."""

    list: str = "elements"
    id: str = "id"


DEFAULT = Declared()


class RecordPatch(msgspec.Struct, frozen=True, kw_only=True):
    """`client` names the sender, and `seq` its patches in their order. An id occurs once."""

    client: str
    seq: int
    put: dict[str, Record]
    set: dict[str, Record]
    remove: list[str]


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of several patches in their order.

    `set` applies to those records that exist. `depends` has, for each patch, the ids that it sets if they
    exist before all patches, and `rejected` the ids that it sets in vain in any case.
    """

    put: dict[str, Record]
    set: dict[str, Record]
    remove: list[str]
    depends: list[list[str]]
    rejected: list[list[str]]

    @property
    def ids(self) -> int:
        return len(self.put) + len(self.set) + len(self.remove)


def declared(found: Any) -> Declared:
    """The list of records that a project declares in `settings.records`: `{"list": "shapes", "id": "key"}`.

    Raises Invalid for a declaration that cannot be used.
    """
    if found is None:
        return DEFAULT
    try:
        made = msgspec.convert(found, Declared)
    except msgspec.ValidationError as error:
        raise Invalid.field("settings.records", str(error)) from None
    if not (_NAME.fullmatch(made.list) and _NAME.fullmatch(made.id)):
        raise Invalid.field(
            "settings.records", "`list` and `id` must be letters, digits, _ and -, and begin with a letter"
        )
    return made


def sender(given: Any) -> tuple[str, int]:
    """The client and the number of a patch. Raises Invalid."""
    if not isinstance(given, dict):
        raise Invalid.field("patch", "must be an object with client, seq, and put, set or remove")
    client, seq = given.get("client"), given.get("seq")
    if not isinstance(client, str) or not _CLIENT.fullmatch(client):
        raise Invalid.field("client", "must be 1 to 40 letters, digits, _ and -")
    if type(seq) is not int or not 0 < seq <= _MAX_SEQ:
        raise Invalid.field("seq", "must be a whole number, from 1 on")
    return client, seq


def parse(given: Any, declared: Declared = DEFAULT) -> RecordPatch:
    """A patch of the records of `declared`, from JSON. Raises Invalid naming the place."""
    client, seq = sender(given)
    if unknown := given.keys() - _KEYS:
        raise Invalid.field(strict_json.pointer([min(unknown)])[1:], "is not part of a record patch")
    put, changed, removed = given.get("put", []), given.get("set", {}), given.get("remove", [])
    if not isinstance(put, list):
        raise Invalid.field("put", "must be an array of records")
    if not isinstance(changed, dict):
        raise Invalid.field("set", "must be an object of records' ids and their changed properties")
    if not isinstance(removed, list):
        raise Invalid.field("remove", "must be an array of ids")
    count = len(put) + len(changed) + len(removed)
    if count > MAX_RECORDS:
        raise Invalid.field("patch", f"names {count:,} records, the limit is {MAX_RECORDS:,}: send several")
    seen: set[str] = set()
    records: dict[str, Record] = {}
    for index, record in enumerate(put):
        if not isinstance(record, dict):
            raise Invalid.field(f"put/{index}", "must be an object")
        place = f"put/{index}/{declared.id}"
        records[_id(record.get(declared.id), place, seen)] = record
    for name, properties in changed.items():
        place = "set" + strict_json.pointer([name])
        _id(name, place, seen)
        if not isinstance(properties, dict):
            raise Invalid.field(place, "must be an object of properties")
        if declared.id in properties:
            raise Invalid.field(place, f"must not change the property {declared.id!r}, which is the record's id")
    for index, name in enumerate(removed):
        _id(name, f"remove/{index}", seen)
    mixed.check(list(records.values()), "put", depth=3)
    mixed.check(list(changed.values()), "set", depth=3)
    return RecordPatch(client=client, seq=seq, put=records, set=changed, remove=removed)


def compose(patches: Sequence[RecordPatch]) -> Composed:
    """One change with the effect of all patches, one after the other."""
    put: dict[str, Record] = {}
    changed: dict[str, Record] = {}
    removed: dict[str, None] = {}
    depends: list[list[str]] = []
    rejected: list[list[str]] = []
    for patch in patches:
        for name in patch.remove:
            put.pop(name, None)
            changed.pop(name, None)
            removed[name] = None
        for name, record in patch.put.items():
            changed.pop(name, None)
            removed.pop(name, None)
            put[name] = record
        missing, unknown = [], []
        for name, properties in patch.set.items():
            if name in put:
                put[name] = put[name] | properties
            elif name in removed:
                missing.append(name)
            else:
                unknown.append(name)
                changed[name] = changed.get(name, {}) | properties
        depends.append(unknown)
        rejected.append(missing)
    return Composed(put=put, set=changed, remove=list(removed), depends=depends, rejected=rejected)


def lists(canvas: Any, declared: Declared) -> bool:
    """Whether records of the canvas can be changed: it is an object, with the list in it, or none."""
    return isinstance(canvas, dict) and isinstance(canvas.get(declared.list), list | None)


def ids_of(canvas: Any, declared: Declared) -> set[str]:
    """The ids of the canvas's records."""
    listed = canvas.get(declared.list) if isinstance(canvas, dict) else None
    found = (each.get(declared.id) for each in listed or () if isinstance(each, dict))
    return {name for name in found if isinstance(name, str)}


class Effect:
    """Of changes of records, each with `put`, `set` and `remove`, one after the other,
    on a list that is read once."""

    def __init__(self, changes: Sequence[Any], declared: Declared) -> None:
        self.changes, self.declared = changes, declared
        self._gone: set[str] = set()
        self._set: dict[str, Record] = {}
        self._put: dict[str, Record] = {}  # in the order of those that are to be appended
        self._there: set[str] = set()  # of those, which replace a record
        for change in changes:
            for name in change.get("remove", ()):
                self._put.pop(name, None)
                self._set.pop(name, None)
                self._gone.add(name)
            for record in change.get("put", ()):
                self._set.pop(record[declared.id], None)
                self._put[record[declared.id]] = record
            for name, properties in change.get("set", {}).items():
                if name in self._put:
                    self._put[name] = self._put[name] | properties
                elif name not in self._gone:
                    self._set[name] = self._set.get(name, {}) | properties

    def on(self, listed: Iterable[Any]) -> list[Any]:
        """The records that are left of the next part of the list."""
        left = []
        for record in listed:
            name = record.get(self.declared.id) if isinstance(record, dict) else None
            if not isinstance(name, str):
                left.append(record)
            elif name in self._gone:
                continue
            elif name in self._put:
                self._there.add(name)
                left.append(self._put[name])
            else:
                left.append(record | self._set[name] if name in self._set else record)
        return left

    def added(self) -> list[Any]:
        """The records that are appended to the list, after all of it was read."""
        return [record for name, record in self._put.items() if name not in self._there]


def applied(canvas: Any, changes: Sequence[Any], declared: Declared) -> Any:
    """The canvas, an object, after changes of its records. It is changed in place."""
    effect = Effect(changes, declared)
    left = effect.on(canvas.get(declared.list) or [])
    canvas[declared.list] = left + effect.added()
    return canvas


def _id(name: Any, place: str, seen: set[str]) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID:
        raise Invalid.field(place, f"must be an id: a string of 1 to {_MAX_ID} characters")
    if name in seen:
        raise Invalid.field(place, "is an id that the patch names twice")
    seen.add(name)
    mixed.check(name, place)
    return name
