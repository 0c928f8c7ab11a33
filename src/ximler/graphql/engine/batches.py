"""Batches: the parents that wait for the same field of the same selection, resolved by one call.

graphql-core asks for one parent's field at a time and completes a whole level before the event loop turns, so whoever
is asked within one turn belongs together. Two things keep a level from falling apart: parents are handed over only
when the turn is over, and a batch's answers are delivered only when everybody who waits for them waits, so that all
of them continue, and ask for the next level, within one turn again.
"""

import asyncio
from collections.abc import Coroutine, Generator, Sequence
from typing import Any

from graphql import FieldNode

from ximler.graphql.engine.registry import Function

__all__ = ["Batches", "Failed", "Slot"]

_PATIENCE = 64
"""Turns of the loop to wait for waiters; a waiter that was cancelled before it began never comes."""


class Failed(Exception):
    """One parent's share of a failure. A fresh object each: a shared one would grow a traceback entry a raise."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


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
    __slots__ = ("arguments", "call", "coordinate", "parents", "slots", "waiting")

    def __init__(self, coordinate: str, call: Function, arguments: dict[str, Any]) -> None:
        self.coordinate = coordinate
        self.call = call
        self.arguments = arguments
        self.parents: list[Any] = []
        self.slots: list[Slot] = []
        self.waiting = 0

    def cancel(self) -> None:
        for slot in self.slots:
            slot.future.cancel()


class Batches:
    """The resolvers that run for one request. `close` it, whatever happens: it ends what still runs."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._loop = asyncio.get_running_loop()
        self._open: dict[tuple[str, int], _Batch] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, coordinate: str, call: Function, node: FieldNode, parent: Any, arguments: dict[str, Any]) -> Slot:
        """Let a parent wait for its field. The same node has the same arguments, whichever parent it is for."""
        key = coordinate, id(node)
        batch = self._open.get(key)
        if batch is None:
            if not self._open:
                self._loop.call_soon(self._hand_over)
            batch = self._open[key] = _Batch(coordinate, call, arguments)
        slot = Slot(batch, self._loop.create_future())
        batch.parents.append(parent)
        batch.slots.append(slot)
        return slot

    def start(self, call: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Run a root resolver that its siblings cannot cancel.

        Where one root field fails and may not be null, graphql-core cancels the others; a cancelled database call
        costs its connection, and a client could cause that at will.
        """
        return asyncio.shield(self._run(call))

    async def close(self, *, cancel: bool) -> None:
        """Wait for calls whose answer nobody needs any more (an error elsewhere made it null), or cancel them."""
        if cancel:
            batches, self._open = self._open, {}
            for batch in batches.values():
                batch.cancel()
            for task in self._tasks:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _hand_over(self) -> None:
        batches, self._open = self._open, {}
        for batch in batches.values():
            self._run(self._resolve(batch))

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
        for slot, answer in zip(batch.slots, answers, strict=True):
            if not slot.future.done():
                slot.future.set_result(answer)


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
