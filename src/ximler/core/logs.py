"""Structured logs: one line an event, to standard error; JSON for machines, columns for a terminal."""

import json
import logging
import sys

import msgspec
import structlog

from ximler.core.settings import Settings

__all__ = ["configure", "printable"]

_LONGEST = 200


def printable(text: str) -> str:
    """Client input made safe for one log line: at most 200 characters, control characters escaped."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else _spell(c) for c in cut)


def _spell(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _json(event: structlog.typing.EventDict, **_: object) -> str:
    """About 3 × faster than the standard library, which takes over for lone surrogates and 65-bit integers."""
    try:
        return _encode(event).decode()
    except (TypeError, ValueError, OverflowError):
        return json.dumps(event, default=repr, skipkeys=True)


_encode = msgspec.json.Encoder(enc_hook=repr).encode


def configure(settings: Settings) -> None:
    """Set up structlog, and route the warnings and errors of libraries through it."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    console = settings.log_format == "console" if settings.log_format else sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without local variables: those may be passwords and tokens.
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [tracebacks, structlog.processors.JSONRenderer(serializer=_json)]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
