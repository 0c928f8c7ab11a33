"""Recording usage over REST, as a stream of events of any length."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.exceptions import ClientException
from litestar.openapi.spec import OpenAPIFormat, OpenAPIType, Schema

from ximler.core.errors import Invalid
from ximler.http.authentication import Authentication, Caller, signed_in
from ximler.http.bodies import body_of, require_utf8
from ximler.http.problems import documented
from ximler.metering.ledger.events import require_recorder
from ximler.metering.ledger.ingest import Report, ingest

__all__ = ["routes"]

_MAX_ARRAY = 20_000_000
_BATCH = 5000  # others are served by the same process between two of them
_NDJSON = ("application/x-ndjson", "application/jsonl", "application/ndjson")
_STRING = Schema(type=OpenAPIType.STRING)
_EVENT = Schema(
    type=OpenAPIType.OBJECT,
    required=["id", "at"],
    properties={
        "id": _STRING,
        "at": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
        "amount": Schema(type=OpenAPIType.INTEGER),
        "resource": _STRING,
        "source": _STRING,
        "userId": _STRING,
    },
)
_array = msgspec.json.Decoder(list[msgspec.Raw])


@post(
    "/v1/usage/events",
    **signed_in(scope="usage:write", api_calls=0),  # recording does not depend on the remaining quota
    status_code=200,
    tags=["usage"],
    summary="Record usage, each event once",
    request_max_body_size=None,
    operation_class=body_of(
        "Events, one a line or in an array",
        **{
            _NDJSON[0]: Schema(type=OpenAPIType.STRING),
            "application/json": Schema(type=OpenAPIType.ARRAY, items=_EVENT),
        },
    ),
    responses=documented(
        _400="The request cannot be read",
        _401="The session or key is missing, expired or revoked",
        _403="Requires an operator, or an API key with the scope usage:write",
        _415="The body is compressed, or not UTF-8",
        _422="The body is neither newline-delimited JSON nor a JSON array",
        _429="Too many requests",
        _503="The database is unavailable: send all of it again",
    ),
)
async def record_events(request: Request[Any, Any, Any], caller: NamedDependency[Caller]) -> Report:
    """Record usage, each event once, as `{"id", "at", "userId", "amount", "resource", "source"}`.

    Of these `id` and `at` are required, and `userId` where no API key is used.

    As newline-delimited JSON (`application/x-ndjson`) a stream of any length, or a JSON array of 20 MB at
    most. For operators, and API keys with the scope `usage:write`, which record for their owner. Everything
    accepted is stored when this answers; sending all of it again is safe. Free of charge, and never refused
    by the month's quota.
    """
    require_utf8(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    chunks = _while_allowed(request) if kind in _NDJSON else _lines(request, kind)
    return await ingest(request.app.state.database, caller.actor, chunks, batch=_BATCH)


async def _while_allowed(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The body, while its sender is allowed to record: a stream can last for hours, and a key be revoked
    meanwhile.
    """
    authentication: Authentication = request.app.state.authentication
    async for chunk in request.stream():
        now = await authentication.identify(request.scope)  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
        require_recorder(now.actor)
        yield chunk


async def _lines(request: Request[Any, Any, Any], kind: str) -> AsyncIterator[bytes]:
    """The events of an array, one a line."""
    if kind != "application/json":
        raise Invalid.field("Content-Type", f"send {_NDJSON[0]}, or application/json for an array")
    body = bytearray()
    async for chunk in _while_allowed(request):
        body += chunk
        if len(body) > _MAX_ARRAY:
            raise Invalid(f"An array may have {_MAX_ARRAY:,} bytes: send more as {_NDJSON[0]}, one event a line")
    try:
        events = _array.decode(str(body, "utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise ClientException(f"The body is not UTF-8: byte {problem.start} is wrong") from None
    except msgspec.MsgspecError as problem:
        if not body.strip():
            raise ClientException("The body is empty: send a JSON array of events") from None
        raise Invalid(f"The body is not a JSON array of events: {problem}") from None
    for event in events:
        yield bytes(event).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


routes = (record_events,)
