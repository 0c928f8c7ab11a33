"""Registration of resolvers, beside their SDL: one `Resolvers` object per domain.

    resolvers = Resolvers()

    @resolvers.query("plans")
    async def plans(ctx): ...

    @resolvers.mutation("createProject")
    async def create_project(ctx, name, description=None): ...

    @resolvers.field("User", "subscription")
    async def subscriptions(ctx, users): ...

    @resolvers.subscription("projectChanged", follow=the_project)
    async def project_changed(ctx, event, id): ...

A **root** resolver is `async (ctx, **args)`. A **batch** resolver is `async (ctx, parents, **args) -> list`:
it is called once for all parents of a level and returns one element per parent, in order. An exception as an
element is the error of that parent. A **subscription** resolver is `async (ctx, event, **args)`: it is called
for each event of the topic and key that `follow`, `async (ctx, **args)`, returns when the stream begins.

Arguments are passed by name in snake_case. Omitted arguments are not passed, so the parameter's default
applies; an explicit `null` is None.

A resolver that can read a subset of fields takes `selected: Selected` (see `selected`). A batch resolver
declares with `needs` which attributes of its parents it reads.

Resolvers never see the query, its nodes or the executing library, which can therefore be replaced.
"""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ximler.graphql.engine.selected import Selected

__all__ = ["Function", "Resolver", "Resolvers"]

Function = Callable[..., Coroutine[Any, Any, Any]]
F = TypeVar("F", bound=Function)

ROOT_TYPES = {"Query": "query", "Mutation": "mutation", "Subscriptions": "subscription"}
"""The root types and their operations. `Subscription` is free for an
ordinary type: one that a customer has."""


class Resolver(msgspec.Struct, frozen=True):
    """A function and the field that it resolves."""

    type_name: str
    field_name: str
    function: Function
    needs: frozenset[str] | None = None
    """The attributes of its parents that it reads; None if not declared."""
    selects: bool = False
    """Whether it takes a parameter `selected`."""
    follow: Function | None = None
    """Of a subscription: returns the topic and the key of its events, or raises."""
    permit: Callable[[Any], None] | None = None
    """Of a subscription: `permit(ctx)` raises if the caller may not use the field."""

    @property
    def batch(self) -> bool:
        return self.type_name not in ROOT_TYPES

    @property
    def subjects(self) -> tuple[str, ...]:
        """Its parameters before the arguments."""
        return ("ctx", "parents") if self.batch else ("ctx", "event") if self.follow else ("ctx",)

    @property
    def coordinate(self) -> str:
        return f"{self.type_name}.{self.field_name}"

    @property
    def where(self) -> str:
        """File, line and name of the function, for error messages."""
        code = inspect.unwrap(self.function).__code__
        return f"{Path(code.co_filename).name}:{code.co_firstlineno} {self.function.__qualname__}"


class Resolvers:
    """The resolvers of one domain. A duplicate, or a function that is not `async`, raises TypeError at
    registration.
    """

    def __init__(self) -> None:
        self._resolvers: dict[str, Resolver] = {}

    def query(self, field: str) -> Callable[[F], F]:
        return self._register("Query", field)

    def mutation(self, field: str) -> Callable[[F], F]:
        return self._register("Mutation", field)

    def subscription(self, field: str, *, follow: Function) -> Callable[[F], F]:
        return self._register("Subscriptions", field, follow=follow)

    def field(self, type_name: str, field: str, *, needs: Iterable[str] | None = None) -> Callable[[F], F]:
        if type_name in ROOT_TYPES:
            raise TypeError(f"{type_name}.{field} is a root field: register it with .query(…) or .mutation(…)")
        return self._register(type_name, field, needs)

    def _register(
        self, type_name: str, field: str, needs: Iterable[str] | None = None, follow: Function | None = None
    ) -> Callable[[F], F]:
        def register(function: F) -> F:
            selects = any(each.annotation is Selected for each in inspect.signature(function).parameters.values())
            needed = None if needs is None else frozenset(needs)
            resolver = Resolver(type_name, field, function, needed, selects, follow)
            if not inspect.iscoroutinefunction(function):
                raise TypeError(f"the resolver of {resolver.coordinate} must be an async function, got {function!r}")
            earlier = self._resolvers.setdefault(resolver.coordinate, resolver)
            if earlier is not resolver:
                raise TypeError(f"{resolver.coordinate} has two resolvers: {earlier.where} and {resolver.where}")
            return function

        return register

    def __iter__(self) -> Iterator[Resolver]:
        return iter(self._resolvers.values())
