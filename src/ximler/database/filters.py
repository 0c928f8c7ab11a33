"""Filters are MongoDB's own; `check` compares them with the schema before they are sent.

A misspelt field, or a value of another type than the field's, would match nothing, without an error. Values
that match documents of other applications are accepted: null, the ends of BSON's order, ids of other types.
Pipelines of `aggregate` are not compared.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from bson.datetime_ms import DatetimeMS
from msgspec import inspect

from ximler.core.errors import Invalid
from ximler.database import mixed, updates
from ximler.database.codec import bare
from ximler.schema.document import Document

__all__ = ["check"]

_LOGICAL = frozenset({"$and", "$or", "$nor"})
_OTHERS = frozenset({  # of a filter, beside fields
    "$alwaysFalse", "$alwaysTrue", "$comment", "$expr", "$jsonSchema", "$sampleRate", "$text", "$where",
})  # fmt: skip
_ONE = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
_MANY = frozenset({"$in", "$nin", "$all"})
_UNCHECKED = frozenset({
    "$regex", "$options", "$type", "$size", "$mod", "$bitsAllClear", "$bitsAllSet", "$bitsAnyClear", "$bitsAnySet",
    "$geoIntersects", "$geoWithin", "$near", "$nearSphere", "$minDistance", "$maxDistance",
})  # fmt: skip
_ALWAYS = frozenset({type(None), MinKey, MaxKey})
_PATTERNS = frozenset({re.Pattern, Regex})


class _Field:
    """The values with which a field can be compared: instances of the classes `quick`, and those that `fits`
    accepts.
    """

    __slots__ = ("anything", "fits", "kind", "quick", "says")

    def __init__(self, kind: inspect.Type) -> None:
        self.kind = kind
        quick, self.fits, self.says = _accepted(kind)
        self.anything = quick is None
        self.quick = _ALWAYS if quick is None else quick | _ALWAYS


_fields: defaultdict[type[Document], dict[str, _Field]] = defaultdict(dict)


def check(document: type[Document], where: Mapping[str, Any]) -> None:
    """Raises Invalid naming the path of an unknown field, an unknown operator, or a value of another type."""
    known = _fields[document]
    for path, value in where.items():
        field = known.get(path)
        if field is None:
            field = _other(document, path, value)
        if field is not None and value.__class__ not in field.quick and not field.anything:
            _check(path, value, field)


def _other(document: type[Document], path: Any, value: Any) -> _Field | None:
    """The field of a path that is seen for the first time, or lies in a Mixed value;
    None for an operator, which is checked."""
    if not isinstance(path, str):
        raise Invalid.field(mixed.shown(repr(path)), "is not the name of a field")
    if path in _LOGICAL:
        if not isinstance(value, list | tuple) or not value or not all(isinstance(each, Mapping) for each in value):
            raise Invalid.field(path, "takes a list of one filter or more")
        for part in value:
            check(document, part)
        return None
    if path[:1] == "$":
        if path not in _OTHERS:
            raise Invalid.field(mixed.shown(path), "is not an operator of filters")
        return None
    if updates.is_in_mixed(document, path):
        return _MIXED
    field = _known(document, path)
    if not any(part.isdecimal() for part in path.split(".")):  # of indexes there is any number
        _fields[document][path] = field
    return field


def _check(path: str, value: Any, field: _Field) -> None:
    if value.__class__ is not dict:
        if field.fits(value):
            return
        if not isinstance(value, Mapping):
            raise _misfit(path, value, field)
    for operator, operand in value.items():
        if operator in _ONE:
            if operand.__class__ not in field.quick:
                _compare(path, operand, field)
        elif operator in _MANY:
            _compare_each(path, operator, operand, field)
        elif operator == "$exists":
            if not isinstance(operand, bool):
                raise Invalid.field(path, "$exists takes true or false")
        elif operator == "$not":
            _check(path, operand, field)
        elif operator == "$elemMatch":
            _match_element(path, operand, field)
        elif operator[:1] != "$":
            _compare(path, value, field)
            return
        elif operator not in _UNCHECKED:
            raise Invalid.field(path, f"{mixed.shown(operator)} is not an operator of filters")


def _compare_each(path: str, operator: str, operand: Any, field: _Field) -> None:
    if operand.__class__ is not list and not isinstance(operand, list | tuple):
        raise Invalid.field(path, f"{operator} takes a list")
    if path == "_id" or set(map(type, operand)) <= field.quick:  # lists of ids have been read
        return
    for each in operand:
        if operator == "$all" and isinstance(each, Mapping) and "$elemMatch" in each:
            _match_element(path, each["$elemMatch"], field)
        elif each.__class__ not in _PATTERNS:
            _compare(path, each, field)


def _match_element(path: str, operand: Any, field: _Field) -> None:
    if not isinstance(operand, Mapping):
        raise Invalid.field(path, "$elemMatch takes a filter")
    item = bare(field.kind.item_type) if isinstance(field.kind, inspect.ListType) else inspect.AnyType()
    if isinstance(item, inspect.StructType):
        check(item.cls, operand)  # type: ignore[arg-type]  # sub-documents are Documents
    elif operand:
        _check(path, operand, _Field(item))


def _compare(path: str, value: Any, field: _Field) -> None:
    if not (value.__class__ in field.quick or field.fits(value)):
        raise _misfit(path, value, field)


def _misfit(path: str, value: Any, field: _Field) -> Invalid:
    return Invalid.field(path, f"is {field.says}, and cannot be compared with {mixed.shown(repr(value))}")


def _known(document: type[Document], path: str) -> _Field:
    """Raises Invalid for a path that the schema does not know."""
    if path == "__v":  # of the documents that Mongoose wrote
        return _Field(inspect.IntType())
    head, dot, rest = path.partition(".")
    place = updates.place(document, head)
    if path == "_id":  # other applications may have stored ids of any type, which are used as they were read
        return _Field(place.kind if _is_object_id(place.kind) else inspect.AnyType())
    if not dot:
        return _Field(place.kind)
    inner = place.kind
    while isinstance(inner, inspect.ListType):
        index, more, after = rest.partition(".")
        inner = bare(inner.item_type)
        if index.isascii() and index.isdecimal():
            if not more:
                return _Field(inner)
            rest = after
    if isinstance(inner, inspect.StructType):
        try:
            return _known(inner.cls, rest)  # type: ignore[arg-type]  # sub-documents are Documents
        except Invalid:
            pass
    raise Invalid.field(mixed.shown(path), f"is not a field of {document.__name__}")


def _is_object_id(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.CustomType) and kind.cls is ObjectId


def _accepted(kind: inspect.Type) -> tuple[frozenset[type] | None, Callable[[Any], bool], str]:
    """The classes of ordinary values (None: every class), a test of others, and a name for people."""
    match kind:
        case inspect.StrType():
            return frozenset({str}) | _PATTERNS, lambda value: isinstance(value, str), "text"
        case inspect.IntType() | inspect.FloatType():
            return frozenset({int, float, Int64, Decimal128}), _is_number, "a number"
        case inspect.BoolType():
            return frozenset({bool}), _never, "true or false"
        case inspect.DateTimeType():
            # Naive ones are in UTC to the driver, which returns them so where no Struct is made of them.
            return frozenset({datetime, DatetimeMS}), lambda value: isinstance(value, datetime), "a time"
        case inspect.LiteralType(values=values):
            return _PATTERNS, _one_of(values), f"one of {', '.join(map(str, values))}"
        case inspect.EnumType(cls=cls):
            values = tuple(each.value for each in cls)
            return frozenset({cls}) | _PATTERNS, _one_of(values), f"one of {', '.join(map(str, values))}"
        case inspect.CustomType(cls=cls) if cls is ObjectId:
            # Other applications may have stored any other id, but not an ObjectId's digits as text.
            return frozenset({cls}), lambda value: not (isinstance(value, str) and cls.is_valid(value)), "an ObjectId"
        case inspect.CustomType(cls=cls):
            return frozenset({cls}), lambda value: isinstance(value, cls), f"of the type {cls.__name__}"
        case inspect.BytesType():
            return frozenset({bytes}), lambda value: isinstance(value, bytes), "binary data"
        case inspect.ListType(item_type=item_type):
            item = _Field(bare(item_type))
            if item.anything:
                return None, _always, "any value"
            return item.quick | {list, tuple}, item.fits, f"a list, of {item.says}"
        case inspect.StructType():
            return frozenset(), lambda value: isinstance(value, Mapping), "a sub-document"
        case inspect.UnionType(types=types):
            parts = [_Field(bare(each)) for each in types if not isinstance(each, inspect.NoneType)]
            if any(part.anything for part in parts):
                return None, _always, "any value"
            says = " or ".join(dict.fromkeys(part.says for part in parts))
            quick = frozenset[type]().union(*(part.quick for part in parts))
            return quick, lambda value: any(part.fits(value) for part in parts), says
        case _:
            return None, _always, "any value"


def _one_of(values: tuple[Any, ...]) -> Callable[[Any], bool]:
    known = frozenset(values)
    return lambda value: isinstance(value, str | int) and value in known


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _always(_: Any) -> bool:
    return True


def _never(_: Any) -> bool:
    return False


_MIXED = _Field(inspect.AnyType())
