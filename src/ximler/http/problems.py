"""How errors look over HTTP: problem details (RFC 9457). The one table from kind to status."""

import math
from typing import Any, NamedTuple

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
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

__all__ = ["HANDLERS", "Problem", "body"]

_log = structlog.get_logger("ximler.http")


class _Kind(NamedTuple):
    status: int
    title: str


_KINDS: dict[type[XimlerError], _Kind] = {
    Invalid: _Kind(422, "Unprocessable Content"),
    Unauthenticated: _Kind(401, "Unauthorized"),
    Forbidden: _Kind(403, "Forbidden"),
    NotFound: _Kind(404, "Not Found"),
    Conflict: _Kind(409, "Conflict"),
    LimitExceeded: _Kind(429, "Too Many Requests"),
    Unavailable: _Kind(503, "Service Unavailable"),
}


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True, rename="camel"):
    """`code` is stable and for programs, `detail` is for people, `fields` says what is wrong with which input."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    fields: dict[str, str] | None = None
    request_id: str | None = None


def body(error: XimlerError, request_id: str | None) -> Problem:
    kind = next(known for base, known in _KINDS.items() if isinstance(error, base))
    return Problem(
        type=f"urn:ximler:error:{error.code.lower().replace('_', '-')}",
        title=kind.title,
        status=kind.status,
        detail=error.message,
        code=error.code,
        fields=error.fields or None,
        request_id=request_id,
    )


def _ours(request: Request[Any, Any, Any], error: XimlerError) -> Response[bytes]:
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, LimitExceeded) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return _response(body(error, _request_id(request)), headers)


def _litestars(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Routing and parsing: no such path, wrong method, a body that is not what the route takes."""
    if error.status_code >= 500:
        return _unexpected(request, error)
    extra = error.extra if isinstance(error.extra, list) else []
    fields = {str(part["key"]): str(part["message"]) for part in extra if isinstance(part, dict) and "key" in part}
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "BODY_TOO_LARGE"}.get(error.status_code, "INVALID")
    detail = f"There is nothing at {request.url.path}" if error.status_code == 404 else error.detail
    title = type(error).__name__.removesuffix("Exception")
    problem = Problem(
        title=title,
        status=error.status_code,
        detail=detail,
        code=code,
        fields=fields or None,
        request_id=_request_id(request),
    )
    return _response(problem, dict(error.headers or {}))


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("request failed", exc_info=error, path=request.url.path)
    problem = Problem(
        title="Internal Server Error",
        status=500,
        detail="Something went wrong on our side. Quote the request id when you ask about it.",
        code="INTERNAL",
        request_id=_request_id(request),
    )
    return _response(problem, {})


def _response(problem: Problem, headers: dict[str, str]) -> Response[bytes]:
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"Cache-Control": "no-store", **headers},
    )


def _request_id(request: Request[Any, Any, Any]) -> str | None:
    found: str | None = request.scope.get("state", {}).get("request_id")
    return found


HANDLERS: ExceptionHandlersMap = {XimlerError: _ours, HTTPException: _litestars, Exception: _unexpected}
