"""Compiles the completion of a field's values: Python generated from a plan, for values that match the
schema.

`completer(field)` returns `complete(value, asked)`, which builds the value's part of the response as dicts
and lists, and appends the objects that need resolvers to `asked`. Objects of leaves alone become Structs
generated for the plan (`Row`), in half the time of dicts; `as_dicts` converts them. Any unexpected value (a
missing attribute, null in a non-null position, an exception, an iterable that is not a list) raises. The
caller then starts over with the interpreter (`execution`), which handles paths and errors.

Security: the generated source contains names of the schema only. Text from clients, aliases included, is
bound as constants.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from graphql import GraphQLEnumType, GraphQLNamedType, Undefined

from ximler.core.extended_json import plain
from ximler.core.rows import Key, Rows
from ximler.graphql.engine.fields import type_name
from ximler.graphql.engine.plan import Children, Field, Selection, Shape
from ximler.graphql.engine.scalars import write_instant

__all__ = ["Row", "as_dicts", "completer", "encode", "shared_completer"]

MakeRow = Callable[[Any, Any], Any]


encode = msgspec.json.Encoder(enc_hook=plain).encode
"""The JSON of a response."""


class Row(msgspec.Struct, gc=False):
    """A response object without pending resolvers."""


def as_dicts(found: Any) -> Any:
    """A response with rows converted to dicts."""
    if isinstance(found, Row):
        return {
            name: as_dicts(getattr(found, attribute))
            for attribute, name in zip(found.__struct_fields__, found.__struct_encode_fields__, strict=True)
        }
    if isinstance(found, msgspec.Raw):
        return msgspec.json.decode(found)
    if isinstance(found, dict):
        return {name: as_dicts(value) for name, value in found.items()}
    return [as_dicts(item) for item in found] if isinstance(found, list) else found


_FITS = {
    "String": "{v}.__class__ is str",
    "Boolean": "{v}.__class__ is bool",
    "Int": "{v}.__class__ is int and -2147483648 <= {v} <= 2147483647",
    "Long": "{v}.__class__ is int and -9007199254740991 <= {v} <= 9007199254740991",
    "Float": "{v}.__class__ is float and -infinity < {v} < infinity",
    "JSON": "{v}.__class__ in plain",
}
"""Conditions under which a value is serialised unchanged."""

_DATETIME = "write_instant({v}) if {v}.__class__ is datetime and {v}.tzinfo is UTC"
_NAIVE = "write_instant({v}) if {v}.__class__ is datetime and {v}.tzinfo is None"
_textual: set[type] = set()
"""Classes whose `__str__` is their ID, such as the database's ids."""

_GLOBALS = {
    "datetime": datetime,
    "UTC": UTC,
    "write_instant": write_instant,
    "textual": _textual,
    "Rows": Rows,
    "lists": frozenset({list, tuple, Rows}),
    "infinity": math.inf,
    "plain": frozenset({str, int, float, bool, dict, list}),
}


class Unexpected(Exception):
    """The compiled code does not support this value."""


def completer(field: Field) -> Callable[[Any, Any], Any]:
    """Compile the completion of one field that has a resolver."""
    source = _Source()
    source.lines += ["def complete(v, asked):", f"    return {source.expression(field, field.shape, 'v')}"]
    complete: Callable[[Any, Any], Any] = source.compile("complete", field.coordinate)
    return complete


def shared_completer(field: Field) -> Callable[[Any, Any], Any]:
    """As `completer`, for `Shared` values: JSON that is kept until the resolver returns another object."""
    complete = completer(field)
    if not _is_ready_below(field):
        return complete
    kept: tuple[Any, msgspec.Raw] | None = None

    def completed(value: Any, asked: Any) -> Any:
        nonlocal kept
        if kept is None or kept[0] is not value:
            kept = value, msgspec.Raw(encode(complete(value, asked)))
        return kept[1]

    return completed


def _row(selection: Selection, *, of_dicts: bool = False, keys: Mapping[str, Key] | None = None) -> MakeRow:
    source = _Source(keys)
    row: MakeRow = source.compile(source.row(selection, of_dicts=of_dicts), selection.type_name)
    return row


class _Source:
    def __init__(self, keys: Mapping[str, Key] | None = None) -> None:
        self.lines: list[str] = []
        self._keys = keys  # of the dicts of `Rows`
        self._scope: dict[str, Any] = dict(_GLOBALS)
        self._count = 0

    def compile(self, name: str, place: str) -> Any:
        exec(compile("\n".join(self.lines), f"<plan of {place}>", "exec"), self._scope)  # noqa: S102 (names of the schema only)
        return self._scope[name]

    def bind(self, value: Any) -> str:
        name = self._name("c")
        self._scope[name] = value
        return name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def expression(self, field: Field, shape: Shape, v: str) -> str:
        """The expression that completes the value in variable `v`."""
        if shape.inner is not None:
            item = self._name("i")
            inner = self.expression(field, shape.inner, item)
            odd = self.bind(_unexpected)
            found = f"[{inner} for {item} in {v}] if {v}.__class__ in lists else {odd}({v})"
            if field.children is not None and shape.inner.kind == "object" and _is_ready_below(field):
                of_rows = self.bind(_of_rows(field.children.of(shape.inner.type.name)))
                found = f"{of_rows}({v}) if {v}.__class__ is Rows else {found}"
        elif shape.kind == "leaf":
            found = self._leaf(shape.type, v)
        else:
            found = f"{self._object(field, shape)}({v}, asked)"
        return f"({found})" if shape.required else f"(None if {v} is None else {found})"

    def _leaf(self, type_: GraphQLNamedType, v: str) -> str:
        otherwise = self.bind(_coercer(type_))
        if isinstance(type_, GraphQLEnumType):
            names = self.bind(frozenset(name for name, value in type_.values.items() if value.value == name))
            return f"{v} if {v}.__class__ is str and {v} in {names} else {otherwise}({v})"
        if type_.name == "DateTime":
            return f"{(_NAIVE if self._keys else _DATETIME).format(v=v)} else {otherwise}({v})"
        if type_.name == "ID":
            return f"{v} if {v}.__class__ is str else str({v}) if {v}.__class__ in textual else {otherwise}({v})"
        if type_.name == "Float":
            otherwise = f"float({v}) if {v}.__class__ is int else {otherwise}"
        if type_.name in _FITS:
            return f"{v} if {_FITS[type_.name].format(v=v)} else {otherwise}({v})"
        return f"{otherwise}({v})"

    def _object(self, field: Field, shape: Shape) -> str:
        assert field.children is not None  # noqa: S101 (validated: objects have selections)
        if shape.kind == "abstract":
            return self.bind(_by_type(field.children))
        return self.row(field.children.of(shape.type.name))

    def row(self, selection: Selection, *, of_dicts: bool = False) -> str:
        """Generate the function that maps a parent object to a response object; returns its name."""
        if selection.error is not None:
            return self.bind(_unexpected)
        known: set[type] = {dict} if of_dicts else set()
        row, asking, values = self._name("row"), [], []
        reads: list[str] = []
        otherwise = self._name("other")
        for field in selection.fields:
            if field.name == "__typename":
                values.append(self.bind(selection.type_name))
            elif field.resolver is not None:
                values.append("None")
                asking.append(f"    asked[{self.bind(field)}].append(pair)")
            else:
                v = self._name("v")
                if self._keys is not None:
                    reads += self._read_raw(self._keys, field, v)
                else:
                    reads.append(f"    {v} = {_read_key(field) if of_dicts else f'o.{field.attribute}'}")
                values.append(self.expression(field, field.shape, v))
        self.lines += [
            f"def {row}(o, asked):",
            *(
                []
                if self._keys is not None
                else [f"    if o.__class__ not in {self.bind(known)}: return {otherwise}(o, asked)"]
            ),
            *reads,
            *self._make(selection, values),
            *(["    pair = (o, d)", *asking] if asking else []),
            "    return d",
        ]
        self._scope[otherwise] = _other(selection, known, lambda: self._scope[row])
        return row

    def _read_raw(self, keys: Mapping[str, Key], field: Field, v: str) -> Iterator[str]:
        key = keys.get(field.attribute)
        if key is None:
            yield f"    {v} = {self.bind(_unexpected)}()"
        elif not key.optional:
            yield f"    {v} = o[{key.name!r}]"
        else:
            yield f"    {v} = o.get({key.name!r})"
            if key.default is not None:
                yield f"    if {v} is None: {v} = {self.bind(key.default)}"

    def _make(self, selection: Selection, values: list[str]) -> Iterator[str]:
        keys = [field.key for field in selection.fields]
        if _is_ready(selection):
            fields = [(f"f{number}", Any, msgspec.field(name=key)) for number, key in enumerate(keys)]
            made = self.bind(msgspec.defstruct("Row", fields, bases=(Row,), gc=False))
            yield f"    d = {made}({', '.join(values)})"
        else:
            pairs = (f"{self.bind(key)}: {value}" for key, value in zip(keys, values, strict=True))
            yield f"    d = {{{', '.join(pairs)}}}"


def _of_rows(selection: Selection) -> Callable[[Rows[Any]], list[Any]]:
    """Maps the dicts of `Rows`, without Structs between."""
    rows: list[tuple[Mapping[str, Key], MakeRow]] = []

    def mapped(found: Rows[Any]) -> list[Any]:
        if not rows or rows[0][0] is not found.keys:
            rows[:] = [(found.keys, _row(selection, keys=found.keys))]
        row = rows[0][1]
        return [row(raw, None) for raw in found.raws]

    return mapped


def _is_ready(selection: Selection) -> bool:
    """Whether no field in the selection needs a resolver."""
    return all(field.resolver is None and _is_ready_below(field) for field in selection.fields)


def _is_ready_below(field: Field) -> bool:
    return field.children is None or (
        field.shape.levels[-1].kind == "object" and all(map(_is_ready, map(field.children.of, field.children.names)))
    )


def _read_key(field: Field) -> str:
    if field.attribute == field.name:
        return f"o.get({field.name!r})"
    return f"o[{field.attribute!r}] if {field.attribute!r} in o else o.get({field.name!r})"


def _other(selection: Selection, known: set[type], row: Callable[[], MakeRow]) -> MakeRow:
    """Handles classes that a row has not seen before.
    An exception has attributes too, but is not an object."""
    of_dicts: list[MakeRow] = []

    def other(o: Any, asked: Any) -> Any:
        if o.__class__ is dict:
            if not of_dicts:
                of_dicts.append(_row(selection, of_dicts=True))
            return of_dicts[0](o, asked)
        if o is None or isinstance(o, Exception):
            raise Unexpected
        known.add(o.__class__)
        return row()(o, asked)

    return other


def _by_type(children: Children) -> MakeRow:
    rows: dict[str, MakeRow] = {}

    def row(o: Any, asked: Any) -> Any:
        if o is None or isinstance(o, Exception):
            raise Unexpected
        name = type_name(o, children)
        found = rows.get(name)
        if found is None:
            found = rows[name] = _row(children.of(name))
        return found(o, asked)

    return row


def _unexpected(*_: Any) -> Any:
    raise Unexpected


def _coercer(type_: Any) -> Callable[[Any], Any]:
    coerce, is_id = type_.coerce_output_value, type_.name == "ID"

    def coerced(value: Any) -> Any:
        if value is None or isinstance(value, Exception):
            raise Unexpected
        found = coerce(value)
        if found is None or found is Undefined:
            raise Unexpected
        if is_id and not isinstance(value, str | int | float):
            _textual.add(value.__class__)
        return found

    return coerced
