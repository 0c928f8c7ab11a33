"""Builds a schema from SDL and resolvers, and checks that they match.

All problems are reported together at start, SDL problems with file and line. Not checked: that a Struct has
the attributes of its type's fields. A missing attribute is an internal error when the field is first
selected.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import ModuleType

import msgspec
from graphql import (
    DefinitionNode,
    DocumentNode,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    InterfaceTypeDefinitionNode,
    ObjectTypeDefinitionNode,
    ObjectTypeExtensionNode,
    Source,
    build_ast_schema,
    is_introspection_type,
    is_specified_scalar_type,
    parse,
    print_schema,
    validate_schema,
)
from graphql.validation.validate import validate_sdl

from ximler.graphql.engine import connections, cost, scalars, scopes
from ximler.graphql.engine.arguments import Reader, find_mismatches, struct_readers
from ximler.graphql.engine.names import snake
from ximler.graphql.engine.registry import ROOT_TYPES, Resolver, Resolvers

__all__ = ["Bound", "Schema", "SchemaError", "build"]

_DESCRIPTION = "Queries, changes and live updates of the signed-in user, and of everybody for operators."
_ROOTS = {
    "query": "Reads. Fields resolve concurrently and change nothing.",
    "mutation": "Changes. Fields run one after another, in the order written.",
    "subscription": "Live updates, sent as server-sent events or in parts of a multipart response.",
}


class SchemaError(Exception):
    """The schema cannot be served; `problems` lists every problem, one sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n  ".join(["The GraphQL schema cannot be served:", *self.problems]))


class Bound(msgspec.Struct, frozen=True):
    """A resolver bound to its field, with the converters of its arguments."""

    resolver: Resolver
    readers: dict[str, Reader]


class Schema(msgspec.Struct, frozen=True):
    """A validated schema: graphql-core's, and its resolvers by coordinate (`User.subscription`)."""

    core: GraphQLSchema
    bound: Mapping[str, Bound]

    def sdl(self) -> str:
        """The schema as text, with the fields' weights and scopes."""
        text = print_schema(self.core)
        # graphql-core prints declarations of directives, not their uses.
        places = [
            (field.loc.end, said)
            for type_ in parse(text).definitions
            if isinstance(type_, ObjectTypeDefinitionNode | InterfaceTypeDefinitionNode)
            for field in type_.fields or ()
            if field.loc and (said := _directives(_get_field(self.core, type_.name.value, field.name.value)))
        ]
        for end, said in reversed(places):
            text = f"{text[:end]}{said}{text[end:]}"
        return text


def _directives(field: GraphQLField) -> str:
    scope, weight = scopes.find_scope(field), cost.find_weight(field)
    said = "" if scope is None else f' @scope(requires: "{scope}")' if scope else " @scope"
    return said if weight == 1 else f"{said} @cost(weight: {weight})"


def _get_field(core: GraphQLSchema, type_name: str, field_name: str) -> GraphQLField:
    type_ = core.type_map[type_name]
    assert isinstance(type_, GraphQLObjectType | GraphQLInterfaceType)  # noqa: S101 (it was printed as one)
    field: GraphQLField = type_.fields[field_name]
    return field


def build(
    sources: Iterable[ModuleType | Path | str],
    registries: Iterable[Resolvers] = (),
    *,
    guard: scopes.Guard | None = None,
) -> Schema:
    """Build a schema from SDL and resolvers. Raises SchemaError with every problem.

    A source is a domain's module (its SDL is the `.graphql` file beside it, its registry the module's
    `resolvers`), an SDL file, or SDL text. `Query` and `Mutation` are predefined and extended by the files,
    as are the scalars Date, DateTime, JSON and Long, and PageInfo. The root type of subscriptions is
    `Subscriptions`: `Subscription` is an ordinary type. `guard` is called before every root field, and before
    every other field with a `@scope`.
    """
    sources, registries = list(sources), list(registries)
    registries += [_find_registry(source) for source in sources if isinstance(source, ModuleType)]
    core = _build_types(_read(sources))
    resolvers = list(chain.from_iterable(registries))
    bound, problems = _bind(core, resolvers, guard)
    if problems:
        raise SchemaError(problems)
    return Schema(core, bound)


def _find_registry(module: ModuleType) -> Resolvers:
    registry = getattr(module, "resolvers", None)
    if not isinstance(registry, Resolvers):
        raise SchemaError([f"{module.__name__}: has no `resolvers = Resolvers()`"])
    return registry


def _read(sources: Iterable[ModuleType | Path | str]) -> DocumentNode:
    texts = [Source(scalars.SDL + connections.SDL + cost.SDL + scopes.SDL, "ximler.graphql.engine")]
    for number, source in enumerate(sources, 1):
        if isinstance(source, str):
            texts.append(Source(source, f"SDL text {number}"))
        else:
            path = source if isinstance(source, Path) else Path(str(source.__file__)).with_suffix(".graphql")
            try:
                texts.append(Source(path.read_text("utf-8"), str(path)))
            except (OSError, UnicodeDecodeError) as error:
                raise SchemaError([f"{path}: {error}"]) from error
    definitions: list[DefinitionNode] = []
    problems: list[str] = []
    for text in texts:
        try:
            definitions += parse(text).definitions
        except GraphQLError as error:
            problems.append(_located(error))
    if problems:
        raise SchemaError(problems)
    extended = {node.name.value for node in definitions if isinstance(node, ObjectTypeExtensionNode)}
    defined = {node.name.value for node in definitions if isinstance(node, ObjectTypeDefinitionNode)}
    roots = [name for name in ROOT_TYPES if name in extended | defined] or ["Query"]
    # Explicit, because otherwise a type named Subscription would become the third root.
    schema = [f'"{_DESCRIPTION}" schema {{', *(f"{ROOT_TYPES[name]}: {name}" for name in roots), "}"]
    types = [f'"{_ROOTS[ROOT_TYPES[name]]}" type {name}' for name in roots if name not in defined]
    definitions += parse(" ".join(schema + types)).definitions
    return DocumentNode(definitions=tuple(definitions))


def _build_types(document: DocumentNode) -> GraphQLSchema:
    errors = validate_sdl(document)
    if errors:
        raise SchemaError(map(_located, errors))
    core = build_ast_schema(document, assume_valid_sdl=True)
    problems = [_located(error) for error in validate_schema(core)]
    for name, type_ in core.type_map.items():
        if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType):
            problems += _directive_problems(type_)
        if isinstance(type_, GraphQLScalarType) and not is_specified_scalar_type(type_):
            python = scalars.SCALARS.get(name)
            if python is None:
                problems.append(f"scalar {name}: no values are defined for it, only for {', '.join(scalars.SCALARS)}")
            else:
                for coercion in ("coerce_output_value", "coerce_input_value", "coerce_input_literal"):
                    setattr(type_, coercion, getattr(python, coercion))
        elif isinstance(type_, GraphQLEnumType):
            type_.coerce_input_value = scalars.bounded_enum(type_)  # type: ignore[method-assign]
        elif isinstance(type_, GraphQLInputObjectType):
            for field_name, input_field in type_.fields.items():
                input_field.out_name = snake(field_name)
    if problems:
        raise SchemaError(problems)
    return core


def _directive_problems(type_: GraphQLObjectType | GraphQLInterfaceType) -> Iterator[str]:
    for name, field in type_.fields.items():
        try:
            cost.find_weight(field)
            scopes.find_scope(field)
        except ValueError as error:
            yield f"{type_.name}.{name}: {_place(field)}{error}"


def _bind(
    core: GraphQLSchema, resolvers: Iterable[Resolver], guard: scopes.Guard | None
) -> tuple[dict[str, Bound], list[str]]:
    bound: dict[str, Bound] = {}
    problems = []
    for resolver in resolvers:
        field = _find_field(core, resolver.type_name, resolver.field_name)
        found = list(_resolver_problems(core, resolver, field, bound.get(resolver.coordinate)))
        if field is None or found:
            problems += [f"{resolver.coordinate}: {resolver.where} {problem}" for problem in found]
            continue
        try:
            readers = struct_readers(resolver, field.args)
        except (TypeError, NameError) as error:
            problems.append(f"{resolver.coordinate}: {resolver.where}: {error}")
            continue
        scope = scopes.find_scope(field)
        if guard is not None:
            resolver = scopes.guarded(resolver, scope, guard)  # noqa: PLW2901 (the same, guarded)
        scopes.describe(field, scope)
        bound[resolver.coordinate] = Bound(resolver, readers)
    answered = {resolver.coordinate for resolver in resolvers}
    problems += _unanswered(core, answered)
    return bound, problems


def _find_field(core: GraphQLSchema, type_name: str, field_name: str) -> GraphQLField | None:
    type_ = core.type_map.get(type_name)
    return type_.fields.get(field_name) if isinstance(type_, GraphQLObjectType) else None


def _resolver_problems(
    core: GraphQLSchema, resolver: Resolver, field: GraphQLField | None, earlier: Bound | None
) -> Iterator[str]:
    if field is None:
        type_ = core.type_map.get(resolver.type_name)
        if type_ is None:
            yield f"answers a field of {resolver.type_name}, a type that SDL does not declare"
        elif not isinstance(type_, GraphQLObjectType):
            yield f"answers a field of {resolver.type_name}, which is not an object type"
        else:
            yield "answers a field that SDL does not declare"
        return
    if earlier is not None:
        yield f"answers a field that {earlier.resolver.where} answers already"
    for name, argument in field.args.items():
        argument.out_name = snake(name)
    yield from find_mismatches(resolver, field.args)


def _unanswered(core: GraphQLSchema, answered: set[str]) -> Iterator[str]:
    for type_ in core.type_map.values():
        if not isinstance(type_, GraphQLObjectType) or is_introspection_type(type_):
            continue
        for name, field in type_.fields.items():
            coordinate = f"{type_.name}.{name}"
            if coordinate in answered:
                continue
            if scopes.find_scope(field) is not None:
                yield f"{coordinate}: {_place(field)}@scope has no effect on a field without a resolver"
            if type_.name in ROOT_TYPES:
                yield f"{coordinate}: {_place(field)}this root field has no resolver"
            elif field.args:
                yield f"{coordinate}: {_place(field)}this field takes arguments, so it needs a batch resolver"


def _place(field: GraphQLField) -> str:
    location = field.ast_node.loc if field.ast_node else None
    return f"{location.source.name}:{location.start_token.line}: " if location else ""


def _located(error: GraphQLError) -> str:
    if error.source and error.locations:
        first = error.locations[0]
        return f"{error.source.name}:{first.line}:{first.column}: {error.message}"
    return error.message
