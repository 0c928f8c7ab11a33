"""Maps a field's SDL arguments to its resolver's parameters: checked once at start, applied on every call.

Input objects arrive as dicts with snake_case keys at every level. If the parameter is annotated with a
msgspec Struct (also `Struct | None`, `list[Struct]`), they are converted to that Struct and its constraints
are validated.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

import msgspec
from graphql import (
    GraphQLArgument,
    GraphQLInputObjectType,
    GraphQLInputType,
    get_named_type,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
)

from ximler.core.errors import Invalid
from ximler.graphql.engine.names import snake
from ximler.graphql.engine.registry import Resolver
from ximler.graphql.engine.selected import Selected

__all__ = ["Reader", "find_mismatches", "struct_readers"]

Reader = Callable[[Any], Any]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_AT_PATH = re.compile(r"(?P<problem>.*?)(?: - at `(?:key in )?\$\.?(?P<path>.*)`)?", re.DOTALL)


def find_mismatches(resolver: Resolver, arguments: Mapping[str, GraphQLArgument]) -> Iterator[str]:
    """Describe the differences between the resolver's parameters and the field's arguments."""
    subjects = resolver.subjects
    parameters = [
        each for each in inspect.signature(resolver.function).parameters.values() if each.annotation is not Selected
    ]
    leading, named = parameters[: len(subjects)], parameters[len(subjects) :]
    if len(leading) < len(subjects) or any(parameter.kind not in _POSITIONAL for parameter in leading):
        yield f"must take ({', '.join(subjects)}, …) first"
        return
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in named)
    expected = {snake(name): argument for name, argument in arguments.items()}
    by_name = {
        parameter.name: parameter
        for parameter in named
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    for name in by_name.keys() - expected.keys():
        yield f"takes a parameter `{name}` that SDL does not declare"
    for name, argument in expected.items():
        parameter = by_name.get(name)
        if parameter is None:
            if not takes_any:
                yield f"has no parameter `{name}` for the argument of type {argument.type}"
        elif may_be_absent(argument) and parameter.default is inspect.Parameter.empty:
            yield f"needs a default for `{name}`: a client may leave it out"


def may_be_absent(argument: GraphQLArgument) -> bool:
    return argument.default is None and not is_non_null_type(argument.type)


def struct_readers(resolver: Resolver, arguments: Mapping[str, GraphQLArgument]) -> dict[str, Reader]:
    """Converters for parameters annotated with a Struct. Raises TypeError if Struct and input type do not
    match.
    """
    inputs = {
        snake(name): argument.type
        for name, argument in arguments.items()
        if is_input_object_type(get_named_type(argument.type))
    }
    if not inputs:
        return {}
    hints = get_type_hints(resolver.function)
    readers = {}
    for name, type_ in inputs.items():
        info = msgspec.inspect.type_info(hints.get(name, Any))
        rename = _find_rename(info, type_, {})
        if rename is not None:
            readers[name] = _struct_reader(name, hints[name], rename)
    return readers


def _struct_reader(name: str, annotation: Any, rename: Reader) -> Reader:
    def read(value: Any) -> Any:
        try:
            return msgspec.convert(rename(value), annotation)
        except msgspec.ValidationError as error:
            match = _AT_PATH.fullmatch(str(error))
            problem, path = match.group("problem", "path") if match else (str(error), None)
            raise Invalid.field(f"{name}.{path}" if path else name, problem) from error

    return read


def _find_rename(
    info: msgspec.inspect.Type, type_: GraphQLInputType, known: dict[type, dict[str, tuple[str, Reader | None]]]
) -> Reader | None:
    """A function that renames a coerced value's keys for its Struct; None if the annotation has no Struct."""
    type_ = type_.of_type if is_non_null_type(type_) else type_
    if isinstance(info, msgspec.inspect.UnionType):
        found = (_find_rename(member, type_, known) for member in info.types)
        return next((rename for rename in found if rename is not None), None)
    if is_list_type(type_) and isinstance(info, msgspec.inspect.CollectionType):
        item = _find_rename(info.item_type, type_.of_type, known)
        return None if item is None else _rename_items(item)
    if is_input_object_type(type_) and isinstance(info, msgspec.inspect.StructType):
        if info.cls not in known:  # an input type may contain itself
            keys = known[info.cls] = {}
            _fill_keys(keys, info, type_, known)
        return _rename_keys(known[info.cls])
    return None


def _fill_keys(
    keys: dict[str, tuple[str, Reader | None]],
    info: msgspec.inspect.StructType,
    type_: GraphQLInputObjectType,
    known: dict[type, dict[str, tuple[str, Reader | None]]],
) -> None:
    fields = {field.name: field for field in info.fields}
    for name, input_field in type_.fields.items():
        field = fields.get(snake(name))
        if field is None:
            raise TypeError(f"{info.cls.__name__} has no field `{snake(name)}` for {type_.name}.{name}")
        keys[field.name] = field.encode_name, _find_rename(field.type, input_field.type, known)


def _rename_keys(keys: Mapping[str, tuple[str, Reader | None]]) -> Reader:
    def rename(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        renamed = {}
        for name, inner in value.items():
            key, deeper = keys[name]
            renamed[key] = inner if deeper is None else deeper(inner)
        return renamed

    return rename


def _rename_items(item: Reader) -> Reader:
    def rename(value: Any) -> Any:
        return [item(inner) for inner in value] if isinstance(value, list) else value

    return rename
