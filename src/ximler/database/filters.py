"""Filters are MongoDB's own; `check` compares them with the schema before they are sent.

A misspelt field, or a value of another type than the field's, would match nothing, silently. A misspelt
operator would be an error of the server.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from bson import Decimal128, ObjectId, Regex
from msgspec import inspect

from ximler.core.errors import Invalid
from ximler.database import mixed, updates
from ximler.database.codec import bare
from ximler.schema.document import Document

__all__ = ["check"]

_LOGICAL = frozenset({"$and", "$or", "$nor"})
_OTHERS = frozenset({"$expr", "$text", "$comment", "$jsonSchema"})  # of a filter, beside fields
_ONE = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
_MANY = frozenset({"$in", "$nin", "$all"})
_UNCHECKED = frozenset({
    "$regex", "$options", "$type", "$size", "$mod", "$bitsAllClear", "$bitsAllSet", "$bitsAnyClear", "$bitsAnySet",
    "$geoIntersects", "$geoWithin", "$near", "$nearSphere", "$minDistance", "$maxDistance",
})  # fmt: skip


class _Field:
    """The values with which a field can be compared: instances of `quick`, and those that `fits` accepts."""

    __slots__ = ("fits", "kind", "quick", "says")

    def __init__(self, kind: inspect.Type) -> None:
        self.kind = kind
        self.quick, self.fits, self.says = _accepted(kind)


def check(document: type[Document], where: Mapping[str, Any]) -> None:
    """Raises Invalid naming the path of an unknown field, an unknown operator, or a value of another type."""
    for path, value in where.items():
        if not isinstance(path, str):
            raise Invalid.field(mixed.shown(repr(path)), "is not the name of a field")
        if path in _LOGICAL:
            if not isinstance(value, list | tuple) or not value or not all(isinstance(each, Mapping) for each in value):
                raise Invalid.field(path, "takes a list of one filter or more")
            for part in value:
                check(document, part)
        elif path[:1] != "$":
            field = _field(document, path)
            if value.__class__ is not field.quick and field.quick is not Any:
                _check(path, value, field)
        elif path not in _OTHERS:
            raise Invalid.field(mixed.shown(path), "is not an operator of filters")


def _check(path: str, value: Any, field: _Field) -> None:
    if not isinstance(value, Mapping) or not next(iter(value), "").startswith("$"):
        _compare(path, value, field)
        return
    for operator, operand in value.items():
        if operator in _ONE:
            _compare(path, operand, field)
        elif operator in _MANY:
            if not isinstance(operand, list | tuple):
                raise Invalid.field(path, f"{operator} takes a list")
            for each in operand:
                _compare(path, each, field)
        elif operator == "$exists":
            if not isinstance(operand, bool):
                raise Invalid.field(path, "$exists takes true or false")
        elif operator == "$not":
            _check(path, operand, field)
        elif operator == "$elemMatch":
            _match_element(path, operand, field)
        elif operator not in _UNCHECKED:
            raise Invalid.field(path, f"{mixed.shown(str(operator))} is not an operator of filters")


def _match_element(path: str, operand: Any, field: _Field) -> None:
    if not isinstance(operand, Mapping):
        raise Invalid.field(path, "$elemMatch takes a filter")
    item = bare(field.kind.item_type) if isinstance(field.kind, inspect.ListType) else inspect.AnyType()
    if isinstance(item, inspect.StructType):
        check(item.cls, operand)  # type: ignore[arg-type]  # sub-documents are Documents
    elif operand:
        _check(path, operand, _Field(item))


def _compare(path: str, value: Any, field: _Field) -> None:
    if value is not None and value.__class__ is not field.quick and not field.fits(value):
        raise Invalid.field(path, f"is {field.says}, and cannot be compared with {mixed.shown(repr(value))}")


@lru_cache(maxsize=2048)
def _known(document: type[Document], path: str) -> _Field:
    if path == "__v":  # of the documents that Mongoose wrote
        return _Field(inspect.IntType())
    head, dot, rest = path.partition(".")
    place = updates.place(document, head)
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
            return _known(inner.cls, rest)
        except Invalid:
            pass
    raise Invalid.field(mixed.shown(path), f"is not a field of {document.__name__}")


def _field(document: type[Document], path: str) -> _Field:
    """Raises Invalid for a path that the schema does not know. Paths into Mixed fields are of any length."""
    return _MIXED if "." in path and updates.is_in_mixed(document, path) else _known(document, path)


def _accepted(kind: inspect.Type) -> tuple[Any, Callable[[Any], bool], str]:
    """The class of ordinary values (Any: every value), a test of others, and a name for people."""
    match kind:
        case inspect.StrType():
            return str, lambda value: isinstance(value, str | re.Pattern | Regex), "text"
        case inspect.IntType() | inspect.FloatType():
            return int, _is_number, "a number"
        case inspect.BoolType():
            return bool, lambda value: isinstance(value, bool), "true or false"
        case inspect.DateTimeType():
            return None, _is_time, "a time with a time zone"
        case inspect.LiteralType(values=values):
            return (
                None,
                lambda value: isinstance(value, re.Pattern | Regex) or value in values,
                (f"one of {', '.join(map(str, values))}"),
            )
        case inspect.EnumType(cls=cls):
            return (
                cls,
                lambda value: value in {each.value for each in cls},
                (f"one of {', '.join(str(each.value) for each in cls)}"),
            )
        case inspect.CustomType(cls=cls) if cls is ObjectId:
            # Other applications may have stored any other id, but not an ObjectId's digits as text.
            return cls, lambda value: not (isinstance(value, str) and ObjectId.is_valid(value)), "an ObjectId"
        case inspect.CustomType(cls=cls):
            return cls, lambda value: isinstance(value, cls), f"of the type {cls.__name__}"
        case inspect.BytesType():
            return bytes, lambda value: isinstance(value, bytes), "binary data"
        case inspect.ListType(item_type=item_type):
            item = _Field(bare(item_type))
            return list, lambda value: isinstance(value, list | tuple) or _fits(item, value), f"a list, of {item.says}"
        case inspect.StructType():
            return dict, lambda value: isinstance(value, Mapping), "a sub-document"
        case inspect.UnionType(types=types):
            parts = [_Field(bare(each)) for each in types if not isinstance(each, inspect.NoneType)]
            says = " or ".join(dict.fromkeys(part.says for part in parts))
            return None, lambda value: any(_fits(part, value) for part in parts), says
        case _:
            return Any, lambda _: True, "any value"


def _fits(field: _Field, value: Any) -> bool:
    return field.quick is Any or value.__class__ is field.quick or field.fits(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, Decimal128):
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_time(value: Any) -> bool:
    return isinstance(value, datetime) and mixed.time_problem(value) is None


_MIXED = _Field(inspect.AnyType())
