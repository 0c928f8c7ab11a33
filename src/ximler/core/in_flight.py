"""Bytes that a process holds for its clients: bodies being received, exports being sent, unread answers, and
changes queued for streams.

Clients decide how long these bytes are held, so their sum is bounded. When room is needed, slow readers are
disconnected, slowest first. Less than 64 kB of a request or connection is not counted, so small requests are
answered even when the bound is reached. Not here: files that are stored while they arrive, and pictures, of
which one is decoded at a time.

Larger bodies of callers without an account are parsed in turn, so that a flood of them leaves the event loop
to others.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any, Protocol

from ximler.core.errors import Unavailable

__all__ = ["EXPORT", "SLOW", "SMALL", "InFlight", "Overloaded", "Reader", "hold", "turn"]

SMALL = 65_536
EXPORT = 32_000_000  # bytes of an archive that is made while it is sent
SLOW = 16_000  # bytes per second, below which a client makes room for others
_PARSED = 10_000_000  # bytes of strangers per second: a megabyte takes up to 25 ms of the event loop
_HELD, _BUDGET = "bytes_held", "in_flight"


class Overloaded(Unavailable):
    code = "OVERLOADED"
    retry_after_s = 5


class Reader(Protocol):
    """A connection whose client has not taken all that was sent."""

    @property
    def pace(self) -> float:
        """Bytes per second that the client takes."""

    def drop(self) -> None:
        """Close the connection."""


class InFlight:
    """One per process. Callers without an account may hold half of the bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.strangers = 0
        self.all = 0
        self._readers: dict[Reader, tuple[int, bool]] = {}
        self._next_turn = 0.0

    def enter(self, state: MutableMapping[str, Any]) -> None:
        """Before a request is answered; `leave` follows when it has been."""
        state[_BUDGET] = self

    def hold(self, state: MutableMapping[str, Any], size: int, *, known: bool) -> None:
        """Raises Overloaded."""
        if not self.take(size, known=known):
            state["overloaded"] = True
            raise Overloaded("The server is receiving and sending too much at this moment: try again in a moment")
        held = state.setdefault(_HELD, [0, 0])
        held[known] += size

    async def turn(self, size: int) -> None:
        """Wait until a stranger's body may be parsed."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_turn)
        self._next_turn = at + size / _PARSED
        if at > now:
            await asyncio.sleep(at - now)

    def leave(self, state: MutableMapping[str, Any]) -> None:
        strangers, known = state.pop(_HELD, (0, 0))
        self.give(strangers, known=False)
        self.give(known, known=True)

    def take(self, size: int, *, known: bool) -> bool:
        """Count bytes until `give`. False if there is no room, also without slow readers."""
        if not self._fits(size, known=known):
            self._make_room(size, known=known)
            if not self._fits(size, known=known):
                return False
        self.all += size
        if not known:
            self.strangers += size
        return True

    def give(self, size: int, *, known: bool) -> None:
        self.all -= size
        if not known:
            self.strangers -= size

    def wait(self, reader: Reader, size: int, *, known: bool) -> None:
        """Count bytes that a client has not read, until `taken`, or drop the connection."""
        self.taken(reader)
        if size <= SMALL:
            return
        if self.take(size, known=known):
            self._readers[reader] = size, known
        else:
            reader.drop()

    def taken(self, reader: Reader) -> None:
        size, known = self._readers.pop(reader, (0, True))
        self.give(size, known=known)

    def _fits(self, size: int, *, known: bool) -> bool:
        return self.all + size <= self.most and (known or self.strangers + size <= self.most // 2)

    def _make_room(self, size: int, *, known: bool) -> None:
        slow = sorted((pace, id(each), each) for each in self._readers if (pace := each.pace) < SLOW)
        for _, _, reader in slow:
            if self._readers[reader][1] and self.all + size <= self.most:
                continue  # frees no room for callers without an account
            self.taken(reader)
            reader.drop()
            if self._fits(size, known=known):
                return


def hold(state: MutableMapping[str, Any], size: int, *, known: bool) -> None:
    """Count bytes of a request until its answer is sent. Raises Overloaded."""
    if (budget := state.get(_BUDGET)) is not None:
        budget.hold(state, size, known=known)


async def turn(state: MutableMapping[str, Any], size: int) -> None:
    """Wait until the body of a caller without an account may be parsed, if it is not small."""
    if size > SMALL and (budget := state.get(_BUDGET)) is not None:
        await budget.turn(size)
