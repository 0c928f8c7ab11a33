"""A process that is killed between any two of its commands to the database, in this one.

`Killer` ends an act before its k-th command, by an exception that nothing catches; from then on no command is
sent. Only the abort of an open transaction is, because the server does that itself for a process that is
gone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ximler.database import wire

__all__ = ["Killer"]

_SELF_MADE = (b"abortTransaction", b"endSessions", b"killCursors")


class Killed(asyncio.CancelledError):
    """No `Exception`: code that survives failures does not survive this one.
    Tasks end by it without a word."""


class Killer:
    """`commands` is how many were sent by the act that is under way, or was last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands = 0
        self._last: int | None = None  # the number of commands that the act may send
        self._counting = self._killed = False
        send = wire.Connection.send_message

        async def send_message(connection: Any, message: bytes, max_doc_size: int) -> None:
            if self._counting and not any(name in message[:64] for name in _SELF_MADE):
                if self._last is not None and self.commands >= self._last:
                    self._killed = True
                    raise Killed
                self.commands += 1
            await send(connection, message, max_doc_size)

        monkeypatch.setattr(wire.Connection, "send_message", send_message)

    async def run(self, act: Callable[[], Awaitable[object]], *, commands: int | None = None) -> bool:
        """Run an act, and kill it after that many commands; False if it was not killed."""
        with self._count(commands):
            try:
                await act()
            except asyncio.CancelledError:  # asyncio replaces those of tasks
                if not self._killed:
                    raise
            return self._killed

    @contextmanager
    def _count(self, commands: int | None) -> Iterator[None]:
        self.commands, self._last, self._counting, self._killed = 0, commands, True, False
        try:
            yield
        finally:
            self._counting = False
