"""How each field gets its value under graphql-core: by attribute, from a root resolver, or from a batch.

What a field needs is decided once, when the schema is built; a call does no look-ups beyond its own.
"""

from typing import Any

import msgspec
from graphql import GraphQLAbstractType, GraphQLFieldResolver, GraphQLResolveInfo

from ximler.graphql.engine.arguments import Reader
from ximler.graphql.engine.batches import Batches
from ximler.graphql.engine.names import snake
from ximler.graphql.engine.registry import Resolver

__all__ = ["Request", "attribute", "batch_field", "name_type", "root_field"]


class Request(msgspec.Struct, frozen=True):
    """What graphql-core carries through one execution."""

    ctx: Any
    batches: Batches


Info = GraphQLResolveInfo[Request]


def attribute(field_name: str) -> GraphQLFieldResolver:
    """Read the parent's attribute of that name; of a dict, the key, in snake_case or as SDL writes it."""
    name = snake(field_name)

    def resolve(parent: Any, _info: Info) -> Any:
        if parent.__class__ is dict:
            return parent.get(name) if name in parent else parent.get(field_name)
        return getattr(parent, name)

    return resolve


def root_field(resolver: Resolver, readers: dict[str, Reader]) -> GraphQLFieldResolver:
    call, mutation = resolver.function, resolver.type_name == "Mutation"

    def resolve(_root: Any, info: Info, **arguments: Any) -> Any:
        request = info.context
        running = call(request.ctx, **(read(readers, arguments) if readers else arguments))
        return running if mutation else request.batches.start(running)

    return resolve


def batch_field(resolver: Resolver, readers: dict[str, Reader]) -> GraphQLFieldResolver:
    coordinate, call = resolver.coordinate, resolver.function

    def resolve(parent: Any, info: Info, **arguments: Any) -> Any:
        if readers:
            arguments = read(readers, arguments)
        return info.context.batches.add(coordinate, call, info.field_nodes[0], parent, arguments)

    return resolve


def read(readers: dict[str, Reader], arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: readers[name](value) if name in readers else value for name, value in arguments.items()}


def name_type(value: Any, info: Info, abstract: GraphQLAbstractType) -> str:
    """The object type behind an interface or union: a dict says it as `__typename`, a Struct by its class's name."""
    name = value.get("__typename") if isinstance(value, dict) else type(value).__name__
    if not any(possible.name == name for possible in info.schema.get_possible_types(abstract)):
        raise TypeError(f"{abstract.name} cannot be a {name}: name the class after one of its types")
    return str(name)
