"""The engine: a query in, a response out, in two steps with the caller's context between them.

    prepared = engine.prepare(query, variables=…)      parse, validate, limit: no I/O; RequestRefused says why not
    response = await engine.run(prepared, ctx)         {"data": …} with "errors" where fields failed; never raises them

Root fields of a query run side by side, those of a mutation one after the other. `ctx` is the caller's own: the engine
hands it to resolvers and reads nothing of it but `request_id`, where it has one.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Mapping
from types import CoroutineType
from typing import Any, TypeGuard

import msgspec
from graphql import ExecutionResult, Executor, FieldNode

from ximler.graphql.engine.batches import Batches, Slot
from ximler.graphql.engine.documents import Documents, Operation
from ximler.graphql.engine.errors import (
    BAD_INPUT,
    INTERNAL,
    RequestRefused,
    describe_field_errors,
    describe_over_limit,
    describe_request_error,
)
from ximler.graphql.engine.fields import Request
from ximler.graphql.engine.limits import Limits, OverLimit
from ximler.graphql.engine.schema import Schema

__all__ = ["Engine", "Prepared", "Response"]

Response = dict[str, Any]


class Prepared(msgspec.Struct, frozen=True):
    """An operation that may run, once."""

    operation: Operation
    executor: Executor[Any]

    def changed_nothing(self, response: Response) -> bool:
        """Whether its one root field refused, on purpose, before there was anything to select from; so it may be tried again.

        Of several, one that refuses makes the whole answer null, and hides what those before it did.
        """
        roots = self.executor.operation.selection_set.selections
        errors = response.get("errors", [])
        return (
            len(roots) == 1
            and isinstance(roots[0], FieldNode)
            and len(errors) == 1
            and len(errors[0].get("path", ())) == 1
            and errors[0]["extensions"]["code"] != INTERNAL
        )


class Engine:
    """Executes operations on one schema. Belongs to one process; any number of requests may use it at once."""

    def __init__(self, schema: Schema, *, limits: Limits | None = None, introspection: bool = True) -> None:
        self.schema = schema
        self.limits = limits or Limits()
        self._documents = Documents(schema, self.limits, introspection=introspection)

    def prepare(
        self, query: str, *, variables: Mapping[str, Any] | None = None, operation_name: str | None = None
    ) -> Prepared:
        """Check everything that can be checked without running it. Raises RequestRefused."""
        document = self._documents.get(query)
        operation = document.get_operation(operation_name)
        executor = Executor.build(
            self.schema.core,
            document.ast,
            raw_variable_values=dict(variables or {}),
            operation_name=operation.name,
            max_coercion_errors=self.limits.errors - 1,
            is_awaitable=_is_awaitable,
            is_async_iterable=_is_never,
        )
        if isinstance(executor, list):
            raise RequestRefused([describe_request_error(error, BAD_INPUT) for error in executor])
        cost = operation.cost.total(executor.variable_values.coerced)
        if cost > self.limits.cost:
            error = OverLimit("cost", cost, self.limits.cost, "ask for shorter pages or fewer nested lists")
            raise RequestRefused([describe_over_limit(error)])
        return Prepared(operation, executor)

    async def run(self, prepared: Prepared, ctx: Any) -> Response:
        """Execute. Cancelling it cancels the resolvers that still run."""
        executor = prepared.executor
        batches = Batches(ctx, calls=self.limits.calls)
        executor.context_value = Request(ctx, batches)
        finished = False
        try:
            result = executor.execute_operation()
            if not isinstance(result, ExecutionResult):
                result = await result  # type: ignore[misc]  # never incremental: that is another executor
            # A field that became null does not wait for its siblings; the request, which ends their context, does.
            while executor.background_futures:
                await asyncio.wait(list(executor.background_futures))
            finished = True
        finally:
            await batches.close(cancel=not finished)
        return self._respond(result, prepared.operation, ctx)

    async def execute(
        self, query: str, ctx: Any, *, variables: Mapping[str, Any] | None = None, operation_name: str | None = None
    ) -> Response:
        """Prepare and run in one go; a refused request is a response too, without `data`."""
        try:
            prepared = self.prepare(query, variables=variables, operation_name=operation_name)
        except RequestRefused as refused:
            return {"errors": refused.errors}
        return await self.run(prepared, ctx)

    def _respond(self, result: ExecutionResult, operation: Operation, ctx: Any) -> Response:
        if not result.errors:
            return {"data": result.data}
        errors = describe_field_errors(
            result.errors, request_id=getattr(ctx, "request_id", None), operation=operation.name
        )
        return {"errors": errors, "data": result.data}


_AWAITABLE = (CoroutineType, Slot, asyncio.Future)
"""What fields give that have to be awaited; nothing else in an execution does."""


def _is_awaitable(value: Any) -> TypeGuard[Awaitable[Any]]:
    """Quicker than looking for `__await__` on every value."""
    return isinstance(value, _AWAITABLE)


def _is_never(_value: Any) -> TypeGuard[AsyncIterable[Any]]:
    return False
