"""Open streams of events to clients: at most eight a user and process, with a bounded queue and an end each.

    with streams.open(actor, Inbox()) as inbox:
        async for events in watched(inbox, allowed): …

`watched` checks the access twice a second, so that a stream ends within a second of the session or key that
opened it. All streams end when the process stops. Nothing of a stream remains when its `with` block ends.
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, Unavailable

__all__ = ["MAX_STREAMS", "RESYNC", "Event", "Inbox", "Position", "Streams", "read_position", "watched"]

E = TypeVar("E")
I_ = TypeVar("I_", bound="Inbox[Any]")

MAX_STREAMS = 8  # per user
CHECK_S = 0.5
PING_S = 15.0


Position = str
"""A write's place in the order of all writes, which all processes agree on:
digits in hexadecimal, compared as text."""
_POSITION = re.compile(r"[0-9A-F]{2,4000}")


class Event(NamedTuple):
    """A write that a topic's followers learn of (`database.topics`)."""

    position: Position | None
    key: Hashable = None
    id: Any = None
    """Of the written document."""


RESYNC = Event(None)
"""In place of events that may have been missed."""


def read_position(text: str) -> Position:
    """The position in `Last-Event-ID`; before all events for other text."""
    return text if _POSITION.fullmatch(text) else ""


class Inbox(Generic[E]):
    """The events that wait to be sent. Subclasses bound their number in `_events`, and call `_wake.set()`."""

    def __init__(self) -> None:
        self.ended = False
        self._events: deque[E] = deque()
        self._wake = asyncio.Event()

    async def events(self, timeout_s: float) -> list[E]:
        """Events since the last call; empty after `timeout_s`, and when `ended`."""
        if not self._wake.is_set():
            waiting = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait([waiting], timeout=timeout_s)
            finally:
                waiting.cancel()
        self._wake.clear()
        found = list(self._events)
        self._empty()
        return found

    def end(self) -> None:
        self.ended = True
        self._wake.set()

    def _empty(self) -> None:
        self._events.clear()


class Streams:
    """One per process. When `run` stops, all streams end."""

    def __init__(self) -> None:
        self._open: set[Inbox[Any]] = set()
        self._of_user: Counter[object] = Counter()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, stop: asyncio.Event) -> None:
        self._stopped = False
        await stop.wait()
        self._stopped = True
        for inbox in self._open:
            inbox.end()

    def admit(self, actor: Actor) -> None:
        """Raises LimitExceeded if the user has as many streams as they may, Unavailable during shutdown."""
        if self._stopped:
            raise Unavailable("The server stops: connect again in a moment")
        if self._of_user[actor.require_user()] >= MAX_STREAMS:
            raise LimitExceeded(f"{MAX_STREAMS} streams of changes are open: close one first")

    @contextmanager
    def open(self, actor: Actor, inbox: I_) -> Iterator[I_]:
        """Count a stream, for as long as the block lasts. Raises as `admit`."""
        self.admit(actor)
        user = actor.require_user()
        self._open.add(inbox)
        self._of_user[user] += 1
        try:
            yield inbox
        finally:
            self._open.discard(inbox)
            self._of_user[user] -= 1
            if not self._of_user[user]:
                del self._of_user[user]


async def watched(inbox: Inbox[E], allowed: Callable[[], Awaitable[bool]]) -> AsyncGenerator[list[E], None]:
    """The events as they arrive; an empty list after 15 silent seconds.
    Ends when `inbox` does, or `allowed` is false."""
    sent = monotonic()
    while not inbox.ended:
        events = await inbox.events(CHECK_S)
        if not await allowed() or inbox.ended:
            return
        if events or monotonic() - sent >= PING_S:
            yield events
            sent = monotonic()
