"""Bytes that a process holds for requests under way: bodies that arrive, and exports that are sent.

Clients decide how long that takes, so the sum is bounded. Requests that hold less than 64 kB are not counted,
and are answered whatever others hold. Not here: files that are stored while they arrive, and pictures, of
which one is decoded at a time.
"""

from collections.abc import MutableMapping
from typing import Any

from ximler.core.errors import Unavailable

__all__ = ["EXPORT", "SMALL", "InFlight", "Overloaded", "hold"]

SMALL = 65_536
EXPORT = 32_000_000  # bytes of an archive that is made while it is sent
_HELD, _BUDGET = "bytes_held", "in_flight"


class Overloaded(Unavailable):
    code = "OVERLOADED"
    retry_after_s = 5


class InFlight:
    """One per process. Callers without an account may hold half of the bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.strangers = 0
        self.all = 0

    def enter(self, state: MutableMapping[str, Any]) -> None:
        """Before a request is answered; `leave` follows when it has been."""
        state[_BUDGET] = self

    def hold(self, state: MutableMapping[str, Any], size: int, *, known: bool) -> None:
        """Raises Overloaded."""
        if self.all + size > self.most or (not known and self.strangers + size > self.most // 2):
            state["overloaded"] = True
            raise Overloaded("The server is receiving and sending too much at this moment: try again in a moment")
        held = state.setdefault(_HELD, [0, 0])
        held[known] += size
        self.all += size
        if not known:
            self.strangers += size

    def leave(self, state: MutableMapping[str, Any]) -> None:
        strangers, known = state.pop(_HELD, (0, 0))
        self.strangers -= strangers
        self.all -= strangers + known


def hold(state: MutableMapping[str, Any], size: int, *, known: bool) -> None:
    """Count bytes of a request until its answer is sent. Raises Overloaded."""
    if (budget := state.get(_BUDGET)) is not None:
        budget.hold(state, size, known=known)
