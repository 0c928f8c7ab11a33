"""GraphQL over HTTP: one ASGI callable for `/graphql`.

Follows https://graphql.github.io/graphql-over-http/draft/. POST takes JSON, GET takes queries (a mutation by
GET is 405). A client that names `application/graphql-response+json` in Accept receives it, with 400 for
requests that were not executed; other clients receive `application/json`, with 200 for GraphQL errors.
Malformed requests, and errors from the context (401, 403, 429, 503), have their status under both.

Subscriptions are streams (see `streaming`).
A client that accepts `text/event-stream` and no JSON receives every operation's response as events.

`"extensions": {"trace": true}` adds resolver calls and database round trips to the response, for callers with
`may_trace`.

A mutation with an `Idempotency-Key` is passed to the application's `once`, which replays the response of a
known key.

CSRF: requests that browsers send across sites without a preflight (form content types, mutations by GET) are
rejected. CORS, OPTIONS and compression belong to the surrounding application.
"""

import asyncio
import codecs
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from cachebox import LRUCache

from ximler.core import in_flight, strict_json
from ximler.core.errors import Forbidden, LimitExceeded, Unauthenticated, Unavailable, XimlerError
from ximler.core.streams import Event
from ximler.graphql.engine.compiled import encode
from ximler.graphql.engine.engine import Engine, Prepared, Response
from ximler.graphql.engine.errors import RequestRefused, describe, describe_bug, http_headers, http_status
from ximler.graphql.engine.limits import Limits
from ximler.graphql.engine.negotiation import (
    EVENTS,
    JSON,
    RESPONSE_JSON,
    choose_response_type,
    choose_stream_type,
    is_json,
)
from ximler.graphql.engine.persisted import PersistedQueries
from ximler.graphql.engine.streaming import Follow, Subscription, position, stream, whole

__all__ = ["ContextFactory", "GraphQLApp", "refusal"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
ContextFactory = Callable[[Scope], Awaitable[Any]]
Whole = tuple[int, bytes, Headers]
"""Status, headers and body of a response."""
Once = Callable[[Any, str, bytes, Callable[[], Awaitable[tuple[Whole, bool]]]], Awaitable[Whole]]
"""`once(ctx, key, request, work)`: run `work` unless the key has a stored response. `work` also returns
whether to store it.
"""
Answered = Callable[[Scope, str, bytes], Awaitable[Whole | None]]
"""`answered(scope, key, request)`: the stored response to a repeated request that ended its own session."""
Admit = Callable[[Scope, Any, Prepared], Awaitable[None] | None]
"""`admit(scope, ctx, prepared)`: called before an operation runs. An error that it, or its result, raises
becomes the response.
"""
Refused = Callable[[Any, str], Awaitable[None]]
"""`refused(ctx, code)`: called when the request was rejected for lack of permission."""

MIB = 1024 * 1024
_OK = 200
_KNOWN, _SMALL = 256, 4096  # prepared queries by body, and the most bytes of such a body
_LARGE = 64 * 1024  # bytes of a body: half a millisecond
_SEND = 'send {"query": "…"}'


class Parameters(msgspec.Struct, rename="camel"):
    """The parameters of a GraphQL request. Unknown keys are ignored, as the specification requires."""

    query: str | msgspec.UnsetType = msgspec.UNSET
    operation_name: str | None = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None


class NotWellFormed(Exception):
    """Not a GraphQL request: this status applies under every media type."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []


class _Disconnected(Exception):
    """The client disconnected before its request was complete."""


class GraphQLApp:
    """Serves one engine.

    `context_factory(scope)` builds the context; an error it raises becomes the response. The factory runs
    only for operations that will be executed: malformed, invalid or oversized requests cost no I/O. Body
    limits are in bytes. A body above the anonymous limit with an Authorization header or a cookie has its
    context built before it is read, and must satisfy `is_known`, because anyone can send such a header.
    """

    def __init__(
        self,
        engine: Engine,
        context_factory: ContextFactory,
        *,
        body_limit: int = 20 * MIB,
        anonymous_body_limit: int | None = None,
        once: Once | None = None,
        answered: Answered | None = None,
        admit: Admit = lambda _scope, _ctx, _prepared: None,
        refused: Refused | None = None,
        is_known: Callable[[Any], bool] = lambda _: True,
        may_trace: Callable[[Any], bool] = lambda _: False,
        trusted: Mapping[str, str] | None = None,
        follow: Follow | None = None,
    ) -> None:
        self.engine = engine
        self._context_factory = context_factory
        self._once = once
        self._answered = answered
        self._admit = admit
        self._is_known = is_known
        self._may_trace = may_trace
        self._persisted = PersistedQueries(engine.limits, trusted)
        self._refused = refused
        self._follow = follow
        self._known: LRUCache[bytes, Prepared] = LRUCache(_KNOWN)
        self._body_limit = body_limit
        self._anonymous_body_limit = body_limit if anonymous_body_limit is None else anonymous_body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"GraphQL is served over HTTP, not over {scope['type']}")
        headers = _Headers(scope)
        accepted = choose_response_type(headers.accept)
        streamed = choose_stream_type(headers.accept)
        if accepted is None and streamed == EVENTS:
            accepted = EVENTS
        media_type = accepted or JSON
        extra: Headers = []
        try:
            status, response, extra = await self._answer(scope, headers, accepted, streamed, receive)
            if isinstance(response, Subscription):
                try:
                    head = scope.get("state", {}).get("head", False)
                    await stream(response, streamed or EVENTS, receive, send, head=head)
                except XimlerError as error:
                    status, response, extra = http_status(error), {"errors": [describe(error)]}, http_headers(error)
                else:
                    return
        except _Disconnected:
            return
        except NotWellFormed as error:
            extra = error.headers
            status = error.status
            response = {"errors": [{"message": str(error), "extensions": {"code": "BAD_REQUEST"}}]}
        except Exception as error:
            status, response = 500, {"errors": [describe_bug(error)]}
        if (
            not isinstance(response, bytes)
            and "errors" in response
            and (log := scope.get("state", {}).get("log")) is not None
        ):
            log["code"] = response["errors"][0]["extensions"]["code"]
        try:
            body = response if isinstance(response, bytes) else encode(response)
        except Exception as error:  # a JSON value from a resolver that cannot be encoded: circular or too deep
            status, body = 500, encode({"errors": [describe_bug(error)]})
        if media_type == EVENTS:
            media_type, body = (EVENTS, whole(body)) if status == _OK else (JSON, body)
        await _send(send, status, media_type, body, extra, head=scope["method"] == "HEAD")

    async def _answer(
        self, scope: Scope, headers: "_Headers", media_type: bytes | None, streamed: bytes | None, receive: Receive
    ) -> tuple[int, Response | bytes | Subscription, Headers]:
        method = scope["method"]
        if method not in ("GET", "POST"):
            raise NotWellFormed(
                405, f"{method} is not allowed: use POST, or GET for queries", [(b"allow", b"GET, POST")]
            )
        if media_type is None and streamed is None:
            raise NotWellFormed(406, "Answers are application/graphql-response+json or application/json")
        if method == "GET":
            parameters = _read_query_string(scope.get("query_string", b""), self.engine.limits)
        else:
            try:
                body = await self._receive_body(scope, headers, receive)
            except XimlerError as error:
                return http_status(error), {"errors": [describe(error)]}, http_headers(error)
            limits = self.engine.limits
            known: Prepared | None = self._known.get(body)
            if known is not None and media_type is not None:
                return await self._execute(scope, known)
            if len(body) > _LARGE:  # in a thread, so that other requests do not wait
                parameters = await asyncio.to_thread(_read_body, body, limits)
            else:
                parameters = _read_body(body, limits)
        try:
            query = self._persisted.find(
                None if parameters.query is msgspec.UNSET else parameters.query, parameters.extensions
            )
            if query is None:
                raise NotWellFormed(400, "The request has no `query`")
            prepared = self.engine.prepare(
                query,
                variables=parameters.variables,
                operation_name=parameters.operation_name or None,
            )
            self._persisted.keep(query, parameters.extensions)
        except RequestRefused as refused:
            return (400 if media_type == RESPONSE_JSON else 200), {"errors": refused.errors}, []
        if method == "GET" and prepared.operation.mutation:
            raise NotWellFormed(405, "Mutations need POST", [(b"allow", b"POST")])
        if media_type is None and not prepared.operation.subscription:
            raise NotWellFormed(406, "Answers to queries and mutations are not multipart")
        if prepared.operation.subscription and (streamed is None or self._follow is None):
            raise NotWellFormed(406, "Send Accept: text/event-stream (or multipart/mixed;subscriptionSpec=1.0)")
        if (
            method == "POST"
            and len(body) <= _SMALL
            and parameters.extensions is None
            and prepared.repeatable
            and self.engine.limits.cached_documents
        ):
            self._known.insert(body, prepared)
        keyed = headers.idempotency_key is not None and self._once is not None and prepared.operation.mutation
        asked = (
            msgspec.json.encode([query, parameters.operation_name, parameters.variables], order="sorted")
            if keyed
            else b""
        )
        try:
            if keyed and self._answered is not None:
                answered = await self._answered(scope, headers.idempotency_key or "", asked)
                if answered is not None:
                    return answered
            ctx = await self._context_factory(scope)
            if (admitting := self._admit(scope, ctx, prepared)) is not None:
                await admitting
        except XimlerError as error:
            return http_status(error), {"errors": [describe(error)]}, http_headers(error)
        if prepared.operation.subscription:
            return await self._subscribe(scope, headers, prepared, ctx)
        if keyed and self._once is not None:
            return await self._run_once(prepared, ctx, headers.idempotency_key or "", asked, self._once)
        response = await self._run(prepared, ctx, traced=self._is_traced(parameters, ctx))
        return 200, response, getattr(ctx, "reply_headers", [])

    async def _execute(self, scope: Scope, prepared: Prepared) -> tuple[int, Response | bytes | Subscription, Headers]:
        """The response to a query whose body was read and prepared before."""
        prepared.plan.uses += 1
        try:
            ctx = await self._context_factory(scope)
            if (admitting := self._admit(scope, ctx, prepared)) is not None:
                await admitting
        except XimlerError as error:
            return http_status(error), {"errors": [describe(error)]}, http_headers(error)
        return 200, await self._run(prepared, ctx), getattr(ctx, "reply_headers", [])

    async def _subscribe(
        self, scope: Scope, headers: "_Headers", prepared: Prepared, ctx: Any
    ) -> tuple[int, Response | Subscription, Headers]:
        assert self._follow is not None  # noqa: S101 (checked by the caller)
        try:
            topic, key = await self.engine.follow(prepared, ctx)
        except RequestRefused as refused:
            return 200, {"errors": refused.errors}, []
        except (Unauthenticated, LimitExceeded, Unavailable) as error:
            return http_status(error), {"errors": [describe(error)]}, http_headers(error)
        except XimlerError as error:
            return 200, {"errors": [describe(error)]}, []

        async def again() -> Any:
            now = await self._context_factory(scope)
            self.engine.permit(prepared, now)
            return now

        async def run(now: Any, event: Event) -> tuple[bytes, bool]:
            response = await self._run(prepared, now, event=event)
            (shown,) = (response["data"] or {"": response}).values()
            return encode(response), shown is None and "errors" not in response

        inbox = self._follow(ctx, topic, key, position(headers.last_event_id))
        return 200, Subscription(inbox, ctx, again, run), []

    def _is_traced(self, parameters: Parameters, ctx: Any) -> bool:
        return parameters.extensions is not None and parameters.extensions.get("trace") is True and self._may_trace(ctx)

    async def _run(self, prepared: Prepared, ctx: Any, *, traced: bool = False, event: Event | None = None) -> Response:
        response = await self.engine.run(prepared, ctx, traced=traced, event=event)
        if self._refused is not None and "errors" in response:
            refusals = (error for error in response["errors"] if error["extensions"].get("kind") == Forbidden.code)
            if (first := next(refusals, None)) is not None:
                await self._refused(ctx, first["extensions"]["code"])
        return response

    async def _run_once(
        self, prepared: Prepared, ctx: Any, key: str, asked: bytes, once: Once
    ) -> tuple[int, Response | bytes, Headers]:
        async def work() -> tuple[Whole, bool]:
            response = await self._run(prepared, ctx)
            answer = 200, encode(response), list(getattr(ctx, "reply_headers", []))
            return answer, not prepared.changed_nothing(response)

        try:
            return await once(ctx, key, asked, work)
        except XimlerError as error:
            return http_status(error), {"errors": [describe(error)]}, http_headers(error)

    async def _receive_body(self, scope: Scope, headers: "_Headers", receive: Receive) -> bytes:
        if not is_json(headers.content_type):
            raise NotWellFormed(415, "Content-Type must be application/json, in UTF-8")
        if headers.content_encoding not in (b"", b"identity"):
            raise NotWellFormed(415, "A compressed body is not accepted", [(b"accept-encoding", b"identity")])
        limit, size = self._anonymous_body_limit, headers.content_length
        if size > limit:
            limit = await self._larger_limit(scope, headers, size)
        chunks: list[bytes] = []
        size = counted = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                limit = await self._larger_limit(scope, headers, size)
            if size > max(counted, in_flight.SMALL):
                in_flight.hold(scope.get("state", {}), size - counted, known=limit > self._anonymous_body_limit)
                counted = size
            chunks.append(chunk)
            if not message.get("more_body"):
                if counted and not await self._has_account(scope, headers):
                    await in_flight.turn(scope.get("state", {}), size)
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _has_account(self, scope: Scope, headers: "_Headers") -> bool:
        return headers.authorized and self._is_known(await self._context_factory(scope))

    async def _larger_limit(self, scope: Scope, headers: "_Headers", size: int) -> int:
        """The limit for a body above the anonymous one. The context is not kept: reading the body may take
        long.
        """
        limit, whose = self._body_limit, ""
        if size <= limit and not await self._has_account(scope, headers):
            limit, whose = self._anonymous_body_limit, ", the limit of anonymous requests"
        if size > limit:
            raise NotWellFormed(413, f"The body is longer than {limit:,} bytes{whose}")
        return limit


def refusal(scope: Scope, error: XimlerError) -> tuple[bytes, bytes]:
    """Media type and body of the response to a request that is rejected before its body is read."""
    return choose_response_type(_Headers(scope).accept) or JSON, encode({"errors": [describe(error)]})


class _Headers:
    """The request headers that GraphQL over HTTP uses."""

    __slots__ = (
        "accept", "authorized", "content_encoding", "content_length", "content_type", "idempotency_key", "last_event_id",
    )  # fmt: skip

    def __init__(self, scope: Scope) -> None:
        self.content_type = self.content_encoding = b""
        self.content_length = 0
        self.idempotency_key: str | None = None
        self.last_event_id: bytes | None = None
        self.authorized = False
        accept = []
        for name, value in scope["headers"]:
            if name == b"accept":
                accept.append(value)
            elif name in (b"authorization", b"cookie"):
                self.authorized = True
            elif name == b"content-type":
                self.content_type = value
            elif name == b"content-encoding":
                self.content_encoding = value.strip().lower()
            elif name == b"idempotency-key":
                self.idempotency_key = value.decode("latin-1")
            elif name == b"last-event-id":
                self.last_event_id = value
            elif name == b"content-length" and value.isdigit():
                self.content_length = int(value[:20])
        self.accept = b",".join(accept)


def _read_body(body: bytes, limits: Limits) -> Parameters:
    body = body.removeprefix(codecs.BOM_UTF8)
    if not body or body.isspace():
        raise NotWellFormed(400, f"The request has no body: {_SEND}")
    if body.lstrip()[:1] == b"[":
        raise NotWellFormed(400, "Batches are not accepted: send one operation a request")
    parameters: Parameters = _decode(body, Parameters, "The body", limits)
    return parameters


def _read_query_string(query_string: bytes, limits: Limits) -> Parameters:
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, errors="strict", encoding="utf-8", max_num_fields=100
        )
    except ValueError as error:
        raise NotWellFormed(400, f"The query string cannot be read: {error}") from error
    given = dict(pairs)
    if len(given) < len(pairs):
        raise NotWellFormed(400, "The query string gives a parameter twice")
    objects = {
        name: _decode(given[name].encode().removeprefix(codecs.BOM_UTF8), dict[str, Any] | None, f"`{name}`", limits)
        for name in ("variables", "extensions")
        if given.get(name)
    }
    query = given.get("query") or msgspec.UNSET
    return Parameters(query, given.get("operationName"), objects.get("variables"), objects.get("extensions"))


def _decode(data: bytes, kind: Any, subject: str, limits: Limits) -> Any:
    try:
        value = strict_json.decode(data, values=limits.values, containers=limits.containers, depth=limits.json_depth)
        return msgspec.convert(value, kind)
    except strict_json.NotJson as error:
        problem = error.about(subject)
    except msgspec.ValidationError as error:
        problem = f"{subject} is not a GraphQL request: {error}" + (f": {_SEND}" if kind is Parameters else "")
    raise NotWellFormed(400, problem)


async def _send(send: Send, status: int, media_type: bytes, body: bytes, extra: Headers, *, head: bool) -> None:
    headers = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"vary", b"accept"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
