"""`@scope` declares the scope that an API key needs for a field. The engine reads it; the guard enforces it.

    projects: ProjectConnection! @scope(requires: "projects:read")   keys with that scope
    plans: [Plan!]! @scope                                           every key
    signOut: Boolean!                                                no key: a root field must declare @scope

A field of another type is available to callers that reached its parent, unless it declares its own scope.
Only fields with a resolver can declare one.
"""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
from graphql import GraphQLField, StringValueNode

from ximler.graphql.engine.registry import Resolver

__all__ = ["SDL", "Guard", "describe", "find_scope", "guarded"]

SDL = """
"API keys need this scope for the field. Without `requires`, any key may use it; without @scope, keys cannot use root fields."
directive @scope(requires: String) on FIELD_DEFINITION
"""

Guard = Callable[[Any, str, str | None], None]
"""`guard(ctx, coordinate, scope)` raises if the caller may not use the field. `scope` is None for fields
closed to keys, and empty for fields open to every key.
"""


def find_scope(field: GraphQLField) -> str | None:
    """The field's declared scope: empty if `@scope` names none, None if there is no `@scope`.

    Raises ValueError if it is not a string.
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
    """The resolver, called only if the guard permits."""
    if scope is None and resolver.batch:
        return resolver
    function, coordinate = resolver.function, resolver.coordinate

    @functools.wraps(function)
    async def call(ctx: Any, *parents: Any, **arguments: Any) -> Any:
        guard(ctx, coordinate, scope)
        return await function(ctx, *parents, **arguments)

    if (follow := resolver.follow) is None:
        return msgspec.structs.replace(resolver, function=call)

    async def guarded_follow(ctx: Any, **arguments: Any) -> Any:
        guard(ctx, coordinate, scope)
        return await follow(ctx, **arguments)

    def permit(ctx: Any) -> None:
        guard(ctx, coordinate, scope)

    return msgspec.structs.replace(resolver, function=call, follow=guarded_follow, permit=permit)


def describe(field: GraphQLField, scope: str | None) -> None:
    """Append the required scope to the field's description."""
    if scope:
        note = f"An API key needs the scope `{scope}`."
        field.description = f"{field.description}\n{note}" if field.description else note
