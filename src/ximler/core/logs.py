"""Structured logs: one line an event, to standard error; JSON for machines, columns for a terminal."""

import asyncio
import atexit
import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog

from ximler.core.settings import Settings

__all__ = ["configure", "info_soon", "printable", "survive_closed_streams"]

_LONGEST = 200
_ATOMIC = 4096  # bytes that are written to a shared pipe without interleaving (PIPE_BUF)
_LONGEST_CHAIN, _MOST_FRAMES, _LONGEST_MESSAGE = 4, 12, 2000


def printable(text: str) -> str:
    """Client input made safe for one log line: at most 200 characters, control characters escaped."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else _spell(c) for c in cut)


def _spell(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _json(event: structlog.typing.EventDict, **_: object) -> str:
    """About 3 × faster than the standard library, which handles lone surrogates and 65-bit integers."""
    try:
        return _encode(event).decode()
    except (TypeError, ValueError, OverflowError):
        return json.dumps(event, default=repr, skipkeys=True)


_encode = msgspec.json.Encoder(enc_hook=repr).encode


def _stamp(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """As structlog's `TimeStamper(fmt="iso", utc=True)`, in a third of its time."""
    event["timestamp"] = _encode(datetime.now(UTC))[1:-1].decode()
    return event


def _compact(exc_info: structlog.typing.ExcInfo) -> list[dict[str, Any]]:
    """An error and its causes, outermost first, each with its last frames; no local variables: they may be
    secrets.
    """
    chain: list[dict[str, Any]] = []
    error: BaseException | None = exc_info[1]
    while error is not None and len(chain) < _LONGEST_CHAIN:
        frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
        chain.append(
            {
                "type": type(error).__name__,
                "message": str(error)[:_LONGEST_MESSAGE],
                "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
            }
        )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


class _Survivor:
    """A text stream whose reader may close it: later writes are discarded without an error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def survive_closed_streams() -> None:
    """Let a process that serves outlive the readers of its output (`ximler up 2>&1 | head`). Call it before
    `configure`.
    """
    if not isinstance(sys.stderr, _Survivor):
        sys.stdout, sys.stderr = _Survivor(sys.stdout), _Survivor(sys.stderr)


class _Lines:
    """Entries of one turn of the event loop, written together: a dozen take one system call."""

    def __init__(self, stream: TextIO, processors: list[structlog.typing.Processor]) -> None:
        self._stream = stream
        self._processors, self._renderer = processors, processors[-1]
        self._waiting: list[structlog.typing.EventDict] = []

    @property
    def configured(self) -> bool:
        """Whether structlog would write to this stream; False while a test captures entries."""
        return bool(self._processors) and self._processors[-1] is self._renderer

    def add(self, entry: structlog.typing.EventDict) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.write)
        self._waiting.append(entry)

    def write(self) -> None:
        waiting, self._waiting = self._waiting, []
        text, size = "", 0
        for entry in waiting:
            line = f"{_json(entry)}\n"
            length = len(line) if line.isascii() else len(line.encode())
            if text and size + length > _ATOMIC:
                self._stream.write(text)
                text, size = "", 0
            text += line
            size += length
        if text:
            self._stream.write(text)
            self._stream.flush()


_lines: _Lines | None = None


def info_soon(logger: Any, event: str, **fields: Any) -> None:
    """As `logger.info` without structlog's context, in a third of the time, for frequent events. The entry is
    written at the next turn of the event loop.
    """
    lines = _lines
    if lines is None or not lines.configured:
        logger.info(event, **fields)
        return
    fields["event"], fields["level"] = event, "info"
    lines.add(_stamp(logger, "info", fields))


def configure(settings: Settings) -> None:
    """Set up structlog, and route the warnings and errors of libraries through it."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    console = settings.log_format == "console" if settings.log_format else sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
    ]
    tracebacks = structlog.processors.ExceptionRenderer(_compact)
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [tracebacks, structlog.processors.JSONRenderer(serializer=_json)]
    )
    processors = [*shared, *render]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    global _lines  # noqa: PLW0603 (as structlog's own configuration)
    _lines = None
    if not console and level <= logging.INFO:
        _lines = _Lines(sys.stderr, processors)
        atexit.register(_lines.write)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
