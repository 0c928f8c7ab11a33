"""The one write builder: every update of ours goes through `build`, which checks it against the schema and stamps it.

Updates are MongoDB's own operators with MongoDB's field names: `{"$set": {"name": "Ada"}, "$inc": {"usedCount": 1}}`.
A whole document is never replaced, so fields that other applications keep in it survive.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid
from ximler.database import mixed
from ximler.database.codec import bare, codec_of, invalid_type
from ximler.schema.document import Collection, Document, extras

__all__ = ["Update", "build"]

Update = Mapping[str, Mapping[str, Any]]
_VALUES = frozenset({"$set", "$setOnInsert", "$min", "$max"})
_ELEMENTS = frozenset({"$push", "$addToSet", "$pull", "$pullAll", "$pop"})
_NUMBERS = frozenset({"$inc", "$mul"})
_OPERATORS = _VALUES | _ELEMENTS | _NUMBERS | {"$unset"}
_DECIDED_BY_US = frozenset({"_id", "createdAt", "updatedAt"})
_ANYTHING = inspect.AnyType()
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)


class _Place:
    """What the schema says of one path."""

    __slots__ = ("hint", "kind", "removable", "setter")

    def __init__(self, hint: Any, kind: inspect.Type, *, removable: bool, setter: str | None = None) -> None:
        self.hint = hint
        self.kind = kind
        self.removable = removable
        self.setter = setter


def build(collection: Collection[Any], update: Update, now: datetime) -> dict[str, dict[str, Any]]:
    """The update to send: checked, setters applied, None turned into `$unset`, `updatedAt` stamped.

    Raises Invalid naming the path of an unknown field, a wrong type, or a value that must not be stored.
    """
    document: type[Document] = collection.document
    built: dict[str, dict[str, Any]] = {}
    for operator, changes in update.items():
        if operator not in _OPERATORS:
            raise ValueError(f"{operator!r} is not an update operator: documents are patched, never replaced")
        for path, value in changes.items():
            if path in _DECIDED_BY_US and operator != "$setOnInsert":
                raise Invalid.field(path, "is decided by the database and cannot be changed")
            place = _place(document, path)
            if operator == "$unset" or (operator == "$set" and value is None and not _is_mixed(place)):
                if not place.removable:
                    raise Invalid.field(path, "is required and cannot be removed")
                built.setdefault("$unset", {})[path] = ""
            else:
                built.setdefault(operator, {})[path] = _value(operator, path, value, place)
    if "updatedAt" in collection.timestamps:
        built.setdefault("$set", {})["updatedAt"] = now
    return {operator: changes for operator, changes in built.items() if changes}


def _value(operator: str, path: str, value: Any, place: _Place) -> Any:
    if operator in _ELEMENTS:
        mixed.check(value, path, depth=3)
        return value
    if operator in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid.field(path, f"cannot be changed by {value!r}: a number is needed")
        if isinstance(bare(place.kind), inspect.IntType) and not isinstance(value, int):
            raise Invalid.field(path, f"cannot be changed by {value!r}: a whole number is needed")
        return value
    if _is_mixed(place):
        value = {} if value is None else value
        mixed.check(value, path, depth=path.count(".") + 2)
        return value
    if place.setter and isinstance(value, str):
        value = getattr(value, place.setter)()
    kind = bare(place.kind)
    if isinstance(value, Document) and isinstance(kind, inspect.StructType) and isinstance(value, kind.cls):
        return codec_of(type(value)).encode(value, _EPOCH_NAIVE)
    try:
        msgspec.convert(value, place.hint, builtin_types=(datetime, bytes))
    except msgspec.ValidationError as problem:
        raise invalid_type(problem, path) from None
    if isinstance(kind, inspect.StrType):
        if not place.removable and value == "":
            raise Invalid.field(path, "is required and must not be empty")
        mixed.check(value, path)
    elif isinstance(kind, inspect.DateTimeType):
        if value.tzinfo is None:
            raise Invalid.field(path, "is a time without a time zone: make it aware, for instance datetime.now(UTC)")
    elif isinstance(kind, inspect.ListType):
        mixed.check(value, path, depth=2)
    return value


@lru_cache(maxsize=2048)
def _place(document: type[Document], path: str) -> _Place:
    head, _, rest = path.partition(".")
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        if field.encode_name != head:
            continue
        marks = extras(document)[field.name]
        kind = bare(field.type)
        if marks.get("mixed"):
            for part in rest.split(".") if rest else ():
                mixed.check({part: None}, head)
            return _Place(Any, _ANYTHING, removable=True)
        if not rest:
            hint = get_type_hints(document, include_extras=True)[field.name]
            return _Place(hint, kind, removable=not field.required, setter=marks.get("setter"))
        if isinstance(kind, inspect.StructType):
            return _place(kind.cls, rest)
        if isinstance(kind, inspect.ListType) and (rest.isdigit() or rest in ("$", "$[]")):
            return _Place(Any, bare(kind.item_type), removable=False)
        break
    raise Invalid.field(path, f"is not a field of {document.__name__}")


def _is_mixed(place: _Place) -> bool:
    return place.kind is _ANYTHING
