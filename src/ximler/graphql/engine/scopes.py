"""`@scope`: what a key must be permitted to use a field. The engine knows that a field says so; whom it stops is the guard's.

    projects: ProjectConnection! @scope(requires: "projects:read")     keys with that scope
    plans: [Plan!]! @scope                                             every key
    signOut: Boolean!                                                  no key: a root field must say so itself

On a field of another type it is an addition: whoever reached the parent may read the field, unless it asks for more. Only
fields with a resolver can ask.
"""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
from graphql import GraphQLField, StringValueNode

from ximler.graphql.engine.registry import Resolver

__all__ = ["SDL", "Guard", "describe", "find_scope", "guarded"]

SDL = """
"The scope that an API key must have to use the field; without one, any key may. Root fields without @scope are not for keys."
directive @scope(requires: String) on FIELD_DEFINITION
"""

Guard = Callable[[Any, str, str | None], None]
"""`guard(ctx, coordinate, scope)` raises where the caller may not use the field. `scope` is None for a field that keys cannot
use, and empty for one that every key can."""


def find_scope(field: GraphQLField) -> str | None:
    """What `@scope` says of the field: a scope, empty where it names none, None where there is no `@scope`.

    Raises ValueError where it is no text.
    """
    for directive in (field.ast_node.directives if field.ast_node else None) or ():
        if directive.name.value == "scope":
            value = directive.arguments[0].value if directive.arguments else None
            if value is None:
                return ""
            if not isinstance(value, StringValueNode) or not value.value:
                raise ValueError('@scope takes a text, such as "projects:read"')
            return value.value
    return None


def guarded(resolver: Resolver, scope: str | None, guard: Guard) -> Resolver:
    """The same resolver, for those whom the guard lets pass."""
    if scope is None and resolver.batch:
        return resolver
    function, coordinate = resolver.function, resolver.coordinate

    @functools.wraps(function)
    async def call(ctx: Any, *parents: Any, **arguments: Any) -> Any:
        guard(ctx, coordinate, scope)
        return await function(ctx, *parents, **arguments)

    return msgspec.structs.replace(resolver, function=call)


def describe(field: GraphQLField, scope: str | None) -> None:
    """Say in the field's description what a key needs."""
    if scope:
        told = f"An API key needs the scope `{scope}`."
        field.description = f"{field.description}\n{told}" if field.description else told
