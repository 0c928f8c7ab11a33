"""Translates errors for clients and the log. The one table from error kind to HTTP status.

    extensions.code        stable and specific: COUPON_EXPIRED
    extensions.kind        the code's kind, for clients that do not know the code: INVALID
    extensions.fields      problems by input field
    extensions.retryAfter  seconds after which a retry may succeed

Any exception that is not a domain error is "Internal server error" with the request id; the log has its
traceback.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from graphql import GraphQLError

from ximler.core.errors import (
    Conflict,
    Forbidden,
    Invalid,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unavailable,
    XimlerError,
)
from ximler.graphql.engine.limits import OverLimit

__all__ = [
    "INTERNAL",
    "RequestRefused",
    "describe",
    "describe_bug",
    "describe_field_errors",
    "describe_over_limit",
    "describe_request_error",
    "http_headers",
    "http_status",
]

Described = dict[str, Any]
"""An error in the response's format."""

INTERNAL = "INTERNAL"
PARSE_FAILED = "GRAPHQL_PARSE_FAILED"
VALIDATION_FAILED = "GRAPHQL_VALIDATION_FAILED"
BAD_INPUT = "BAD_USER_INPUT"
NO_OPERATION = "OPERATION_RESOLUTION_FAILURE"
OVER_LIMIT = "QUERY_LIMIT_EXCEEDED"
TIMED_OUT = "QUERY_TIMEOUT"

STATUS: Mapping[type[XimlerError], int] = {
    Invalid: 422,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    LimitExceeded: 429,
    Unavailable: 503,
}
"""Status of a request that failed before execution. Field errors return 200, as GraphQL over HTTP requires.
"""

_LONGEST_MESSAGE = 500

log = structlog.get_logger("ximler.graphql")


class RequestRefused(Exception):
    """The request is rejected: it does not parse, does not validate or exceeds a limit."""

    def __init__(self, errors: Iterable[Described]) -> None:
        self.errors = list(errors)
        super().__init__("; ".join(error["message"] for error in self.errors))


def describe(error: XimlerError) -> Described:
    extensions: dict[str, Any] = {"code": error.code, "kind": _kind(error).code}
    if error.fields:
        extensions["fields"] = error.fields
    if error.retry_after_s is not None:
        extensions["retryAfter"] = math.ceil(error.retry_after_s)
    return {"message": error.message, "extensions": extensions}


def describe_bug(error: Exception, *, request_id: str | None = None, **context: Any) -> Described:
    """Log an unexpected exception with its traceback; the client receives only the request id.

    Without a request id in the GraphQL context, the log context's id is returned.
    """
    request_id = request_id or structlog.contextvars.get_contextvars().get("request_id")
    if request_id is None:
        log.error("graphql request failed", exc_info=error, **context)
        return {"message": "Internal server error", "extensions": {"code": INTERNAL}}
    log.error("graphql request failed", exc_info=error, request_id=request_id, **context)
    return {"message": "Internal server error", "extensions": {"code": INTERNAL, "requestId": request_id}}


def describe_request_error(error: GraphQLError, code: str, **extensions: Any) -> Described:
    """Describe an error found before execution, in the query's text or its variables."""
    return _place(error, {"message": _cut(error.message), "extensions": {"code": code, **extensions}})


def describe_over_limit(error: OverLimit) -> Described:
    extensions = {"code": OVER_LIMIT, "limit": error.limit, "value": error.value, "maximum": error.maximum}
    return {"message": str(error), "extensions": extensions}


def describe_field_errors(
    errors: Iterable[GraphQLError], *, request_id: str | None, operation: str | None
) -> list[Described]:
    """Describe field errors, each with its path. A bug that affects many fields is logged once."""
    described = []
    bugs: dict[int, Described] = {}
    for error in errors:
        cause = _cause(error)
        if isinstance(cause, XimlerError):
            entry = describe(cause)
        elif isinstance(cause, GraphQLError) and cause.nodes:
            # graphql-core itself reports only invalid arguments, and with their node. An error about a result
            # value has no node before it is located.
            entry = {"message": _cut(cause.message), "extensions": {"code": BAD_INPUT}}
        elif id(cause) in bugs:
            entry = bugs[id(cause)]
        else:
            path = ".".join(map(str, error.path or ()))
            entry = bugs[id(cause)] = describe_bug(cause, request_id=request_id, path=path, operation=operation)
        described.append(_place(error, entry))
    return described


def http_status(error: XimlerError) -> int:
    return STATUS.get(_kind(error), 500)


def http_headers(error: XimlerError) -> list[tuple[bytes, bytes]]:
    if error.retry_after_s is not None:
        return [(b"retry-after", b"%d" % math.ceil(error.retry_after_s))]
    return [(b"www-authenticate", b"Bearer")] if isinstance(error, Unauthenticated) else []


def _kind(error: XimlerError) -> type[XimlerError]:
    return next((kind for kind in STATUS if isinstance(error, kind)), XimlerError)


def _cause(error: GraphQLError) -> Exception:
    cause: Exception = error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    return cause


def _place(error: GraphQLError, told: Described) -> Described:
    placed = {"message": told["message"]}
    if error.locations:
        placed["locations"] = [{"line": place.line, "column": place.column} for place in error.locations[:10]]
    if error.path:
        placed["path"] = error.path
    return {**placed, "extensions": told["extensions"]}


def _cut(message: str) -> str:
    """Bound a message: it may repeat the client's own text."""
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 1]}…"
