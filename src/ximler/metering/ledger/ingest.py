"""Ingestion of any number of events from a stream of lines: in batches, two at a time, in memory that does not grow.

Every line is answered for: those that are accepted or known already by their number, the others one by one, up to a bound at
which reading stops. Sending the whole again is safe: what was counted is known.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Literal

import msgspec

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering.ledger.events import Event, Outcome, record, require_recorder

__all__ = ["MAX_LINE", "MAX_REFUSED", "Refusal", "Report", "ingest"]

MAX_LINE = 4096  # bytes: an event has 600 at most, unless its text is all escapes
MAX_REFUSED = 1000
_BATCH = 10_000  # half of the most that there can be: acknowledged twice as soon, and hardly dearer
_AT_ONCE = 2  # the client prepares one while the database stores the other

_decoder = msgspec.json.Decoder(Event)
_Line = Event | Outcome | None  # an event, why it is none, or an empty line


class Refusal(msgspec.Struct, frozen=True, rename="camel"):
    """A line that was not counted, and why. The first line is 1."""

    line: int
    status: Literal["CONFLICT", "INVALID"]
    reason: str


class Report(msgspec.Struct, rename="camel"):
    """What became of the lines read. Not `complete` when there were too many to refuse, and reading stopped after `lines`."""

    lines: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: list[Refusal] = []
    complete: bool = True


async def ingest(
    database: Database,
    actor: Actor,
    chunks: AsyncIterable[bytes],
    *,
    batch: int = _BATCH,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Record the events of a stream of newline-delimited JSON, cut anywhere; returns what became of them.

    What is accepted is stored when this returns, and much of it before. An operator's import is audited.
    Raises what `record` does: Unauthenticated, Forbidden, Unavailable.
    """
    require_recorder(actor)
    report = Report()
    running: deque[asyncio.Task[list[Refusal]]] = deque()
    try:
        async for first, lines in _batches(chunks, batch):
            running.append(asyncio.create_task(_record(database, actor, first, lines, report)))
            if len(running) >= _AT_ONCE:
                report.refused += await running.popleft()
                progress(report)
            if len(report.refused) >= MAX_REFUSED:
                report.complete = False
                break
        while running:
            report.refused += await running.popleft()
            progress(report)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if actor.kind == "operator" and report.accepted:
        await _audit(database, actor, report)
    return report


async def _record(database: Database, actor: Actor, first: int, batch: list[_Line], report: Report) -> list[Refusal]:
    places = [n for n, line in enumerate(batch, first) if isinstance(line, Event)]
    outcomes = await record(database, actor, [line for line in batch if isinstance(line, Event)])
    refused = [
        Refusal(n, "INVALID", line.reason or "") for n, line in enumerate(batch, first) if isinstance(line, Outcome)
    ]
    for place, outcome in zip(places, outcomes, strict=True):
        if outcome.status == "ACCEPTED":
            report.accepted += 1
        elif outcome.status == "DUPLICATE":
            report.duplicates += 1
        else:
            refused.append(Refusal(place, outcome.status, outcome.reason or ""))
    report.lines = max(report.lines, first + len(batch) - 1)
    return sorted(refused, key=lambda refusal: refusal.line)


async def _batches(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[tuple[int, list[_Line]]]:
    """Lists of lines as events, `size` at most, each with the number of its first line."""
    batch: list[_Line] = []
    first, rest = 1, b""
    async for chunk in chunks:
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            batch += _parse(whole)
        if len(rest) > MAX_LINE:
            rest = rest[: MAX_LINE + 1]  # refused at its end, however long it is
        while len(batch) >= size:
            yield first, batch[:size]
            first += size
            batch = batch[size:]
    if rest:
        batch += _parse(rest)
    if batch:
        yield first, batch


def _parse(text: bytes) -> list[_Line]:
    """All at once, in a third of the time, where every line is an event; else line by line. None is an empty line."""
    lines = text.split(b"\n")
    try:
        events: list[_Line] = [*_decoder.decode_lines(text)]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return [_one(line) for line in lines]
    return events if len(events) == len(lines) else [_one(line) for line in lines]


def _one(line: bytes) -> _Line:
    if not line.strip():
        return None
    if len(line) > MAX_LINE:
        return Outcome("INVALID", f"the line is longer than {MAX_LINE} bytes")
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        return Outcome("INVALID", _words(problem))


def _words(problem: Exception) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.amount`" the other way round."""
    message, _, place = str(problem).partition(" - at `$.")
    message = message.replace("`", "'")
    return f"{place.rstrip('`')}: {message}"[:300] if place else message[:300]


async def _audit(database: Database, actor: Actor, report: Report) -> None:
    async def write(transaction: Database) -> None:
        counts = {"accepted": report.accepted, "duplicates": report.duplicates, "refused": len(report.refused)}
        await records.write(transaction, actor, Action.USAGE_IMPORTED, resource="usage", after=counts)

    await database.transaction(write)
