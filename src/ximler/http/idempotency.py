"""`Idempotency-Key` on routes that are not idempotent by themselves: `@post(…, **IDEMPOTENT)`, with
`KEY_ERRORS` among its responses.

PUT and DELETE are idempotent (RFC 9110, 9.2.2), and usage events have ids of their own.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPIType, Operation, Parameter, Schema
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from ximler.accounts import idempotency
from ximler.accounts.idempotency import Answer
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid, Unauthenticated
from ximler.http.authentication import Authentication
from ximler.http.problems import documented

__all__ = ["IDEMPOTENT", "KEY_ERRORS", "REPLAYED"]

REPLAYED = (b"idempotency-replayed", b"true")

_MAX_BODY = 1_000_000


def _idempotent(app: ASGIApp) -> ASGIApp:
    """Middleware for a route: a request repeated with its key within 24
    hours receives the stored response."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        key = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"idempotency-key"), None)
        if key is None:
            await app(scope, receive, send)
            return
        state = scope["litestar_app"].state
        body = await _read(receive)
        if body is None:
            return
        asked: Any = [scope.get("method"), scope["path"], scope.get("query_string", b""), body]

        async def work() -> Answer:
            return await _recorded(app, scope, body)

        request = msgspec.json.encode(asked)
        token = state.authentication.session_token(scope)
        known = token and await idempotency.answered(state.database, state.keyring, token, key=key, request=request)
        if known:
            answer, again = known, True
        else:
            caller = await _caller(state.authentication, scope)
            answer, again = await idempotency.once(
                state.database, state.keyring, caller, key=key, request=request, work=work
            )
        headers = [*answer.headers, REPLAYED] if again else answer.headers
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})

    return serve


async def _recorded(app: ASGIApp, scope: Scope, body: bytes) -> Answer:
    status, headers, parts = 500, [], []
    given = False

    async def receive() -> Any:
        nonlocal given
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            parts.append(message["body"])

    await app(scope, receive, send)
    # A rejected request changed nothing and can be retried.
    return Answer(status, b"".join(parts), headers, final=status < 400)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when the client disconnects before its end. Raises Invalid."""
    body = b""
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message.get("body", b""))
        if len(body) > _MAX_BODY:
            raise Invalid(f"The body is longer than {_MAX_BODY:,} bytes, the limit of requests with an Idempotency-Key")
        if not message.get("more_body"):
            return body


async def _caller(authentication: Authentication, scope: Scope) -> Actor:
    """The caller; anonymous with invalid credentials, which the route itself reports. Raises other errors:
    the route might then succeed, and its response be kept for a stranger.
    """
    try:
        return (await authentication.identify(scope)).actor  # type: ignore[arg-type]  # ASGI's, typed by two libraries
    except (Unauthenticated, Forbidden):
        return Actor(address=scope.get("state", {}).get("address"))


@dataclass
class _WithKey(Operation):
    def __post_init__(self) -> None:
        key = Parameter(
            name="Idempotency-Key",
            param_in="header",
            description="A request repeated with its key within 24 hours receives the first response again, "
            "with `Idempotency-Replayed: true`. Of your choosing, such as a UUID.",
            schema=Schema(type=OpenAPIType.STRING, pattern="^[!-~]{1,255}$"),
        )
        self.parameters = [*(self.parameters or ()), key]


IDEMPOTENT: dict[str, Any] = {"middleware": [_idempotent], "operation_class": _WithKey}
KEY_ERRORS = documented(
    _409="The first request with this Idempotency-Key is under way or was another one, or its response is not kept",
    _422="The Idempotency-Key, an id or a field is malformed",
)
