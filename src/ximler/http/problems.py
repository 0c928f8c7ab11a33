"""Errors over HTTP: problem details (RFC 9457). The one table from kind to status."""

import math
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ExceptionHandlersMap

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
from ximler.core.logs import printable
from ximler.http.bodies import no_body, problem_of_body
from ximler.projects.projects import RevisionConflict

__all__ = [
    "HANDLERS",
    "JSON_ONLY",
    "MEDIA_TYPE",
    "Problem",
    "bad_request",
    "body",
    "documented",
    "documented_in_project",
    "headers_of",
    "status_of",
]

_log = structlog.get_logger("ximler.http")


_STATUS: dict[type[XimlerError], int] = {
    Invalid: 422,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    LimitExceeded: 429,
    Unavailable: 503,
}
# Errors of requests that do not reach a route.
_CODES = {
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    412: "PRECONDITION_FAILED",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "INVALID",
    428: "PRECONDITION_REQUIRED",
    431: "HEADERS_TOO_LARGE",
    501: "NOT_IMPLEMENTED",
    505: "HTTP_VERSION_NOT_SUPPORTED",
}
_PHRASES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
    460: "Checksum Mismatch",  # tus's own
}  # RFC 9110's, which HTTPStatus learns in Python 3.13
MEDIA_TYPE = "application/problem+json"
# Litestar's detail for a truncated body, and the status that proxies log for it (nginx's 499).
_DISCONNECTED, _CLIENT_CLOSED = "client disconnected prematurely", 499
_NO_BODY = "'data'"  # its message where a handler's `data` is missing


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True, rename="camel"):
    """`code` is stable and for programs, `detail` is for people, `fields` has the error of each input."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    fields: dict[str, str | int] | None = None
    request_id: str | None = None


def documented(**reasons: str) -> dict[int, ResponseSpec]:
    """For a route's `responses`: `documented(_422="the token is missing")`."""
    return {
        int(status[1:]): ResponseSpec(Problem, description=reason, media_type=MEDIA_TYPE, generate_examples=False)
        for status, reason in reasons.items()
    }


JSON_ONLY = documented(_415="The body is not JSON in UTF-8")


def documented_in_project(thing: str, **reasons: str) -> dict[int, ResponseSpec]:
    """As `documented`, with the reasons that every route has for what a
    project contains, such as a version."""
    return documented(
        _400="The request cannot be read",
        _401="The session or key is missing, expired or revoked",
        _404=f"The project or {thing} does not exist, is deleted or belongs to another user",
        _503="The database is unavailable",
        **reasons,
    )


def status_of(error: XimlerError) -> int:
    return next(status for kind, status in _STATUS.items() if isinstance(error, kind))


def body(error: XimlerError, request_id: str | None) -> Problem:
    return Problem(
        type=f"urn:ximler:error:{error.code.lower().replace('_', '-')}",
        title=_phrase(status_of(error)),
        status=status_of(error),
        detail=error.message,
        code=error.code,
        fields=error.fields or None,
        request_id=request_id,
    )


def bad_request(detail: str, request_id: str | None, status: int = 400) -> Problem:
    """For a request that breaks HTTP's own rules."""
    code = _CODES.get(status, "BAD_REQUEST")
    return Problem(title=_phrase(status), status=status, detail=detail, code=code, request_id=request_id)


def headers_of(error: XimlerError) -> dict[str, str]:
    """Headers that the status requires: WWW-Authenticate, Retry-After."""
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, RevisionConflict):
        headers["Canvas-Revision"] = str(error.revision)
    return headers


def _ours(request: Request[Any, Any, Any], error: XimlerError) -> Response[bytes]:
    return _response(request, body(error, _request_id(request)), headers_of(error))


def _litestars(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Errors of routing and parsing: unknown path, wrong method, unreadable body."""
    if error.detail == _DISCONNECTED:
        return Response(b"", status_code=_CLIENT_CLOSED)  # for the log and the metrics; the client has left
    if error.status_code >= 500:
        return _unexpected(request, error)
    extra = error.extra if isinstance(error.extra, list) else []
    parts = [part for part in extra if isinstance(part, dict) and "key" in part]
    fields: dict[str, str | int] = dict(_named(request, part) for part in parts)
    status, detail = error.status_code, error.detail
    if any((part["key"], part["message"]) == ("data", _NO_BODY) for part in parts):
        status, detail, fields = HTTPStatus.BAD_REQUEST, no_body(request), {}
    elif isinstance(error, ValidationException):
        status = _STATUS[Invalid]
        detail = "; ".join(f"{name}: {problem}" for name, problem in fields.items()) or detail
    elif status == HTTPStatus.NOT_FOUND:
        detail = f"Nothing is found at {request.scope['path']}"
    problem = Problem(
        title=_phrase(status),
        status=status,
        detail=detail,
        code=_CODES.get(status, "BAD_REQUEST"),
        fields=fields or None,
        request_id=_request_id(request),
    )
    return _response(request, problem, dict(error.headers or {}))


def _named(request: Request[Any, Any, Any], part: dict[str, Any]) -> tuple[str, str]:
    """The field and its error. Litestar names the whole body `data`, after the handler's argument."""
    name, message = str(part["key"]), str(part["message"])
    if part.get("source") != "body":
        return name, message
    return problem_of_body(request, "" if name == "data" else name, message)


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("request failed", exc_info=error, path=printable(request.scope["path"]))
    problem = Problem(
        title=_phrase(500),
        status=500,
        detail="Something went wrong on our side. Quote the request id when you ask about it.",
        code="INTERNAL",
        request_id=_request_id(request),
    )
    return _response(request, problem, {})


def _response(request: Request[Any, Any, Any], problem: Problem, headers: dict[str, str]) -> Response[bytes]:
    request.scope["state"].setdefault("log", {})["code"] = problem.code
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **headers},
    )


def _phrase(status: int) -> str:
    """The title of a problem without a type of its own (RFC 9457)."""
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def _request_id(request: Request[Any, Any, Any]) -> str | None:
    found: str | None = request.scope.get("state", {}).get("request_id")
    return found


HANDLERS: ExceptionHandlersMap = {XimlerError: _ours, HTTPException: _litestars, Exception: _unexpected}
