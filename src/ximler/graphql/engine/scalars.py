"""Scalars beyond GraphQL's own, and their Python values.

`ID` needs no code here: graphql-core serialises any object with its own `__str__`, so an ObjectId becomes its
hex string. As an input an ID stays a str, which the domain validates.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from graphql import (
    BooleanValueNode,
    ConstValueNode,
    EnumValueNode,
    FloatValueNode,
    GraphQLEnumType,
    GraphQLError,
    GraphQLScalarType,
    IntValueNode,
    ListValueNode,
    NullValueNode,
    ObjectValueNode,
    StringValueNode,
)

__all__ = ["SCALARS", "SDL", "bounded_enum", "format_datetime", "write_instant"]

SDL = '''
"""
An instant, RFC 3339. Written in UTC with milliseconds, `2026-01-31T12:00:00.000Z`; read with any offset.
In TypeScript: `string`.
"""
scalar DateTime @specifiedBy(url: "https://www.rfc-editor.org/rfc/rfc3339#section-5.6")

"A calendar day, UTC unless its field says otherwise: `2026-01-31` (RFC 3339, full-date). In TypeScript: `string`."
scalar Date @specifiedBy(url: "https://www.rfc-editor.org/rfc/rfc3339#section-5.6")

"""
Any JSON value. Of values that other applications stored, ids are hexadecimal text, times RFC 3339 and binary data base64;
other types that JSON lacks are written as MongoDB's Extended JSON, relaxed: `{"$numberDecimal": "1.5"}`.
In TypeScript: `string | number | boolean | object | null`.
"""
scalar JSON @specifiedBy(url: "https://www.rfc-editor.org/rfc/rfc8259")

"""
A 53-bit integer, for values beyond Int's 32 bits such as sizes in bytes: a JSON number from -(2^53 - 1) to 2^53 - 1,
which JavaScript reads exactly. In TypeScript: `number`.
"""
scalar Long
'''

_encode = msgspec.json.Encoder().encode
_written: dict[datetime, str] = {}
_MOST_WRITTEN = 10_000
_LONG_LIMIT = 2**53 - 1
_FULL_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def format_datetime(value: Any) -> str:
    """Format an aware datetime. Raises TypeError for a naive one, which is a bug."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise TypeError(f"DateTime needs an aware datetime, got {value!r}")
    return write_instant(value if value.tzinfo is UTC else value.astimezone(UTC))


def write_instant(value: datetime) -> str:
    """As `isoformat` with milliseconds, in a tenth of its time. The datetime must be in UTC.

    Recent results are kept, because clients list the same objects again.
    """
    written = _written.get(value)
    if written is None:
        text = _encode(value)  # "2026-01-31T12:00:00.123456Z", or without a fraction where it is 0
        written = f"{text[1:24].decode()}Z" if value.microsecond else f"{text[1:20].decode()}.000Z"
        if len(_written) >= _MOST_WRITTEN:
            _written.clear()
        _written[value] = written
    return written


def _read_datetime(value: Any) -> datetime:
    if isinstance(value, str) and len(value) <= 64 and _RFC3339.fullmatch(value):
        try:
            instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
            return instant.replace(microsecond=instant.microsecond // 1000 * 1000)
        except (ValueError, OverflowError) as error:
            raise GraphQLError(f"DateTime cannot represent {_shown(value)}: {error}") from error
    raise GraphQLError(f"DateTime cannot represent {_shown(value)}: expected RFC 3339, as in 2026-01-31T12:00:00.000Z")


def _write_date(value: Any) -> str:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise TypeError(f"Date needs a date, got {value!r}")
    return value.isoformat()


def _read_date(value: Any) -> date:
    if isinstance(value, str) and _FULL_DATE.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise GraphQLError(f"Date cannot represent {_shown(value)}: {error}") from error
    raise GraphQLError(f"Date cannot represent {_shown(value)}: expected a day as in 2026-01-31")


def _date_literal(node: ConstValueNode) -> date:
    if not isinstance(node, StringValueNode):
        raise GraphQLError("Date cannot represent this literal: expected a day as in 2026-01-31", node)
    return _read_date(node.value)


def _write_long(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Node.js stores integers beyond 32 bits as doubles
    if isinstance(value, int) and not isinstance(value, bool) and -_LONG_LIMIT <= value <= _LONG_LIMIT:
        return int(value)  # the driver's Int64 is a subclass
    raise TypeError(f"Long cannot represent {_shown(value)}")


def _read_long(value: Any) -> int:
    try:
        return _write_long(value)
    except TypeError as error:
        raise GraphQLError(f"{error}: expected a whole number within ±(2^53 - 1)") from None


def _long_literal(node: ConstValueNode) -> int:
    if not isinstance(node, IntValueNode | FloatValueNode) or len(node.value) > 20:
        raise GraphQLError("Long cannot represent this literal: expected a whole number within ±(2^53 - 1)", node)
    return _read_long(int(node.value) if isinstance(node, IntValueNode) else float(node.value))


def _datetime_literal(node: ConstValueNode) -> datetime:
    if not isinstance(node, StringValueNode):
        raise GraphQLError("DateTime cannot represent this literal: expected a string in RFC 3339", node)
    return _read_datetime(node.value)


def _json_literal(node: ConstValueNode) -> Any:
    """The JSON value of a literal. The parser bounds its nesting."""
    match node:
        case NullValueNode():
            return None
        case BooleanValueNode() | StringValueNode():
            return node.value
        case IntValueNode():
            if len(node.value) > 20:
                raise GraphQLError("JSON cannot represent an integer of more than 64 bits", node)
            return -0.0 if node.value == "-0" else int(node.value)
        case FloatValueNode():
            number = float(node.value)
            if not math.isfinite(number):
                raise GraphQLError("JSON cannot represent a number beyond a double's range", node)
            return number
        case ListValueNode():
            return [_json_literal(item) for item in node.values]
        case ObjectValueNode():
            return {field.name.value: _json_literal(field.value) for field in node.fields}
        case EnumValueNode():
            raise GraphQLError(f"JSON cannot represent the bare name {node.value}: write it in quotes", node)
    raise GraphQLError("JSON cannot represent this literal", node)


def _shown(value: Any) -> str:
    """The value for an error message, truncated before quoting; containers are not shown. A value may be 20
    MB.
    """
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def bounded_enum(type_: GraphQLEnumType) -> Callable[..., Any]:
    """Input coercion of an enum without the search for similar names if the text is longer than any name.

    For a megabyte of text that search takes a third of a second.
    """
    coerce, longest = type_.coerce_input_value, 2 * max(map(len, type_.values))

    def coerce_input_value(value: Any, hide_suggestions: bool = False) -> Any:
        if isinstance(value, str) and len(value) > longest:
            raise GraphQLError(f"Value {_shown(value)} does not exist in '{type_.name}' enum.")
        return coerce(value, hide_suggestions)

    return coerce_input_value


def _as_it_is(value: Any) -> Any:
    """Input JSON is already decoded; the response's encoder handles database types inside output JSON."""
    return value


SCALARS: Mapping[str, GraphQLScalarType] = {
    "Date": GraphQLScalarType(
        "Date",
        coerce_output_value=_write_date,
        coerce_input_value=_read_date,
        coerce_input_literal=_date_literal,
    ),
    "DateTime": GraphQLScalarType(
        "DateTime",
        coerce_output_value=format_datetime,
        coerce_input_value=_read_datetime,
        coerce_input_literal=_datetime_literal,
    ),
    "JSON": GraphQLScalarType(
        "JSON",
        coerce_output_value=_as_it_is,
        coerce_input_value=_as_it_is,
        coerce_input_literal=_json_literal,
    ),
    "Long": GraphQLScalarType(
        "Long",
        coerce_output_value=_write_long,
        coerce_input_value=_read_long,
        coerce_input_literal=_long_literal,
    ),
}
"""Coercion by scalar name. `schema.build` copies these functions onto the types declared in SDL."""
