"""The engine: a query in, a response out, in two steps between which the caller builds the context.

    prepared = engine.prepare(query, variables=…)   parse, validate, limit; no I/O; raises RequestRefused
    response = await engine.run(prepared, ctx)      {"data": …}, and "errors" if fields failed

Root fields of a query run concurrently, those of a mutation serially. `ctx` belongs to the caller: the engine
passes it to resolvers and reads only its `request_id`, if it has one.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import structlog
from graphql import GraphQLError

from ximler.graphql.engine.compiled import as_dicts
from ximler.graphql.engine.documents import Documents, Operation
from ximler.graphql.engine.errors import (
    BAD_INPUT,
    INTERNAL,
    TIMED_OUT,
    VALIDATION_FAILED,
    RequestRefused,
    describe_field_errors,
    describe_over_limit,
    describe_request_error,
)
from ximler.graphql.engine.execution import Execution
from ximler.graphql.engine.inputs import Values
from ximler.graphql.engine.limits import Limits, OverLimit
from ximler.graphql.engine.plan import Plan
from ximler.graphql.engine.schema import Schema

__all__ = ["Engine", "Prepared", "Response"]

Response = dict[str, Any]
Trips = Callable[[], AbstractContextManager[list[tuple[str, str]]]]
"""`with trips() as recorded` records the commands sent to the database, as verb and collection."""

log = structlog.get_logger("ximler.graphql")

_NO_TRIPS: AbstractContextManager[list[tuple[str, str]]] = nullcontext([])


class Prepared(msgspec.Struct, frozen=True):
    """A validated operation with its variables."""

    operation: Operation
    plan: Plan
    values: Values

    @property
    def repeatable(self) -> bool:
        """Whether it is a query whose variables no resolver can change,
        so that equal requests may share it."""
        scalars = (str, int, float, bool, type(None))
        return (
            not self.operation.mutation
            and not self.operation.subscription
            and all(value.__class__ in scalars for value in self.values.coerced.values())
        )

    def changed_nothing(self, response: Response) -> bool:
        """Whether the only root field failed with a domain error before it changed anything, so that a retry
        is safe.

        With several root fields, one that fails nulls the whole response and hides the effects of the earlier
        ones.
        """
        errors = response.get("errors", [])
        return (
            len(self.plan.root.fields) == 1
            and len(errors) == 1
            and len(errors[0].get("path", ())) == 1
            and errors[0]["extensions"]["code"] != INTERNAL
        )


class Engine:
    """Executes operations on one schema. One per process; safe for concurrent requests."""

    def __init__(
        self,
        schema: Schema,
        *,
        limits: Limits | None = None,
        introspection: bool = True,
        trips: Trips = lambda: _NO_TRIPS,
    ) -> None:
        self.schema = schema
        self._trips = trips
        self.limits = limits or Limits()
        self._documents = Documents(schema, self.limits, introspection=introspection)

    def prepare(
        self, query: str, *, variables: Mapping[str, Any] | None = None, operation_name: str | None = None
    ) -> Prepared:
        """Validate the request without running it. Raises RequestRefused."""
        operation = self._documents.get(query).get_operation(operation_name)
        values = operation.variables.coerce(variables or {})
        cost = operation.cost.total(values.coerced)
        if cost > self.limits.cost:
            error = OverLimit("cost", cost, self.limits.cost, "ask for shorter pages or fewer nested lists")
            raise RequestRefused([describe_over_limit(error)])
        return Prepared(operation, operation.plan(values), values)

    async def follow(self, prepared: Prepared, ctx: Any) -> tuple[Any, Any]:
        """The topic and key of a subscription's events.
        Raises RequestRefused, and the errors of its `follow`."""
        fields = prepared.plan.root.fields
        if len(fields) != 1 or fields[0].resolver is None or fields[0].resolver.follow is None:
            message = "A subscription selects one field that has events"
            raise RequestRefused([{"message": message, "extensions": {"code": VALIDATION_FAILED}}])
        field = fields[0]
        try:
            arguments = field.arguments.evaluate(prepared.values) if field.arguments else {}
        except GraphQLError as error:
            raise RequestRefused([describe_request_error(error, BAD_INPUT)]) from error
        found: tuple[Any, Any] = await fields[0].resolver.follow(ctx, **arguments)
        return found

    def permit(self, prepared: Prepared, ctx: Any) -> None:
        """Check a subscription that began against its caller's rights now. Raises Forbidden."""
        resolver = prepared.plan.root.fields[0].resolver
        if resolver is not None and resolver.permit is not None:
            resolver.permit(ctx)

    async def run(self, prepared: Prepared, ctx: Any, *, traced: bool = False, event: Any = None) -> Response:
        """Execute, a subscription for one event. Cancelling this cancels the
        resolvers that are still running.

        Past its timeout the operation is cancelled and the response has an error. `traced` adds
        `extensions.trace`.
        """
        execution = Execution(prepared.plan, prepared.values, ctx, calls=self.limits.calls, event=event)
        began = time.perf_counter()
        response: Response
        with self._trips() as trips:
            if not await execution.run(serially=prepared.operation.mutation, seconds=self.limits.seconds):
                message = f"The operation took longer than {self.limits.seconds:g} s and was ended"
                response = {"errors": [{"message": message, "extensions": {"code": TIMED_OUT}}], "data": None}
            else:
                response = self._respond(execution, prepared.operation, ctx)
        seconds = time.perf_counter() - began
        if traced or seconds > self.limits.slow_seconds:
            trace = {
                "seconds": round(seconds, 4),
                "calls": execution.calls(began),
                "roundTrips": list(map(" ".join, trips)),
            }
            if seconds > self.limits.slow_seconds:
                log.warning(
                    "slow operation", operation=prepared.operation.name, query=prepared.operation.digest, **trace
                )
            if traced:
                response["extensions"] = {"trace": trace}
        return response

    def _respond(self, execution: Execution, operation: Operation, ctx: Any) -> Response:
        if not execution.errors:
            return {"data": execution.data}
        errors = describe_field_errors(
            execution.errors, request_id=getattr(ctx, "request_id", None), operation=operation.name
        )
        return {"errors": errors, "data": execution.data}

    async def execute(
        self, query: str, ctx: Any, *, variables: Mapping[str, Any] | None = None, operation_name: str | None = None
    ) -> Response:
        """Prepare and run. A rejected request is a response without `data`. Rows are converted to dicts."""
        try:
            prepared = self.prepare(query, variables=variables, operation_name=operation_name)
        except RequestRefused as refused:
            return {"errors": refused.errors}
        return {name: as_dicts(value) for name, value in (await self.run(prepared, ctx)).items()}
