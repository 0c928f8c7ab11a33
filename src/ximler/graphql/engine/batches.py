"""Batches: the parents that wait for the same field with the same arguments, resolved by one call.

graphql-core asks for one parent's field at a time and completes a whole level before the event loop turns, so whoever
is asked within one turn belongs together. Two things keep a level from falling apart: parents are handed over only
when the turn is over, and a batch's answers are delivered only when everybody who waits for them waits, so that all
of them continue, and ask for the next level, within one turn again.
"""

import asyncio
from collections.abc import Coroutine, Generator, Hashable, Sequence
from typing import Any

import msgspec
from graphql import FieldNode

from ximler.core.errors import LimitExceeded
from ximler.graphql.engine.registry import Function

__all__ = ["Batches", "Failed", "Slot", "TooManyCalls"]

_PATIENCE = 64
"""Turns of the loop to wait for waiters; a waiter that was cancelled before it began never comes."""


class Failed(Exception):
    """One parent's share of a failure. A fresh object each: a shared one would grow a traceback entry a raise."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class TooManyCalls(LimitExceeded):
    code = "QUERY_LIMIT_EXCEEDED"


class Slot:
    """One parent's place in a batch; awaiting it gives the result, or an exception *as a value*."""

    __slots__ = ("_batch", "future")

    def __init__(self, batch: "_Batch", future: asyncio.Future[Any]) -> None:
        self._batch = batch
        self.future = future

    def __await__(self) -> Generator[Any, None, Any]:
        self._batch.waiting += 1
        return self.future.__await__()


class _Batch:
    __slots__ = ("arguments", "call", "coordinate", "parents", "places", "slots", "waiting")

    def __init__(self, coordinate: str, call: Function, arguments: dict[str, Any]) -> None:
        self.coordinate = coordinate
        self.call = call
        self.arguments = arguments
        self.parents: list[Any] = []
        self.slots: list[tuple[Slot, int]] = []
        self.places: dict[int, int] = {}
        self.waiting = 0

    def add(self, slot: Slot, parent: Any) -> None:
        """A parent that is here already, under another alias or on another path, is not asked for again."""
        place = self.places.setdefault(id(parent), len(self.parents))
        if place == len(self.parents):
            self.parents.append(parent)
        self.slots.append((slot, place))

    def cancel(self) -> None:
        for slot, _ in self.slots:
            slot.future.cancel()


class Batches:
    """The resolvers that run for one request. `close` it, whatever happens: it ends what still runs."""

    def __init__(self, ctx: Any, *, calls: int) -> None:
        self._ctx = ctx
        self._most_calls = self._calls_left = calls
        self._loop = asyncio.get_running_loop()
        self._open: dict[Hashable, _Batch] = {}
        self._of_node: dict[int, _Batch] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, coordinate: str, call: Function, node: FieldNode, parent: Any, arguments: dict[str, Any]) -> Slot:
        """Let a parent wait for its field. The same node has the same arguments, whichever parent it is for.

        Raises TooManyCalls where that would take more calls than the request may have.
        """
        batch = self._of_node.get(id(node))
        if batch is None or batch.coordinate != coordinate:
            batch = self._of_node[id(node)] = self._find(coordinate, call, node, arguments)
        slot = Slot(batch, self._loop.create_future())
        batch.add(slot, parent)
        return slot

    def _find(self, coordinate: str, call: Function, node: FieldNode, arguments: dict[str, Any]) -> _Batch:
        try:
            key: Hashable = (coordinate, _frozen(arguments))
            batch = self._open.get(key)
        except (TypeError, RecursionError):  # arguments that cannot be compared are nobody else's
            key = (coordinate, id(node))
            batch = self._open.get(key)
        if batch is None:
            if not self._calls_left:
                raise TooManyCalls(
                    f"This query needs more than {self._most_calls} calls: "
                    "select fewer fields that differ only in their arguments"
                )
            self._calls_left -= 1
            if not self._open:
                self._loop.call_soon(self._hand_over)
            batch = self._open[key] = _Batch(coordinate, call, arguments)
        return batch

    def start(self, call: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Run a root resolver that its siblings cannot cancel.

        Where one root field fails and may not be null, graphql-core cancels the others; a cancelled database call
        costs its connection, and a client could cause that at will.
        """
        return asyncio.shield(self._run(call))

    async def close(self, *, cancel: bool) -> None:
        """Wait for calls whose answer nobody needs any more (an error elsewhere made it null), or cancel them."""
        if cancel:
            for batch in self._take():
                batch.cancel()
            for task in self._tasks:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _hand_over(self) -> None:
        for batch in self._take():
            self._run(self._resolve(batch))

    def _take(self) -> list[_Batch]:
        batches = list(self._open.values())
        self._open.clear()
        self._of_node.clear()
        return batches

    def _run(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _resolve(self, batch: _Batch) -> None:
        try:
            answers = await _answer(batch, self._ctx)
            for _ in range(_PATIENCE):
                if batch.waiting >= len(batch.slots):
                    break
                await asyncio.sleep(0)
        except BaseException:
            batch.cancel()
            raise
        for slot, place in batch.slots:
            if not slot.future.done():
                answer = answers[place]
                slot.future.set_result(Failed(answer.cause) if isinstance(answer, Failed) else answer)


async def _answer(batch: _Batch, ctx: Any) -> Sequence[Any]:
    """One answer a parent, whatever the resolver did."""
    try:
        answers = await batch.call(ctx, batch.parents, **batch.arguments)
        if not isinstance(answers, list | tuple) or len(answers) != len(batch.parents):
            got = f"{len(answers)} results" if isinstance(answers, list | tuple) else type(answers).__name__
            raise TypeError(f"the resolver of {batch.coordinate} gave {got} for {len(batch.parents)} parents")
    except Exception as error:
        return [Failed(error) for _ in batch.parents]
    return [Failed(answer) if isinstance(answer, Exception) else answer for answer in answers]


def _frozen(value: Any) -> Hashable:
    """A key that equal arguments share, and only they: 1, 1.0 and true are three. Raises TypeError where there is none."""
    if isinstance(value, dict):
        return dict, tuple((name, _frozen(value[name])) for name in sorted(value))
    if isinstance(value, list):
        return list, tuple(map(_frozen, value))
    if isinstance(value, msgspec.Struct):
        return type(value), tuple(map(_frozen, msgspec.structs.astuple(value)))
    hash(value)
    return type(value), value
