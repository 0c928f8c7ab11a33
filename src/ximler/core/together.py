"""Concurrent calls in one process that are performed together,
because each command to the database costs a round trip."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Together"]

A = TypeVar("A")
R = TypeVar("R")


class Together(Generic[A, R]):
    """`await together(key, argument)`: calls with the same key that wait at
    the same time are performed as one.

    `perform(key, arguments)` returns a result for each argument, in order; its exception is raised by all of
    these calls. A call that finds no other is performed at once. A caller that is cancelled does not affect
    the others.
    """

    def __init__(self, perform: Callable[[Any, list[A]], Awaitable[Sequence[R]]], *, most: int = 64) -> None:
        self._perform = perform
        self._most = most
        self._queues: dict[Hashable, list[tuple[A, asyncio.Future[R]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # referenced, so that they are not collected while they run

    async def __call__(self, key: Hashable, argument: A) -> R:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if (queue := self._queues.get(key)) is not None:
            queue.append((argument, future))
        else:
            self._queues[key] = [(argument, future)]
            task = asyncio.create_task(self._run(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _run(self, key: Hashable) -> None:
        while batch := self._queues[key][: self._most]:
            del self._queues[key][: self._most]
            try:
                results = await self._perform(key, [argument for argument, _ in batch])
                answers = list(zip(batch, results, strict=True))
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    for _, future in self._queues.pop(key):
                        future.cancel()
                    raise
                continue
            for (_, future), result in answers:
                if not future.done():  # else its caller was cancelled
                    future.set_result(result)
        del self._queues[key]
