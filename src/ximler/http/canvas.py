"""A project's canvas over REST: read with an entity tag,
replaced and patched on the revision that was read."""

import asyncio
import contextlib
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated, Any, cast

import msgspec
import zstandard
from litestar import Request, Response, get, patch, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import ClientException, HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from ximler.core import strict_json
from ximler.core.actor import Actor
from ximler.core.ids import object_id
from ximler.database import Database
from ximler.database.mixed import MAX_CONTAINERS, MAX_VALUES
from ximler.http.authentication import Caller, signed_in
from ximler.http.bodies import body_of, require_utf8
from ximler.http.conditional import encoding_of, matches, strong_tags
from ximler.http.problems import documented
from ximler.projects import canvas, records
from ximler.projects.patches import Saver
from ximler.projects.projects import RevisionConflict

__all__ = ["routes", "shown"]

_PATH = "/v1/projects/{project:str}/canvas"
_MAX_BODY = 20_000_000
_PATCHES = (records.MEDIA_TYPE, "application/json-patch+json", "application/merge-patch+json")
_ENCODINGS: dict[str, Callable[[], Any]] = {  # the best first; its name ends the entity tag of the compressed form
    "zstd": lambda: zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(),
    "gzip": lambda: zlib.compressobj(1, wbits=31),
}
_ENCODED = re.compile(f"-(?:{'|'.join(_ENCODINGS)})$")
_WORTH_COMPRESSING = 1000  # bytes
_WORTH_A_THREAD = 50_000  # bytes
_LARGE = 4_000_000  # bytes
_PART = 262_144  # bytes of JSON that are compressed and sent at once

_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_Base = Annotated[
    int | None, QueryParameter(ge=0, description="The revision that the change is based on, in place of If-Match")
]
_READS = documented(
    _400="The request cannot be read",
    _401="The session or key is missing, expired or revoked",
    _403="Requires the scope projects:read",
    _404="The project does not exist, is deleted or belongs to another user",
    _422="The project's id is malformed",
    _503="The database is unavailable",
)
_CHANGES = documented(
    _400="The body is not JSON that can be stored as it is: the detail names the place",
    _401="The session or key is missing, expired or revoked",
    _403="Requires the scope projects:write; or sent by another site",
    _404="The project does not exist, is deleted or belongs to another user",
    _409="The canvas is at another revision than `base`; Canvas-Revision has the current one. Never for record patches",
    _412="The canvas has none of the entity tags in If-Match; Canvas-Revision has the current revision",
    _413="The body is larger than 20 MB",
    _415="The media type is not supported",
    _422="The canvas or patch is invalid: the detail names the place. SEQ_PASSED: a later patch of the client was saved",
    _428="Neither If-Match nor `base` is given",
    _429="The plan's storage is used up, or too many changes",
    _503="The database is unavailable",
)


class Saved(msgspec.Struct, frozen=True, omit_defaults=True):
    """`revision` is the canvas's new revision. After a patch of records, `rejected` has the ids that it set
    in vain, because no record has them: the first 100.
    """

    revision: int
    rejected: list[str] | None = None


@get(
    _PATH,
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="A project's canvas",
    responses={
        200: ResponseSpec(dict[str, Any], description="The canvas", generate_examples=False),
        304: ResponseSpec(None, description="Not modified"),
    }
    | _READS,
)
async def show(
    project: _Project, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> Response[bytes] | Stream:
    """The canvas as it was saved, compressed with zstd or gzip where that is accepted. `Canvas-Revision` has
    its revision, and so does the entity tag: `If-None-Match` saves the transfer, and a change names its base
    with `If-Match`.
    """
    return await shown(state.database, caller.actor, object_id(project, "project"), request)


async def shown(
    database: Database, actor: Actor, project_id: Any, request: Request[Any, Any, Any]
) -> Response[bytes] | Stream:
    """The answer with a canvas. A large one is encoded while it is sent, as fast as the client takes it."""
    if known := request.headers.get("if-none-match"):
        revision = await canvas.revision_of(database, actor, project_id)
        for tag in (f'"{revision}"', *(f'"{revision}-{name}"' for name in _ENCODINGS)):
            if matches(known, tag):
                return Response(b"", status_code=304, headers=_headers(revision, tag))
    revision, found = await canvas.read_json(database, actor, project_id)
    encoding = encoding_of(request.headers.get("accept-encoding", ""), list(_ENCODINGS))
    if isinstance(found, bytes) and len(found) < _WORTH_COMPRESSING:
        encoding = None
    headers = _headers(revision, f'"{revision}-{encoding}"' if encoding else f'"{revision}"')
    if encoding:
        headers["Content-Encoding"] = encoding
    if isinstance(found, bytes):
        body = await asyncio.to_thread(_compressed, found, encoding) if encoding else found
        return Response(body, media_type="application/json", headers=headers)
    if request.scope["state"].get("head"):
        return Response(b"", media_type="application/json", headers=headers)
    return Stream(_streamed(found, encoding), media_type="application/json", headers=headers)


def _compressed(body: bytes, encoding: str) -> bytes:
    compressor = _ENCODINGS[encoding]()
    return cast("bytes", compressor.compress(body) + compressor.flush())


async def _streamed(parts: Iterator[bytes], encoding: str | None) -> AsyncIterator[bytes]:
    compressor = _ENCODINGS[encoding]() if encoding else None

    def following() -> bytes | None:
        while True:
            taken, size = [], 0
            for part in parts:
                taken.append(part)
                size += len(part)
                if size >= _PART:
                    break
            if not taken:
                return None
            body = b"".join(taken)
            if compressor is None or (body := compressor.compress(body)):
                return body

    while (body := await asyncio.to_thread(following)) is not None:
        yield body
    if compressor is not None:
        yield compressor.flush()


@put(
    _PATH,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Replace a project's canvas",
    request_max_body_size=_MAX_BODY,
    operation_class=body_of("The canvas", **{"application/json": Schema(type=[OpenAPIType.OBJECT, OpenAPIType.ARRAY])}),
    responses=_CHANGES,
)
async def replace(
    project: _Project,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    base: _Base = None,
) -> Response[Saved]:
    """Save the whole canvas, a JSON object or array, over the revision in `If-Match` or `base`. `If-Match: *`
    replaces any revision.
    """
    if request.content_type[0] != "application/json":
        raise _unsupported("Send the canvas as application/json")
    return await _change(canvas.replace, project, caller, request, state, base)


@put(
    f"{_PATH}/file",
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Import a file as a project's canvas",
    request_max_body_size=_MAX_BODY,
    operation_class=body_of("JSON in UTF-8, of any media type", **{"application/json": Schema(), "*/*": Schema()}),
    responses=_CHANGES,
)
async def import_file(
    project: _Project,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    base: _Base = None,
) -> Response[Saved]:
    """Save a file of JSON, such as `.excalidraw` and `.tldr`, of any media type, over the revision in
    `If-Match` or `base`. It is exported byte for byte until the canvas changes. Keys may start with `$` and
    contain `.`.
    """
    return await _change(canvas.replace, project, caller, request, state, base, file=True)


@get(
    f"{_PATH}/file",
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="Export a project's canvas as a file",
    responses={200: ResponseSpec(dict[str, Any], description="The file", generate_examples=False)} | _READS,
)
async def export_file(project: _Project, caller: NamedDependency[Caller], state: State) -> Response[bytes]:
    """The imported file, if the canvas is unchanged since; otherwise the canvas as JSON."""
    body, revision = await canvas.read_file(state.database, caller.actor, object_id(project, "project"))
    headers = {"Content-Disposition": "attachment", "Canvas-Revision": str(revision), "Cache-Control": "no-store"}
    return Response(body, media_type="application/json", headers=headers)


@patch(
    _PATH,
    **signed_in(scope="projects:write", saves=True),
    tags=["projects"],
    summary="Change a part of a project's canvas",
    request_max_body_size=_MAX_BODY,
    operation_class=body_of(
        "A record patch, a JSON Patch or a JSON Merge Patch",
        **{
            records.MEDIA_TYPE: Schema(type=OpenAPIType.OBJECT),
            "application/json-patch+json": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.OBJECT)),
            "application/merge-patch+json": Schema(),
        },
    ),
    responses=_CHANGES,
)
async def change(
    project: _Project,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    base: _Base = None,
) -> Response[Saved]:
    """Patch records by their ids (`application/vnd.ximler.records+json`):
    `{"client", "seq", "put": [record, …], "set": {id: {property: value}}, "remove": [id, …]}`. It needs no
    base and meets no conflict: of two changes of a property the later one holds, and deleted records stay
    deleted. Sent again with the same `client` and `seq`, it is applied once, and answered as before; a client
    sends one after the other. Records are those of `elements` with an `id`, or of the list that the project's
    settings name: `{"records": {"list": "shapes", "id": "key"}}`.

    Or apply a JSON Patch (RFC 6902, `application/json-patch+json`) or a JSON Merge Patch (RFC 7396,
    `application/merge-patch+json`) to the revision in `If-Match` or `base`: all of it, or nothing.
    """
    match request.content_type[0]:
        case records.MEDIA_TYPE:
            project_id = object_id(project, "project")
            body = await _body(request)
            saver: Saver = state.saver
            async with _turn(state, body):
                saved = await saver.save(caller.actor, project_id, await _given(body), size=len(body))
            return Response(Saved(saved.revision, saved.rejected), headers={"Canvas-Revision": str(saved.revision)})
        case "application/json-patch+json":
            return await _change(canvas.patch, project, caller, request, state, base)
        case "application/merge-patch+json":
            return await _change(canvas.merge, project, caller, request, state, base)
    raise _unsupported(
        f"Send the patch as {', '.join(_PATCHES[:-1])} or {_PATCHES[-1]}", {"Accept-Patch": ", ".join(_PATCHES)}
    )


async def _change(
    save: Callable[..., Awaitable[int]],
    project: str,
    caller: Caller,
    request: Request[Any, Any, Any],
    state: State,
    base: int | None,
    *,
    file: bool = False,
) -> Response[Saved]:
    project_id = object_id(project, "project")
    condition = request.headers.get("if-match")
    based_on = _based_on(condition, base)
    body = await _body(request)
    if file:
        save = partial(save, any_keys=True, text=body)
    try:
        async with _turn(state, body):
            given = await _given(body)
            revision = await save(state.database, caller.actor, project_id, given, based_on=based_on)
    except RevisionConflict as conflict:
        if condition is None:
            raise
        raise HTTPException(
            status_code=412,
            detail=f"{conflict.message}. A weak entity tag (W/…) never matches: send the strong one, or `base`"
            if "W/" in condition
            else conflict.message,
            headers={"Canvas-Revision": str(conflict.revision)},
        ) from None
    return Response(Saved(revision), headers=_headers(revision, f'"{revision}"'))


async def _body(request: Request[Any, Any, Any]) -> bytes:
    require_utf8(request)  # not `request.body`, which leaves out a byte order mark
    return b"".join([chunk async for chunk in request.stream()])


def _turn(state: State, body: bytes) -> AbstractAsyncContextManager[Any]:
    """The right to decode and store a body: of large ones, two at once,
    because each takes hundreds of megabytes."""
    if len(body) < _LARGE:
        return contextlib.nullcontext()
    turns: asyncio.Semaphore = state.large_bodies
    return turns


async def _given(body: bytes) -> Any:
    """The value of a body. Raises ClientException for JSON that would not come back as it is."""
    decode = partial(strict_json.decode, body, values=MAX_VALUES, containers=MAX_CONTAINERS)
    try:
        # A large canvas must not keep other requests waiting.
        return decode() if len(body) < _WORTH_A_THREAD else await asyncio.to_thread(decode)
    except strict_json.NotJson as problem:
        missing = "" if body.strip() else ": send the canvas, or the change of it, as JSON"
        raise ClientException(problem.about("The body") + missing) from None


def _based_on(condition: str | None, base: int | None) -> Collection[int] | None:
    """The revisions that a change may be based on; None for any.
    Raises HTTPException (428) where it does not say."""
    if condition is None and base is None:
        raise HTTPException(
            status_code=428,
            detail="Say which revision the change is based on: If-Match with the canvas's entity tag, or the parameter `base`",
        )
    if condition is None:
        return (base,) if base is not None else None
    if condition.strip() == "*":
        return None if base is None else (base,)
    tags = {_ENCODED.sub("", tag) for tag in strong_tags(condition)}
    revisions = {int(tag) for tag in tags if tag.isascii() and tag.isdigit() and len(tag) < 20}
    return revisions if base is None else revisions & {base}


def _headers(revision: int, tag: str) -> dict[str, str]:
    return {
        "ETag": tag,
        "Canvas-Revision": str(revision),
        "Cache-Control": "private, no-cache",
        "Vary": "Accept-Encoding",
    }


def _unsupported(detail: str, headers: dict[str, str] | None = None) -> HTTPException:
    return HTTPException(status_code=415, detail=detail, headers=headers)


routes = (show, replace, change, import_file, export_file)
