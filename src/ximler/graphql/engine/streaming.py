"""Streams of responses over HTTP: the events of a subscription, in two formats from one iterator.

`text/event-stream` is the protocol of https://github.com/enisdenjo/graphql-sse in its mode of distinct
connections: `next` events with a response each, then `complete`. An operation of another kind is one `next`.
`multipart/mixed` with `subscriptionSpec=1.0` is Apollo's,
https://www.apollographql.com/docs/graphos/routing/operations/subscriptions/multipart-protocol.

A response whose field is null is the last: the object of the subscription is gone, or is no longer the
caller's. A stream of Server-Sent Events that ends without `complete` has lost its session, key or server, and
clients connect again: with `Last-Event-ID` they receive the events since, or first a response with
`"extensions": {"resync": true}`, which says that events may be missing.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager, aclosing
from typing import Any

import msgspec

from ximler.core.errors import XimlerError
from ximler.core.streams import RESYNC, Event, Inbox, Position, read_position, watched
from ximler.graphql.engine.errors import describe
from ximler.graphql.engine.negotiation import EVENTS, PARTS

__all__ = ["Follow", "Subscription", "position", "stream", "whole"]

Follow = Callable[[Any, Any, Any, Position | None], AbstractContextManager[Inbox[Event]]]
"""`with follow(ctx, topic, key, after) as inbox`:
the events of a topic's key, after that position if one is given."""
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MISSED = b'{"data":null,"extensions":{"resync":true}}'
_FIRST = {EVENTS: b"retry: 1000\n\n", PARTS: b"\r\n--graphql"}
_PING = {EVENTS: b": ping\n\n", PARTS: b"\r\ncontent-type: application/json\r\n\r\n{}\r\n--graphql"}
_COMPLETE = b"event: complete\ndata: \n\n"
_LAST = {EVENTS: _COMPLETE, PARTS: b"--\r\n"}


class Subscription(msgspec.Struct):
    """A subscription that may begin. `run(ctx, event)` is the response to an event, and whether it is the
    last because its object is gone; `again` is the caller's context now, and raises once the caller may not
    use the field.
    """

    inbox: AbstractContextManager[Inbox[Event]]
    ctx: Any
    again: Callable[[], Awaitable[Any]]
    run: Callable[[Any, Event], Awaitable[tuple[bytes, bool]]]


def position(last_event_id: bytes | None) -> Position | None:
    return None if last_event_id is None else read_position(last_event_id.decode("latin-1"))


def whole(response: bytes) -> bytes:
    """The Server-Sent Events of an operation with one response."""
    return _next(EVENTS, response, None) + _COMPLETE


async def stream(about: Subscription, media_type: bytes, receive: Receive, send: Send, *, head: bool) -> None:
    """Send the responses until the client leaves, its access ends or the process stops; to HEAD none. Raises
    XimlerError, but only before anything is sent.
    """
    with about.inbox as inbox:
        headers = [
            (b"content-type", media_type),
            (b"cache-control", b"no-store"),
            (b"vary", b"accept"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _FIRST[media_type], "more_body": not head})
        if head:
            return
        leaving = asyncio.create_task(_end_with_client(receive, inbox))
        last = b""
        try:
            if await _send_all(about, inbox, media_type, send):
                last = _LAST[media_type]
        except XimlerError as error:
            if media_type == PARTS:
                last = _part(msgspec.json.encode({"payload": None, "errors": [describe(error)]})) + b"--\r\n"
        finally:
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _send_all(about: Subscription, inbox: Inbox[Event], media_type: bytes, send: Send) -> bool:
    """Returns whether the subscription is complete."""
    ctx = about.ctx

    async def allowed() -> bool:
        nonlocal ctx
        ctx = await about.again()
        return True

    async with aclosing(watched(inbox, allowed)) as batches:
        async for events in batches:
            for event in events:
                # Returns once the client has taken the last response, so a stream holds only one in memory.
                await send({"type": "http.response.body", "body": b"", "more_body": True})
                response, gone = (_MISSED, False) if event is RESYNC else await about.run(ctx, event)
                if inbox.ended:
                    return False
                body = _next(media_type, response, event.position)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                if gone:
                    return True
            if not events:
                await send({"type": "http.response.body", "body": _PING[media_type], "more_body": True})
    return False


async def _end_with_client(receive: Receive, inbox: Inbox[Event]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    inbox.end()


def _next(media_type: bytes, response: bytes, at: Position | None) -> bytes:
    if media_type == PARTS:
        return _part(b'{"payload":%b}' % response)
    return b"event: next\n%bdata: %b\n\n" % (b"" if at is None else b"id: %b\n" % at.encode(), response)


def _part(body: bytes) -> bytes:
    return b"\r\ncontent-type: application/json\r\n\r\n%b\r\n--graphql" % body
