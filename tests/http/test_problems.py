"""Errors over HTTP are problem details (RFC 9457), whoever finds what is wrong,
and never tell what only the log may know."""

from typing import Annotated, Any

import httpx
import msgspec
import pytest
import structlog
from litestar import Litestar, get, post
from litestar.params import FromQuery, JSONBody, QueryParameter
from litestar.types import ASGIApp
from tests.serving import Client

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
from ximler.database import Database
from ximler.http import problems
from ximler.http.requests import Requests, TrustedProxies

FORM = {"content-type": "application/x-www-form-urlencoded"}


def problem(response: httpx.Response) -> dict[str, Any]:
    """The body, once it has shown that it is a problem document and that its parts agree."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    body: dict[str, Any] = response.json()
    assert body.keys() <= {"type", "title", "status", "detail", "code", "fields", "requestId"}
    assert body["status"] == response.status_code
    assert body["requestId"] == response.headers["x-request-id"]
    assert body["detail"]
    return body


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "title", "code"),
    [
        ("GET", "/nothing", None, 404, "Not Found", "NOT_FOUND"),
        ("GET", "/healthz/deeper", None, 404, "Not Found", "NOT_FOUND"),
        ("GET", "/%00%ff%0a", None, 404, "Not Found", "NOT_FOUND"),
        ("POST", "/", b"", 405, "Method Not Allowed", "METHOD_NOT_ALLOWED"),
        ("DELETE", "/confirm", None, 405, "Method Not Allowed", "METHOD_NOT_ALLOWED"),
        ("BREW", "/healthz", None, 405, "Method Not Allowed", "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/session", b"token=" + b"x" * 16_379, 413, "Content Too Large", "BODY_TOO_LARGE"),
        ("POST", "/v1/session", b"a&" * 10_000_000, 413, "Content Too Large", "BODY_TOO_LARGE"),
    ],
)  # fmt: skip
async def test_errors_of_litestar_are_problem_details(
    client: Client, method: str, path: str, body: bytes | None, status: int, title: str, code: str
) -> None:
    response = await client.http.request(method, path, content=body, headers=FORM)
    found = problem(response)
    assert (response.status_code, found["title"], found["code"]) == (status, title, code)
    assert "type" not in found  # which means about:blank
    if status == 405:
        assert "GET" in response.headers["allow"]
    assert len(response.content) < 1000


class Shape(msgspec.Struct):
    sides: int


@get("/shapes")
async def shapes(sides: Annotated[int, QueryParameter(le=10)], colour: FromQuery[str]) -> None: ...


@post("/shapes")
async def draw(data: JSONBody[Shape]) -> None: ...


@pytest.mark.parametrize(
    ("method", "query", "body", "field"),
    [
        ("GET", "?sides=x&colour=red", b"", "sides"),
        ("GET", "?sides=11&colour=red", b"", "sides"),
        ("GET", "?sides=3", b"", "colour"),
        ("POST", "", b'{"sides": "three"}', "sides"),
        ("POST", "", b"{}", "sides: is missing"),
        ("POST", "", b'{"sides": 5', ""),
        ("POST", "", b"null", "body: is null: send a JSON object with `sides`, as application/json"),
        ("POST", "", b"[]", "body: is an array: send a JSON object with `sides`"),
        ("POST", "", b"5", "body: is a number: send a JSON object with `sides`"),
    ],
)  # fmt: skip
async def test_input_that_a_route_cannot_take_is_a_problem_that_names_the_field(
    method: str, query: str, body: bytes, field: str
) -> None:
    """The routes to come, by the same handlers."""
    app = Requests(
        Litestar([shapes, draw], exception_handlers=problems.HANDLERS, openapi_config=None), TrustedProxies([])
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        response = await client.request(method, f"/shapes{query}", content=body)
    found = problem(response)
    assert (response.status_code, found["code"]) == ((422, "INVALID") if field else (400, "BAD_REQUEST"))
    assert field in found["detail"]
    assert found.get("fields", {}).keys() <= {field.partition(":")[0]}


class CouponExpired(Invalid):
    code = "COUPON_EXPIRED"


@pytest.mark.parametrize(
    ("error", "status", "title", "kind"),
    [
        (Invalid.field("name", "is wrong"), 422, "Unprocessable Content", "invalid"),
        (CouponExpired("too late"), 422, "Unprocessable Content", "coupon-expired"),
        (Unauthenticated("who?"), 401, "Unauthorized", "unauthenticated"),
        (Forbidden("no"), 403, "Forbidden", "forbidden"),
        (NotFound("none"), 404, "Not Found", "not-found"),
        (Conflict("again"), 409, "Conflict", "conflict"),
        (LimitExceeded("wait", retry_after_s=1.2), 429, "Too Many Requests", "limit-exceeded"),
        (Unavailable("later"), 503, "Service Unavailable", "unavailable"),
    ],
)
async def test_each_kind_of_error_has_its_status(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: XimlerError, status: int, title: str, kind: str
) -> None:
    async def fail(_: Database) -> None:
        raise error

    # /readyz lets through every kind but Unavailable, which it answers itself.
    monkeypatch.setattr(Database, "ping", fail)
    if isinstance(error, Unavailable):
        found = problems.body(error, None)
        assert (found.status, found.title, found.type) == (status, title, f"urn:ximler:error:{kind}")
        return
    response = await client.http.get("/readyz")
    body = problem(response)
    assert (response.status_code, body["title"], body["type"]) == (status, title, f"urn:ximler:error:{kind}")
    assert (body["detail"], body["code"]) == (error.message, error.code)
    assert body.get("fields", {}) == error.fields
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert response.headers.get("retry-after") == ("2" if status == 429 else None)


async def test_a_bug_is_logged_and_not_shown_to_the_client(
    client: Client, app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Database) -> None:
        raise RuntimeError("mongodb://user:password@db.internal")

    monkeypatch.setattr(Database, "ping", fail)
    with structlog.testing.capture_logs() as logs:
        response = await client.http.get("/readyz")
    found = problem(response)
    assert (response.status_code, found["title"], found["code"]) == (500, "Internal Server Error", "INTERNAL")
    assert "password" not in response.text
    assert "Traceback" not in response.text
    failures = [entry for entry in logs if entry["event"] == "request failed"]
    assert len(failures) == 1
    assert str(failures[0]["exc_info"]) == "mongodb://user:password@db.internal"
    assert (await client.http.get("/healthz")).status_code == 200


async def test_a_bug_under_graphql_is_logged_and_not_shown_to_the_client(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mongodb://user:password@db.internal")

    monkeypatch.setattr("ximler.billing.plans.PlanMemory.on_offer", fail)
    with structlog.testing.capture_logs() as logs:
        answer = await client.ask("{ plans { id } }")
    assert answer.code == "INTERNAL"
    assert answer.errors[0]["message"] == "Internal server error"
    assert answer.errors[0]["extensions"]["requestId"] == answer.headers["x-request-id"]
    assert "password" not in str(answer)
    assert sum(entry["log_level"] == "error" for entry in logs) == 1
