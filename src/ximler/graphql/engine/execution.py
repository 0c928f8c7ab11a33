"""Executes a plan: calls resolvers level by level and places their values in the response.

A resolver below the root receives all parents of a level in one call. Calls that are ready at the same moment
run concurrently, and dependent calls start as soon as their parents have arrived. Root fields of a mutation
run serially and stop once an error has nulled the response. Objects that became null are not resolved
further.

Values are completed by compiled code (`compiled`), or by the interpreter below on a plan's first use and for
values that do not match the schema. Errors and nulls follow
https://spec.graphql.org/draft/#sec-Handling-Execution-Errors.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from graphql import (
    DocumentNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    Undefined,
    execute_sync,
    located_error,
)
from graphql.pyutils import is_iterable
from prometheus_client import Counter

from ximler.core.errors import LimitExceeded
from ximler.core.stopping import end
from ximler.graphql.engine.compiled import completer, shared_completer
from ximler.graphql.engine.fields import Shared, read, type_name
from ximler.graphql.engine.inputs import Values
from ximler.graphql.engine.plan import INTROSPECTION, Field, Plan, Shape

__all__ = ["Asked", "Execution", "TooManyCalls"]

FALLBACKS = Counter("ximler_graphql_fallbacks_total", "Fields that graphql-core executed: those of introspection.")

Pair = tuple[Any, dict[str, Any]]
"""A parent and its response object."""
Path = list[str | int]


class TooManyCalls(LimitExceeded):
    code = "QUERY_LIMIT_EXCEEDED"


class Asked(NamedTuple):
    """A resolver call, for the trace."""

    field: str
    parents: int
    began: float
    ended: float


class _Bubble(Exception):
    """Null in a non-null position. The error has been recorded."""


class _Call:
    """One resolver call for all waiting parents, with the response objects that receive its results."""

    __slots__ = ("arguments", "field", "parents", "places", "waiting")

    def __init__(self, field: Field, arguments: dict[str, Any]) -> None:
        self.field = field
        self.arguments = arguments
        self.parents: list[Any] = []
        self.places: dict[int, int] = {}
        self.waiting: list[tuple[Field, list[Pair]]] = []

    def add(self, field: Field, pairs: list[Pair]) -> None:
        """A parent that is already present under another alias or path is not passed twice."""
        self.waiting.append((field, pairs))
        places, parents = self.places, self.parents
        for parent, _ in pairs:
            if id(parent) not in places:
                places[id(parent)] = len(parents)
                parents.append(parent)


class Execution:
    """One execution of a plan. Call `run` once, then read `data` and `errors`."""

    def __init__(self, plan: Plan, values: Values, ctx: Any, *, calls: int, event: Any = None) -> None:
        self.data: dict[str, Any] | None = None
        self.errors: list[GraphQLError] = []
        self.asked: list[Asked] = []
        self._plan = plan
        self._values = values
        self._ctx = ctx
        self._subjects = (ctx,) if event is None else (ctx, event)  # of root resolvers
        self._most_calls = self._calls_left = calls
        self._waiting: dict[Field, list[Pair]] = defaultdict(list)
        self._running: dict[asyncio.Task[Sequence[Any]], _Call] = {}
        self._nulled = False
        self._expired = False
        self._paths: dict[tuple[str, ...], dict[int, Path]] = {}

    async def run(self, *, serially: bool, seconds: float) -> bool:
        """False after a timeout. Resolvers that are still running are then cancelled, as they are on
        cancellation.
        """
        # Like asyncio.timeout, in a third of its time.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (coroutines run in one)
        timer = task.get_loop().call_later(seconds, self._expire, task)
        try:
            await self._run(serially=serially)
        except asyncio.CancelledError:
            if not self._expired or task.uncancel() > 0:
                raise
            return False
        finally:
            timer.cancel()
        if self._expired:  # a resolver ignored the cancellation
            task.uncancel()
        return True

    def _expire(self, task: asyncio.Task[Any]) -> None:
        self._expired = True
        task.cancel()

    async def _run(self, *, serially: bool) -> None:
        root = self._plan.root
        if root.error is not None:
            self.errors.append(root.error)
            return
        self.data = data = dict.fromkeys([field.key for field in root.fields])
        try:
            if len(root.fields) == 1 and root.fields[0].resolver is not None:
                await self._run_alone(root.fields[0], data)
                return
            for field in root.fields:
                if self.data is not data:  # an error in an earlier field nulled the response
                    break
                if field.resolver is None:
                    introspection = field.name in INTROSPECTION
                    data[field.key] = self._describe(field) if introspection else root.type_name
                    continue
                self._waiting[field].append((None, data))
                if serially:
                    await self._resolve()
            await self._resolve()
        finally:
            if self._running:
                await end(self._running)  # repeatedly: the database driver swallows a cancellation now and then

    async def _run_alone(self, field: Field, data: dict[str, Any]) -> None:
        """The only root field: its call is not batched with others."""
        call = _Call(field, {})
        call.parents.append(None)
        try:
            if field.arguments is not None:
                call.arguments = field.arguments.evaluate(self._values)
            if field.selected is not None:
                call.arguments["selected"] = field.selected
        except Exception as error:
            self._fail(field, data, error)
            return
        self._put(field, [(None, data)], await self._call(call))
        if self._waiting:
            await self._resolve()

    def calls(self, since: float) -> list[str]:
        """The resolver calls: field, number of parents, start and end in milliseconds."""
        return [
            f"{each.field} × {each.parents}: {(each.began - since) * 1000:.1f}–{(each.ended - since) * 1000:.1f} ms"
            for each in self.asked
        ]

    async def _resolve(self) -> None:
        """Run calls, and the calls that depend on them, until none are left."""
        running = self._running
        while self._waiting or running:
            calls = self._take()
            if len(calls) == 1 and not running:
                self._deliver(calls[0], await self._call(calls[0]))
                continue
            for call in calls:
                running[asyncio.get_running_loop().create_task(self._call(call))] = call
            if running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task in done]:
                    self._deliver(running.pop(task), task.result())

    def _take(self) -> list[_Call]:
        """The calls for all waiting fields. Equal calls are merged."""
        waiting, self._waiting = self._waiting, defaultdict(list)
        calls: dict[Hashable, _Call] = {}
        for field in sorted(waiting, key=_order) if len(waiting) > 1 else waiting:
            pairs = self._alive(field, waiting[field]) if self._nulled else waiting[field]
            if not pairs:
                continue
            try:
                arguments = field.arguments.evaluate(self._values) if field.arguments else {}
                if field.selected is not None:
                    arguments["selected"] = field.selected
                call = self._find(calls, field, arguments, alone=len(waiting) == 1)
            except Exception as error:
                for _, answer in pairs:
                    self._fail(field, answer, error)
                continue
            call.add(field, pairs)
        return list(calls.values())

    def _find(self, calls: dict[Hashable, _Call], field: Field, arguments: dict[str, Any], *, alone: bool) -> _Call:
        key: Hashable = field
        if field.above is not None:
            if not alone:
                try:
                    key = field.coordinate, _frozen(arguments)
                except (TypeError, RecursionError):  # arguments that cannot be compared are not shared
                    key = field
            if key not in calls:
                if not self._calls_left:
                    raise TooManyCalls(
                        f"This query needs more than {self._most_calls} calls: "
                        "select fewer fields that differ only in their arguments"
                    )
                self._calls_left -= 1
        if key not in calls:
            calls[key] = _Call(field, arguments)
        return calls[key]

    async def _call(self, call: _Call) -> Sequence[Any]:
        """One result per parent, also if the resolver fails."""
        field, parents = call.field, call.parents
        assert field.resolver is not None  # noqa: S101 (only fields with a resolver wait)
        began = time.perf_counter()
        try:
            if field.above is None:
                return [await field.resolver.function(*self._subjects, **call.arguments)]
            answers = await field.resolver.function(self._ctx, parents, **call.arguments)
            if not isinstance(answers, list | tuple) or len(answers) != len(parents):
                got = f"{len(answers)} results" if isinstance(answers, list | tuple) else type(answers).__name__
                raise TypeError(f"the resolver of {field.coordinate} gave {got} for {len(parents)} parents")
            return answers
        except Exception as error:
            return [error] * len(parents)
        finally:
            self.asked.append(Asked(field.coordinate, len(parents), began, time.perf_counter()))

    def _deliver(self, call: _Call, answers: Sequence[Any]) -> None:
        if len(call.waiting) > 1:
            answers = [_repeatable(answer) for answer in answers]
        for field, pairs in call.waiting:
            alive = self._alive(field, pairs) if self._nulled else pairs
            if alive is pairs and len(pairs) == len(answers):  # no duplicates, same order
                self._put(field, pairs, answers)
            else:
                self._put(field, alive, [answers[call.places[id(parent)]] for parent, _ in alive])

    def _put(self, field: Field, pairs: list[Pair], values: Iterable[Any]) -> None:
        """Complete each parent's value."""
        key = field.key
        if self._plan.uses > 1:
            if field.complete is None:
                field.complete = completer(field)
            waiting: dict[Field, list[Pair]] = defaultdict(list)
            try:
                for (_, answer), value in zip(pairs, values, strict=True):
                    if value.__class__ is Shared:
                        field.share = field.share or shared_completer(field)
                        answer[key] = field.share(value.value, waiting)
                    else:
                        answer[key] = field.complete(value, waiting)
            except Exception:  # noqa: S110 (the interpreter determines the value and the error)
                pass
            else:
                for of, found in waiting.items():
                    self._waiting[of] += found
                return
        for (_, answer), value in zip(pairs, values, strict=True):
            if self._nulled and self._find_path(field.place[:-1], answer) is None:
                continue
            if value.__class__ is Shared:
                value = value.value  # noqa: PLW2901 (unwrapped)
            try:
                answer[key] = _Interpreter(self, field, answer).complete(field, field.shape, value, ())
            except _Bubble:
                self._null_above(field, answer)

    # Errors

    def ask(self, field: Field, parent: Any, answer: dict[str, Any]) -> None:
        """Queue an object for a field with a resolver."""
        self._waiting[field].append((parent, answer))

    def record(
        self, field: Field, answer: dict[str, Any], error: Exception, of: Field, below: tuple[str | int, ...]
    ) -> None:
        """Record an error at the path `below` a field, unless its object has
        been nulled by an earlier error."""
        path = self._find_path(field.place[:-1], answer)
        if path is not None:
            self.errors.append(located_error(error, of.nodes, [*path, field.key, *below]))

    def _fail(self, field: Field, answer: dict[str, Any], error: Exception) -> None:
        self.record(field, answer, error, field, ())
        answer[field.key] = None
        if field.shape.required:
            self._null_above(field, answer)

    def _null_above(self, field: Field, answer: dict[str, Any]) -> None:
        """Null the nearest nullable object or item that contains the field."""
        path = self._find_path(field.place[:-1], answer)
        if path is None:
            return
        self._nulled = True
        above = field.above
        while above is not None:
            for shape in reversed(above.shape.levels):
                if not shape.required:
                    holder: Any = self.data
                    for step in path[:-1]:
                        holder = holder[step]
                    holder[path[-1]] = None
                    return
                path = path[:-1]
            above = above.above
        self.data = None

    def _alive(self, field: Field, pairs: list[Pair]) -> list[Pair]:
        return [pair for pair in pairs if self._find_path(field.place[:-1], pair[1]) is not None]

    def _find_path(self, place: tuple[str, ...], answer: dict[str, Any]) -> Path | None:
        """The path of a response object; None if it or one of its ancestors has been nulled."""
        if place not in self._paths:
            self._paths[place] = dict(_walk(self.data, place, []))
        path = self._paths[place].get(id(answer))
        if path is None:
            return None
        found: Any = self.data
        for step in path:
            if found is None:
                return None
            found = found[step]
        return path if found is answer else None

    # Introspection

    def _describe(self, field: Field) -> Any:
        """Introspection by graphql-core, the only fields that it executes."""
        FALLBACKS.inc()
        operation = OperationDefinitionNode(
            operation=OperationType.QUERY,
            selection_set=SelectionSetNode(selections=tuple(field.nodes)),
            variable_definitions=self._plan.operation.variable_definitions,
            directives=(),
        )
        document = DocumentNode(definitions=(operation, *self._plan.fragments.values()))
        result = execute_sync(self._plan.schema.core, document, variable_values=dict(self._values.raw))
        self.errors += result.errors or ()
        return result.data and result.data[field.key]


class _Interpreter:
    """Completes one field's value for one object, with its errors; queues objects for resolvers."""

    __slots__ = ("_answer", "_execution", "_top")

    def __init__(self, execution: Execution, top: Field, answer: dict[str, Any]) -> None:
        self._execution = execution
        self._top = top
        self._answer = answer

    def complete(self, field: Field, shape: Shape, value: Any, below: tuple[str | int, ...]) -> Any:
        """Raises _Bubble if the result is null in a non-null position."""
        found: Any = None
        error = value if isinstance(value, Exception) else None
        try:
            if value is None or error is not None:
                pass
            elif shape.inner is not None:
                found = self._list(field, shape.inner, value, below)
            elif shape.kind == "leaf":
                found = _leaf(shape, value)
            else:
                found = self._object(field, shape, value, below)
        except _Bubble:
            if shape.required:
                raise
            return None
        except Exception as raised:
            error = raised
        if error is None:
            if found is not None or not shape.required:
                return found
            error = TypeError(f"Cannot return null for non-nullable field {field.coordinate}.")
        self._execution.record(self._top, self._answer, error, field, below)
        if shape.required:
            raise _Bubble
        return None

    def _list(self, field: Field, inner: Shape, values: Any, below: tuple[str | int, ...]) -> list[Any]:
        if not is_iterable(values):
            raise TypeError(f"{field.coordinate} needs a list, got {type(values).__name__}")
        return [self.complete(field, inner, value, (*below, index)) for index, value in enumerate(values)]

    def _object(self, field: Field, shape: Shape, value: Any, below: tuple[str | int, ...]) -> dict[str, Any]:
        assert field.children is not None  # noqa: S101 (validated: objects have selections)
        name = type_name(value, field.children) if shape.kind == "abstract" else shape.type.name
        selection = field.children.of(name)
        if selection.error is not None:
            raise GraphQLError(selection.error.message, selection.error.nodes)
        found: dict[str, Any] = {}
        for each in selection.fields:
            if each.name == "__typename":
                found[each.key] = name
            elif each.resolver is not None:
                found[each.key] = None
                self._execution.ask(each, value, found)
            else:
                try:
                    inner = read(value, each)
                except Exception as error:
                    inner = error
                found[each.key] = self.complete(each, each.shape, inner, (*below, each.key))
        return found


def _leaf(shape: Shape, value: Any) -> Any:
    found = shape.type.coerce_output_value(value)
    if found is None or found is Undefined:
        raise TypeError(f"{shape.type.name} gave nothing for a {type(value).__name__}")
    return found


def _walk(found: Any, place: tuple[str, ...], path: Path) -> Iterator[tuple[int, Path]]:
    """The response objects at a place, with their paths."""
    if isinstance(found, list):
        for index, item in enumerate(found):
            yield from _walk(item, place, [*path, index])
    elif isinstance(found, dict):
        if not place:
            yield id(found), path
        else:
            yield from _walk(found.get(place[0]), place[1:], [*path, place[0]])


def _repeatable(answer: Any) -> Any:
    """A result that can be iterated for several response objects, unlike an iterator."""
    if not isinstance(answer, Iterator):
        return answer
    try:
        return list(answer)
    except Exception as error:
        return error


def _order(field: Field) -> int:
    return field.order


def _frozen(value: Any) -> Hashable:
    """A key shared by equal arguments only: 1, 1.0 and true differ. Raises TypeError if not hashable."""
    if isinstance(value, dict):
        return dict, tuple((name, _frozen(value[name])) for name in sorted(value))
    if isinstance(value, list):
        return list, tuple(map(_frozen, value))
    if isinstance(value, msgspec.Struct):
        return type(value), tuple(map(_frozen, msgspec.structs.astuple(value)))
    hash(value)
    return type(value), value
