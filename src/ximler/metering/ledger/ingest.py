"""Ingestion of events from a stream of lines: in batches, two at a time, in bounded memory.

Every line has an outcome: accepted and duplicate lines are counted, the others listed one by one, up to a
limit at which reading stops. The whole stream can be repeated safely, because events are idempotent.
"""

import asyncio
import codecs
import json
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

MAX_LINE = 4096  # bytes; an event has at most 600, unless its text consists of escapes
MAX_REFUSED = 1000
_BATCH = 10_000  # half of the maximum: acknowledged twice as soon at nearly the same cost
_AT_ONCE = 2  # the client prepares one batch while the database stores the other

_decoder = msgspec.json.Decoder(Event)
_KEYS = [f'"{name}"'.encode() for name in Event.__struct_encode_fields__]
_REQUIRED, _OPTIONAL = _KEYS[:2], _KEYS[2:]
_Line = Event | Outcome | None  # an event, the problem of an invalid line, or an empty line


class Refusal(msgspec.Struct, frozen=True, rename="camel"):
    """A rejected line, with the reason. The first line is 1."""

    line: int
    status: Literal["CONFLICT", "INVALID"]
    reason: str


class Report(msgspec.Struct, rename="camel"):
    """Outcomes of the lines read. Not `complete` if reading stopped after `lines` because too many were
    rejected.
    """

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
    """Record the events of a stream of newline-delimited JSON, in chunks of any size; returns their outcomes.

    All accepted events are stored when this returns, most of them earlier. An operator's import is audited.
    Raises the errors of `record`: Unauthenticated, Forbidden, Unavailable.
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
    """Batches of at most `size` lines as events, each with the number of its first line."""
    batch: list[_Line] = []
    first, rest = 1, b""
    async for chunk in chunks:
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            batch += _parse(whole)
        if len(rest) > MAX_LINE:
            rest = rest[: MAX_LINE + 1]  # an overlong line is rejected at its end
        while len(batch) >= size:
            yield first, batch[:size]
            first += size
            batch = batch[size:]
    if rest:
        batch += _parse(rest)
    if batch:
        yield first, batch


def _parse(text: bytes) -> list[_Line]:
    """Parse all lines at once, in a third of the time, if every line is an event; else line by line. None is
    an empty line.
    """
    lines = text.split(b"\n")
    try:
        events: list[_Line] = [*_decoder.decode_lines(text)]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return [_one(line) for line in lines]
    if len(events) != len(lines) or any(_repeated(line) is not None for line in _suspects(text, lines)):
        return [_one(line) for line in lines]
    return events


def _suspects(text: bytes, lines: list[bytes]) -> list[bytes]:
    """The lines that may have a key twice; quick if none does."""
    if b"\\" in text or any(text.count(key) != len(lines) for key in _REQUIRED):
        return lines
    optional = [key for key in _OPTIONAL if key in text]
    return [line for line in lines if any(line.count(key) > 1 for key in optional)]


def _one(line: bytes) -> _Line:
    line = line.removeprefix(codecs.BOM_UTF8)  # of a file, or of several that were joined
    if not line.strip():
        return None
    if len(line) > MAX_LINE:
        return Outcome("INVALID", f"the line is longer than {MAX_LINE} bytes")
    try:
        event = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        return Outcome("INVALID", _words(problem))
    key = _repeated(line)
    return event if key is None else Outcome("INVALID", f"{key}: given twice")


def _repeated(line: bytes) -> str | None:
    """A key that an event has twice: the decoder takes the last one."""
    if b"\\" not in line and all(line.count(key) < 2 for key in _KEYS):
        return None
    keys: list[str] = json.loads(line, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    return next((key for key in keys if keys.count(key) > 1), None)


def _words(problem: Exception) -> str:
    """Reorder msgspec's "Expected `int`, got `str` - at `$.amount`" for people: the place first."""
    message, _, place = str(problem).partition(" - at `$.")
    message = message.replace("`int | float`", "a whole number").replace("`", "'")
    return f"{place.rstrip('`')}: {message}"[:300] if place else message[:300]


async def _audit(database: Database, actor: Actor, report: Report) -> None:
    async def write(transaction: Database) -> None:
        counts = {"accepted": report.accepted, "duplicates": report.duplicates, "refused": len(report.refused)}
        await records.write(transaction, actor, Action.USAGE_IMPORTED, resource="usage", after=counts)

    await database.transaction(write)
