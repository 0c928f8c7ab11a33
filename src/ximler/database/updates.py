"""The write builder: `build` checks every update of ours against the schema and stamps it.

Updates are MongoDB's own operators with MongoDB's field names: `{"$set": {"name": "Ada"}, "$inc":
{"usedCount": 1}}`. A whole document is never replaced, so fields of other applications are kept.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from ximler.core.errors import Invalid
from ximler.database import mixed
from ximler.database.codec import bare, invalid_type
from ximler.schema.document import Collection, Document, extras

__all__ = ["Update", "build", "is_in_mixed", "nullable", "place"]

Update = Mapping[str, Mapping[str, Any]]
_VALUES = frozenset({"$set", "$setOnInsert", "$min", "$max"})
_ELEMENTS = frozenset({"$push", "$addToSet", "$pull", "$pullAll", "$pop"})
_NUMBERS = frozenset({"$inc", "$mul"})
_OPERATORS = _VALUES | _ELEMENTS | _NUMBERS | {"$unset"}
_DECIDED_BY_US = frozenset({"_id", "createdAt", "updatedAt"})
_MODIFIERS = {"$push": {"$each", "$position", "$slice", "$sort"}, "$addToSet": {"$each"}}
_ANYTHING = inspect.AnyType()
_NUMERIC = (inspect.IntType, inspect.FloatType, inspect.UnionType)


class _Place:
    """The schema of one path. Every value of the type `plain` is valid, if it can be stored."""

    __slots__ = ("hint", "kind", "plain", "removable", "required", "setter")

    def __init__(
        self, hint: Any, kind: inspect.Type, *, required: bool = False, removable: bool, setter: str | None = None
    ) -> None:
        self.hint = hint
        self.kind = kind
        self.required = required
        self.removable = removable
        self.setter = setter
        self.plain: type | None = None
        if kind == inspect.IntType():  # without bounds
            self.plain = int
        elif kind == inspect.StrType() and not required:
            self.plain = str
        elif kind == inspect.BoolType():
            self.plain = bool


_IN_MIXED = _Place(Any, _ANYTHING, removable=True)


def build(collection: Collection[Any], update: Update, now: datetime) -> dict[str, dict[str, Any]]:
    """The update to send: checked, setters applied, None turned into `$unset`, `updatedAt` stamped.

    Raises Invalid naming the path of an unknown field, a wrong type, or a value that cannot be stored.
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
            absent = value is None and operator in ("$set", "$setOnInsert") and not _is_mixed(place)
            if operator == "$unset" or absent:
                if not place.removable:
                    raise Invalid.field(path, "is required and cannot be removed")
                if operator != "$setOnInsert":
                    built.setdefault("$unset", {})[path] = ""
            else:
                checked = _value(operator, path, value, place)
                if operator == "$set" and isinstance(place.kind, inspect.StructType):
                    _spread(built, document, path, checked)
                else:
                    built.setdefault(operator, {})[path] = checked
    if "updatedAt" in _names(document):
        built.setdefault("$set", {})["updatedAt"] = now
    return {operator: changes for operator, changes in built.items() if changes}


def nullable(document: type[Document]) -> list[str]:
    """Paths where another application's null reads as the default but makes updates fail: MongoDB neither
    sets a path below it (`settings.theme`) nor increments it (`$inc`). Outermost first, without values inside
    Mixed fields.
    """
    paths = []
    for name in document.__struct_encode_fields__:
        place = _known(document, name)
        inner = place.kind.cls if isinstance(place.kind, inspect.StructType) else None
        if place.removable and (inner or _is_mixed(place) or isinstance(place.kind, (inspect.ListType, *_NUMERIC))):
            paths.append(name)
        if inner:
            paths += [f"{name}.{path}" for path in nullable(inner)]  # type: ignore[arg-type]  # sub-documents are Documents
    return paths


def _spread(built: dict[str, dict[str, Any]], document: type[Document], path: str, values: Mapping[str, Any]) -> None:
    """`$set` of a sub-document, field by field, so that other applications' fields inside it are kept."""
    kind = _place(document, path).kind
    for name in kind.cls.__struct_encode_fields__:  # type: ignore[attr-defined]  # a sub-document's is a StructType
        inner = f"{path}.{name}"
        if name not in values:
            built.setdefault("$unset", {})[inner] = ""
        elif isinstance(_place(document, inner).kind, inspect.StructType):
            _spread(built, document, inner, values[name])
        else:
            built.setdefault("$set", {})[inner] = values[name]


def _value(operator: str, path: str, value: Any, place: _Place) -> Any:
    if operator in _ELEMENTS:
        return _elements(operator, path, value, place)
    if operator in _NUMBERS:
        if not (_is_mixed(place) or isinstance(place.kind, _NUMERIC)):
            raise Invalid.field(path, f"{operator} needs a number, and this field is not one")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid.field(path, f"cannot be changed by {mixed.shown(repr(value))}: a number is needed")
        if isinstance(place.kind, inspect.IntType) and not isinstance(value, int):
            raise Invalid.field(path, f"cannot be changed by {value!r}: a whole number is needed")
        _check_number(value, path)
        return value
    if value is None and not _is_mixed(place):
        raise Invalid.field(path, f"{operator} needs a value to compare with")
    return _checked(path, value, place, depth=path.count(".") + 2)


def _elements(operator: str, path: str, value: Any, place: _Place) -> Any:
    """The operand of an operator on a list. Conditions (`$pull` with `$in`, …) are not among them."""
    if isinstance(place.kind, inspect.ListType):
        item = _item(place)
    elif _is_mixed(place):
        item = _IN_MIXED
    else:
        raise Invalid.field(path, f"{operator} needs a list, and this field is not one")
    depth = path.count(".") + 3
    if operator == "$pop":
        if type(value) is not int or value not in (1, -1):
            raise Invalid.field(path, "$pop takes 1 for the last element, -1 for the first")
        return value
    if operator == "$pullAll":
        return [_checked(path, each, item, depth=depth) for each in _listed(path, value)]
    if operator in _MODIFIERS and isinstance(value, Mapping) and "$each" in value:
        if unknown := value.keys() - _MODIFIERS[operator]:
            raise Invalid.field(path, f"{operator} knows no {mixed.shown(str(min(unknown)))}")
        return {**value, "$each": [_checked(path, each, item, depth=depth) for each in _listed(path, value["$each"])]}
    return _checked(path, value, item, depth=depth)


def _listed(path: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise Invalid.field(path, f"Expected array, got {type(value).__name__}")
    return list(value)


def _checked(path: str, value: Any, place: _Place, *, depth: int) -> Any:
    """The value to store at `path`, `depth` levels down. Raises Invalid."""
    kind = place.kind
    if type(value) is place.plain and place.setter is None:
        mixed.check(value, path)
        return value
    if kind is _ANYTHING:
        value = {} if value is None and "." not in path else value  # below the top level, null is stored as a value
        mixed.check(value, path, depth=depth)
        return value
    if place.setter and isinstance(value, str):
        value = getattr(value, place.setter)()
    if isinstance(kind, inspect.StructType):
        value = _sub_document(path, value, kind, depth=depth)
    elif isinstance(kind, inspect.ListType) and isinstance(value, list):
        item = bare(kind.item_type)
        if isinstance(item, inspect.StructType):
            value = [_sub_document(f"{path}.{n}", each, item, depth=depth + 1) for n, each in enumerate(value)]
    try:
        msgspec.convert(value, place.hint, builtin_types=(datetime, bytes))
    except msgspec.ValidationError as problem:
        raise invalid_type(problem, path) from None
    if isinstance(kind, inspect.StrType):
        if place.required and value == "":
            raise Invalid.field(path, "is required and must not be empty")
        mixed.check(value, path)
    elif isinstance(kind, inspect.DateTimeType):
        if trouble := mixed.time_problem(value):
            raise Invalid.field(path, trouble)
    elif isinstance(kind, inspect.ListType):
        mixed.check(value, path, depth=depth)
    elif isinstance(kind, _NUMERIC):
        _check_number(value, path)
    return value


def _sub_document(path: str, value: Any, kind: inspect.StructType, *, depth: int) -> Any:
    """A Struct or a mapping as a dict of checked fields; anything else unchanged, to be rejected later."""
    if isinstance(value, kind.cls):
        names = zip(kind.cls.__struct_fields__, kind.cls.__struct_encode_fields__, strict=True)
        value = {name: getattr(value, attribute) for attribute, name in names}
    if not isinstance(value, Mapping):
        return value
    checked = {}
    for name, item in value.items():
        here = f"{path}.{name}"
        if name not in kind.cls.__struct_encode_fields__:
            raise Invalid.field(mixed.shown(here), f"is not a field of {kind.cls.__name__}")
        if item is not None:
            checked[name] = _checked(here, item, _known(kind.cls, name), depth=depth + 1)
    return checked


def _check_number(value: float, path: str) -> None:
    if value - value:  # infinite, or not a number
        raise Invalid.field(path, "must be a finite number")
    mixed.check(value, path)


def _place(document: type[Document], path: str) -> _Place:
    """Raises Invalid for a path that the schema does not know."""
    head, dot, rest = path.partition(".")
    if dot and head in _mixed_fields(document):
        parts = rest.split(".")
        if "" in parts:
            raise Invalid.field(mixed.shown(path), "has an empty part")
        mixed.check(dict.fromkeys(parts), head)
        if len(parts) >= mixed.MAX_DEPTH:
            raise Invalid.field(head, f"is nested deeper than {mixed.MAX_DEPTH} levels")
        return _IN_MIXED
    return _known(document, path)


def is_in_mixed(document: type[Document], path: str) -> bool:
    """Whether the path is of a value inside a Mixed field, which no schema describes."""
    head, dot, _ = path.partition(".")
    return bool(dot) and head in _mixed_fields(document)


def place(document: type[Document], name: str) -> _Place:
    """The schema of a field by its name in the database. Raises Invalid for an unknown one."""
    return _known(document, name)


@lru_cache(maxsize=2048)  # only for schema paths: paths into Mixed values are users' and of any length
def _known(document: type[Document], path: str) -> _Place:
    head, dot, rest = path.partition(".")
    if dot:
        whole = _known(document, head)
        if isinstance(whole.kind, inspect.StructType):
            try:
                return _place(whole.kind.cls, rest)  # type: ignore[arg-type]  # sub-documents are Documents
            except Invalid as problem:
                fields = {f"{head}.{inner}": why for inner, why in problem.fields.items()}
                raise Invalid(f"{head}.{problem.message}", fields=fields) from None
        if isinstance(whole.kind, inspect.ListType) and (rest in ("$", "$[]") or (rest.isascii() and rest.isdecimal())):
            return _item(whole)
        raise Invalid.field(mixed.shown(path), f"is not a field of {document.__name__}")
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        if field.encode_name == head:
            marks = extras(document)[field.name]
            if marks.get("mixed"):
                return _IN_MIXED
            return _Place(
                get_type_hints(document, include_extras=True)[field.name],
                bare(field.type),
                required=field.required,
                removable=not field.required,
                setter=marks.get("setter"),
            )
    raise Invalid.field(mixed.shown(path), f"is not a field of {document.__name__}")


@cache
def _names(document: type[Document]) -> frozenset[str]:
    return frozenset(document.__struct_encode_fields__)


@cache
def _mixed_fields(document: type[Document]) -> frozenset[str]:
    names = dict(zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True))
    return frozenset(names[attribute] for attribute, marks in extras(document).items() if marks.get("mixed"))


def _item(place: _Place) -> _Place:
    """An element of a list."""
    assert isinstance(place.kind, inspect.ListType)  # noqa: S101 (for the type checker; callers have checked)
    return _Place(_item_hint(place.hint), bare(place.kind.item_type), removable=False)


def _item_hint(hint: Any) -> Any:
    if get_origin(hint) is list:
        return get_args(hint)[0]
    return next((found for part in get_args(hint) if (found := _item_hint(part)) is not None), None)


def _is_mixed(place: _Place) -> bool:
    return place.kind is _ANYTHING
