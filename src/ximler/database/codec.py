"""Converts between BSON's dicts and our Structs at driver speed: one generated decoder and encoder per class.

Reading is tolerant, because other applications write these collections too: a missing or null field takes its
default, a double reads as an int, a Decimal128 as a number, unknown fields are ignored. This costs the common
case nothing: the generated decoder makes the datetimes aware and converts; the tolerant path runs only when
that fails. (The driver's own `tz_aware=True` costs a read 75 % more; an ODM 4 to 8 times as much: `make
bench`.)

Writing is strict: a wrong type, an empty required string, a naive datetime or a bad Mixed key is Invalid, by
name.
"""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from struct import Struct as Layout
from typing import Any, Generic, TypeVar

import bson
import msgspec
import structlog
from bson import Decimal128, ObjectId
from bson.codec_options import CodecOptions
from msgspec import inspect

from ximler.core.clock import EPOCH
from ximler.core.errors import Conflict, Invalid
from ximler.core.rows import Key
from ximler.database import mixed, monitoring
from ximler.schema.document import AT_WRITE, Document, extras

__all__ = [
    "Codec",
    "UnreadableDocument",
    "apart",
    "bare",
    "check_storable",
    "codec_of",
    "few_at_a_time",
    "invalid_type",
    "object_id_in",
    "part_of",
]

D = TypeVar("D", bound=Document)
_log = structlog.get_logger("ximler.database")
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)
_STR_METHODS = {"strip", "lower", "upper"}
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


class UnreadableDocument(Conflict):
    """A stored document that even tolerant reading cannot decode. It stays unchanged; repair it in the
    database.
    """

    code = "DOCUMENT_UNREADABLE"


class Codec(Generic[D]):
    """`decode(raw)` takes over the dict; `encode(document, now)` returns a new one, ready for BSON.

    `now` is naive UTC in whole milliseconds, as are the datetimes that `encode` returns.
    """

    __slots__ = ("check", "decode", "document", "encode", "fields", "keys")

    def __init__(self, document: type[D]) -> None:
        self.document = document
        self.fields = {field.encode_name: field for field in inspect.type_info(document).fields}  # type: ignore[attr-defined]  # a Struct's info has fields
        self.decode: Callable[[dict[str, Any]], D] = _compile_decoder(document)
        self.encode: Callable[[D, datetime], dict[str, Any]] = _compile_encoder(document)
        self.keys: dict[str, Key] = {}
        self.check: Callable[[dict[str, Any]], bool] | None = _compile_check(document, self.keys)
        """Whether `decode` would copy each value unchanged;
        None for documents of other than simple fields."""


_codecs: dict[type[Document], Codec[Any]] = {}


def codec_of(document: type[D]) -> Codec[D]:
    """The document class's codec, compiled the first time it is asked for."""
    found = _codecs.get(document)
    if found is None:
        found = _codecs[document] = Codec(document)
    return found


@cache
def part_of(document: type[D], attributes: frozenset[str]) -> type[D]:
    """A Struct like `document` with only these fields and the keys by which lists are sorted.

    It has no other attributes, so a default is never mistaken for a stored value.
    """
    wanted = attributes | {"id", "created_at"}
    fields = []
    for field in msgspec.structs.fields(document):
        if field.name in wanted:
            given = msgspec.field(name=field.encode_name)
            if field.default is not msgspec.NODEFAULT:
                given = msgspec.field(name=field.encode_name, default=field.default)
            elif field.default_factory is not msgspec.NODEFAULT:
                given = msgspec.field(name=field.encode_name, default_factory=field.default_factory)
            fields.append((field.name, field.type, given))
    part: Any = msgspec.defstruct(f"{document.__name__}Part", fields, bases=(Document,), kw_only=True, gc=False)
    return part  # type: ignore[no-any-return]  # to readers of these attributes, a `document`


# Reading

_FEW = 64
_length_at = Layout("<i").unpack_from


def few_at_a_time(stream: bytes, options: CodecOptions[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The documents of a stream of BSON, in lists of 64.

    64 fit into the processor's cache and are freed before garbage collection examines them: 20,000 dicts at
    once double the cost of conversion to Structs.
    """
    view = memoryview(stream)
    start = end = count = 0
    while end < len(view):
        end += _length_at(view, end)[0]
        count += 1
        if count == _FEW:
            yield bson.decode_all(view[start:end], options)
            start, count = end, 0
    if count:
        yield bson.decode_all(view[start:], options)


def apart(stream: bytes) -> Iterator[bytes]:
    """The documents of a stream of BSON, each as its bytes."""
    start, size = 0, len(stream)
    while start < size:
        end = start + _length_at(stream, start)[0]
        yield stream[start:end]
        start = end


def object_id_in(document: bytes) -> bytes | None:
    """The 12 bytes of its `_id`, which the server puts first; None if it is not an ObjectId."""
    return document[9:21] if document.startswith(b"\x07_id\0", 4) else None


def _compile_decoder(document: type[D]) -> Callable[[dict[str, Any]], D]:
    marks = extras(document)
    lines = []
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        name = repr(field.encode_name)
        kind = bare(field.type)
        if marks[field.name].get("mixed"):
            lines += [
                f"v = d.get({name})",
                f"if v is None: d.pop({name}, None)",
                f"elif v: d[{name}] = native(v)",
            ]
        elif isinstance(kind, inspect.DateTimeType):
            if field.required or field.default is AT_WRITE:
                lines.append(f"d[{name}] = epoch + (d[{name}] - naive)")
            else:
                lines += [f"v = d.get({name})", f"if v is not None: d[{name}] = epoch + (v - naive)"]
    body = "".join(f"        {line}\n" for line in lines)
    source = (
        "def decode(d):\n"
        "    try:\n"
        f"{body}"
        "        return convert(d, document)\n"
        "    except (KeyError, TypeError, ValidationError):\n"
        "        return tolerant(d)\n"
    )
    scope: dict[str, Any] = {
        "epoch": EPOCH,
        "naive": _EPOCH_NAIVE,
        "convert": msgspec.convert,
        "document": document,
        "ValidationError": msgspec.ValidationError,
        "native": mixed.native,
        "tolerant": lambda raw: _tolerant(document, raw),
    }
    exec(compile(source, f"<decoder of {document.__name__}>", "exec"), scope)  # noqa: S102 (made from our own schema)
    return scope["decode"]  # type: ignore[no-any-return]  # the function just compiled


_SIMPLE: tuple[tuple[inspect.Type, str], ...] = (
    (inspect.StrType(), "str"),
    (inspect.IntType(), "int"),
    (inspect.BoolType(), "bool"),
    (inspect.DateTimeType(), "datetime"),
    (inspect.CustomType(ObjectId), "ObjectId"),
)


def _compile_check(document: type[D], keys: dict[str, Key]) -> Callable[[dict[str, Any]], bool] | None:
    """Fills `keys` as well."""
    conditions = []
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        kind = next((name for simple, name in _SIMPLE if simple == bare(field.type)), None)
        needed = field.default is msgspec.NODEFAULT or field.default is AT_WRITE
        if kind is None or (field.required and isinstance(field.type, inspect.UnionType)):
            return None
        name = repr(field.encode_name)
        fits = f"(v := d.get({name})).__class__ is {kind}"
        conditions.append(fits if needed else f"({fits} or v is None)")
        keys[field.name] = Key(field.encode_name, not needed, None if needed else field.default)
    if not conditions:
        return None
    scope = {"ObjectId": ObjectId, "datetime": datetime}
    found: Callable[[dict[str, Any]], bool] = eval(f"lambda d: {' and '.join(conditions)}", scope)  # noqa: S307 (made from our own schema)
    return found


def _tolerant(document: type[D], raw: dict[str, Any]) -> D:
    normal = _normal_struct(raw, document)
    while True:
        try:
            return msgspec.convert(normal, document, builtin_types=(datetime, bytes))
        except msgspec.ValidationError as problem:
            if not _forgive(document, normal, str(problem)):
                raise UnreadableDocument(
                    f"{document.__name__} {raw.get('_id')!s} cannot be read: {problem}. Repair it in the database."
                ) from None


def _forgive(document: type[Document], normal: dict[str, Any], problem: str) -> bool:
    """Drop the value that `convert` rejected, so that the field takes its default, if the document allows
    that.
    """
    _, _, place = problem.partition(" - at `$.")
    *above, name = place.rstrip("`").partition("[")[0].split(".")  # of an array as a whole
    if (above or [name])[0] not in document.FORGIVEN:
        return False
    inner = normal
    for part in above:
        inner = inner[part]
    del inner[name]
    if name == "createdAt" and isinstance(normal.get("_id"), ObjectId):
        normal |= {"createdAt": normal["_id"].generation_time.astimezone(UTC)}
    elif name == "updatedAt" and "createdAt" in normal:
        normal |= {"updatedAt": normal["createdAt"]}
    monitoring.FORGIVEN.labels(document.__name__, place.rstrip("`")).inc()
    _log.warning("stored field ignored", document=document.__name__, id=str(normal.get("_id")), reason=problem)
    return True


def _normal(value: Any, kind: inspect.Type) -> Any:
    """`value` converted to `kind` if it is a number or time that allows it; otherwise unchanged."""
    match kind:
        case inspect.StructType():
            return _normal_struct(value, kind.cls) if isinstance(value, dict) else value  # type: ignore[arg-type]  # sub-documents are Documents
        case inspect.ListType():
            if not isinstance(value, list):
                return value
            return [_normal(item, bare(kind.item_type)) for item in value if item is not None]
        case inspect.IntType() | inspect.FloatType() | inspect.UnionType():
            return _number(value, whole=isinstance(kind, inspect.IntType))
        case inspect.DateTimeType():
            return mixed.native(value) if isinstance(value, datetime) else value
        case inspect.AnyType():
            return mixed.native(value)
    return value


def _normal_struct(raw: dict[str, Any], document: type[Document]) -> dict[str, Any]:
    kinds = _kinds(document)
    normal: dict[str, Any] = {}
    for name, value in raw.items():
        if value is not None and (kind := kinds.get(name)) is not None:
            normal[name] = value if kind is _AS_IT_IS else _normal(value, kind)
    if "createdAt" in kinds and "createdAt" not in normal and isinstance(raw.get("_id"), ObjectId):
        normal["createdAt"] = raw["_id"].generation_time.astimezone(UTC)
    if "updatedAt" in kinds and "updatedAt" not in normal and "createdAt" in normal:
        normal["updatedAt"] = normal["createdAt"]
    return normal


_AS_IT_IS = inspect.StrType()


@cache
def _kinds(document: type[Document]) -> dict[str, inspect.Type]:
    """The fields that tolerant reading can normalise, by name; `_AS_IT_IS` for the others."""
    mendable = (
        inspect.StructType,
        inspect.ListType,
        inspect.IntType,
        inspect.FloatType,
        inspect.UnionType,
        inspect.DateTimeType,
        inspect.AnyType,
    )
    fields = inspect.type_info(document).fields  # type: ignore[attr-defined]  # a Struct's info has fields
    return {f.encode_name: kind if isinstance(kind := bare(f.type), mendable) else _AS_IT_IS for f in fields}


def _number(value: Any, *, whole: bool) -> Any:
    """`whole` truncates numbers like 2.5 or Infinity, which a Mongoose Number accepts,
    to a 64-bit integer."""
    if isinstance(value, Decimal128):
        exact: Decimal = value.to_decimal()
        if not exact.is_finite():
            return value
        value = int(exact) if exact == int(exact) else float(exact)
    if whole and type(value) in (int, float) and not math.isnan(value):
        return int(min(max(value, _LOWEST), _HIGHEST))
    return value


def bare(kind: inspect.Type) -> inspect.Type:
    """Without Metadata, and without the `| None` of an optional field."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        others = [bare(part) for part in kind.types if not isinstance(part, inspect.NoneType)]
        if len(others) == 1:
            return others[0]
    return kind


# Writing


def _compile_encoder(document: type[D], path: str = "") -> Callable[[D, datetime], dict[str, Any]]:
    """Required and defaulted fields are always written, optional ones when they are not None. `path` ends in
    a dot.
    """
    marks = extras(document)
    scope: dict[str, Any] = {
        "AT_WRITE": AT_WRITE,
        "epoch": EPOCH,
        "naive": _EPOCH_NAIVE,
        "convert": msgspec.convert,
        "document": document,
        "check_mixed": mixed.check,
        "whole_ms": _whole_ms,
        "missing": _missing,
        "not_finite": _not_finite,
        "refuse": lambda value: _refuse(document, value, path),
        "as_they_are": (datetime, bytes),
        "errors": (AttributeError, TypeError, OverflowError, msgspec.ValidationError),
    }
    # All fields in one dict display, which is faster than assigning each; then those that are None are
    # removed.
    before, display, after = [], [], []
    strictly = ""
    for number, field in enumerate(inspect.type_info(document).fields):  # type: ignore[attr-defined]  # a Struct's info has fields
        kind, place, v = bare(field.type), repr(path + field.encode_name), f"v{number}"
        steps = []
        if setter := marks[field.name].get("setter"):
            if setter not in _STR_METHODS:
                raise TypeError(f"{document.__name__}.{field.name}: unknown setter {setter!r}")
            steps.append(f"{v} = {v}.{setter}()")
        if field.required and isinstance(kind, inspect.StrType):
            steps.append(f"if {v} == '': missing({place})")
        if marks[field.name].get("mixed"):
            steps.append(f"check_mixed({v}, {place}, depth=2)")
        if isinstance(kind, inspect.FloatType | inspect.UnionType):
            steps.append(f"if {v} - {v}: not_finite({place})")
        if isinstance(kind, inspect.BytesType):
            strictly = ", builtin_types=as_they_are"  # rejects base64 text for bytes; three times as slow
        if isinstance(kind, inspect.DateTimeType):
            # Naive UTC, because BSON encodes it in half the time of an aware datetime.
            steps += [f"{v} = naive + ({v} - epoch)", f"if {v}.microsecond % 1000: {v} = whole_ms({v})"]
            if field.default is AT_WRITE:
                steps = [f"if {v} is AT_WRITE: {v} = now", "else:", *(f"    {step}" for step in steps)]
        if isinstance(kind, inspect.StructType):
            scope[f"encode_{field.name}"] = _compile_encoder(kind.cls, f"{path}{field.encode_name}.")
            steps.append(f"{v} = encode_{field.name}({v}, now)")
        if isinstance(kind, inspect.ListType) and isinstance(item := bare(kind.item_type), inspect.StructType):
            scope[f"encode_{field.name}"] = _compile_encoder(item.cls, f"{path}{field.encode_name}.")
            steps.append(f"{v} = [encode_{field.name}(each, now) for each in {v}]")
        if not field.required and field.default is None:
            steps = [f"if {v} is not None:", *(f"    {step}" for step in steps)] if steps else []
            after.append(f"if {v} is None: del d[{field.encode_name!r}]")
        if steps:
            before += [f"{v} = o.{field.name}", *steps]
        display.append(f"{field.encode_name!r}: {v if steps else f'({v} := o.{field.name})'},")
    lines = [*before, "d = {", *display, "}", *after]
    body = "".join(f"        {line}\n" for line in lines)
    source = (
        "def encode(o, now):\n"
        "    try:\n"
        f"{body}"
        f"        convert(d, document{strictly})\n"
        "        return d\n"
        "    except errors:\n"
        "        refuse(o)\n"
    )
    exec(compile(source, f"<encoder of {document.__name__}>", "exec"), scope)  # noqa: S102 (made from our own schema)
    return scope["encode"]  # type: ignore[no-any-return]  # the function just compiled


def _whole_ms(moment: datetime) -> datetime:
    return moment - timedelta(microseconds=moment.microsecond % 1000)


def _missing(place: str) -> None:
    raise Invalid.field(place, "is required and must not be empty")


def _not_finite(place: str) -> None:
    raise Invalid.field(place, "must be a finite number")


def _refuse(document: type[Document], value: Any, path: str) -> None:
    """Raise Invalid naming the value that the encoder rejected. Slow: only after a failure."""
    if not isinstance(value, document):
        raise Invalid.field(path.rstrip(".") or "document", f"Expected {document.__name__}, got {type(value).__name__}")
    raw = {}
    for attribute, name in zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True):
        raw[name] = getattr(value, attribute)
        if isinstance(raw[name], datetime) and (trouble := mixed.time_problem(raw[name])):
            raise Invalid.field(path + name, trouble)
    try:
        msgspec.convert(raw, document, builtin_types=(datetime, bytes))
    except msgspec.ValidationError as problem:
        raise invalid_type(problem, path) from None
    raise Invalid(f"This {document.__name__} cannot be stored: check the types of its fields")


def check_storable(raw: dict[str, Any]) -> None:
    """Raise Invalid naming the first value of an encoded document that BSON cannot hold. Slow: only after a
    failure.
    """
    for name, value in raw.items():
        if not isinstance(value, datetime):
            mixed.check(value, name, depth=2)


def invalid_type(problem: msgspec.ValidationError, prefix: str = "") -> Invalid:
    """msgspec's "Expected `int`, got `str` - at `$.limits.projects`" as an Invalid that names the field."""
    message, _, place = str(problem).partition(" - at `$")
    path = (prefix.rstrip(".") + place.rstrip("`")).replace("[", ".").replace("]", "").strip(".")
    return Invalid.field(path or "value", message.replace("`", ""))
