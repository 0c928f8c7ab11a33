"""A canvas's changes over REST as they happen: Server-Sent Events, one for each revision."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from litestar import Request, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import ClientException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send

from ximler.apikeys import scopes
from ximler.core.errors import XimlerError
from ximler.core.ids import object_id
from ximler.core.streams import Streams, watched
from ximler.http.authentication import Authentication, Caller, signed_in
from ximler.http.problems import documented
from ximler.projects import canvas
from ximler.projects.live import Event, Live

__all__ = ["routes"]

_SCOPE = "projects:read"
_FIRST = b"retry: 1000\n\n"
_EVENTS = {"records": b"patch", "patch": b"json-patch", "merge": b"merge-patch"}


class _Events(ASGIStreamingResponse):
    """Closes its generator also when the client leaves while something is sent."""

    async def send_body(self, send: Send, receive: Receive) -> None:
        async with aclosing(self.iterator):  # type: ignore[type-var]  # it is a generator
            await super().send_body(send, receive)


@get(
    "/v1/projects/{project:str}/canvas/changes",
    **signed_in(scope=_SCOPE),
    tags=["projects"],
    summary="A project's canvas as it changes",
    responses={200: ResponseSpec(str, description="Server-Sent Events", media_type="text/event-stream")}
    | documented(
        _400="Last-Event-ID is not a revision",
        _401="The session or key is missing, expired or revoked",
        _403="Requires the scope projects:read",
        _404="The project does not exist, is deleted or belongs to another user",
        _422="The project's id is malformed",
        _429="Eight streams of this user are open",
        _503="The database is unavailable, or the server stops",
    ),
)
async def changes(
    project: Annotated[str, PathParameter(max_length=100, description="The project's id")],
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    since: Annotated[
        int | None, QueryParameter(ge=0, description="The revision that the client has; without it, the current one")
    ] = None,
) -> ASGIResponse:
    """Each revision after `since` (or the header `Last-Event-ID`), in order and once, as an event whose id is
    the revision. `patch` has a patch of records:
    `{"revision", "by": [[client, seq], …], "put", "set", "remove"}`, `json-patch` a JSON Patch:
    `{"revision", "patch": […]}`, and `merge-patch` a JSON Merge Patch: `{"revision", "merge": …}`. `reload`
    stands for changes that are not kept as such: read the canvas, and apply later events. The stream ends
    with the access to the project.
    """
    project_id = object_id(project, "project")
    if last := request.headers.get("last-event-id"):
        if not (last.isascii() and last.isdigit() and len(last) < 16):
            raise ClientException("Last-Event-ID must be the id of an event of this stream")
        since = int(last)
    live: Live = state.live
    streams: Streams = state.streams
    streams.admit(caller.actor)
    await canvas.revision_of(state.database, caller.actor, project_id)  # 404 before the stream begins
    body = _head() if request.scope["state"].get("head") else _body(live, caller, project, since, request)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Events(iterator=body, media_type="text/event-stream", headers=headers, status_code=200)


async def _head() -> AsyncIterator[bytes]:
    yield _FIRST


async def _body(
    live: Live, caller: Caller, project: str, since: int | None, request: Request[Any, Any, Any]
) -> AsyncIterator[bytes]:
    authentication: Authentication = request.app.state.authentication

    async def allowed() -> bool:
        now = await authentication.identify(request.scope)  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
        scopes.require(now.actor, _SCOPE, what="this stream")
        return now.actor.user_id == caller.actor.user_id

    try:
        with live.follow(caller.actor, object_id(project, "project")) as follower:
            yield _FIRST
            await live.begin(follower, since)
            async with aclosing(watched(follower, allowed)) as batches:
                async for events in batches:
                    yield b"".join(map(_encoded, events)) or b": ping\n\n"
    except XimlerError:
        return  # the access has ended, or is unknown: the client gets the reason when it connects again


def _encoded(event: Event) -> bytes:
    if event.patch is None:
        return b'event: reload\nid: %d\ndata: {"revision":%d}\n\n' % (event.revision, event.revision)
    return b"event: %b\nid: %d\ndata: %b\n\n" % (_EVENTS[event.kind], event.revision, event.patch)


routes = (changes,)
