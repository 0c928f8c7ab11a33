"""Assets of projects over REST: uploaded and downloaded as streams."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from time import monotonic
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from ximler.core.errors import NotFound
from ximler.core.ids import decode_cursor, object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.bodies import file_of
from ximler.http.conditional import matches, strong_tags
from ximler.http.forms import first_file
from ximler.http.problems import documented, documented_in_project
from ximler.http.ranges import Unsatisfiable, byte_range, disposition, name_in
from ximler.projects import assets, assets_kinds, assets_links, assets_previews, assets_uploads, assets_usage

__all__ = ["Asset", "Assets", "Preview", "Sha256", "answer", "bare", "paced", "routes"]

_PATH = "/v1/projects/{project:str}/assets"
_ONE = f"{_PATH}/{{asset:str}}"
_PATIENCE_S = 30  # for the next bytes of a body
_TICK_S = 1
_LEAST_RATE = 1000  # bytes a second, after `_PATIENCE_S`
# A file of users never runs on this origin, whatever a browser takes it for.
_SANDBOX = "sandbox; default-src 'none'"

_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_AssetId = Annotated[str, PathParameter(max_length=100, description="The asset's id")]
Preview = Annotated[
    int, QueryParameter(description="256 or 1024: the picture in WebP, at most so many pixels wide and high")
]
Sha256 = Annotated[
    str | None, QueryParameter(max_length=64, description="Of the content, which browsers then keep for a year")
]
_READS = documented_in_project(
    "asset", _403="Requires the scope projects:read", _422="An id, cursor or size is malformed"
)
_FILE = {
    200: ResponseSpec(bytes, description="The file", media_type="*/*", generate_examples=False),
    206: ResponseSpec(bytes, description="The range of the file", media_type="*/*", generate_examples=False),
    304: ResponseSpec(None, description="Not modified"),
}
_CHANGES = documented_in_project(
    "asset",
    _403="Requires the scope projects:write; or sent by another site",
    _422="An id or the name is invalid",
    _429="The plan's storage is used up, the project has 1,000 assets, or too many changes",
)


class Asset(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A file of a project. `contentType` comes from its content. `sha256` is in hexadecimal digits.

    `url` is a path that needs no credentials until `urlExpiresAt`, for pages to show the file. `previews` has
    such paths of small pictures by their size, 256 and 1024 pixels; it is empty for a file that is no
    picture. Public links list assets without them.
    """

    id: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    url: str | None = None
    url_expires_at: datetime | None = None
    previews: dict[str, str] = {}


class Assets(msgspec.Struct, frozen=True):
    """Newest first. `next` continues the list, as `after`; null at its end."""

    assets: Sequence[Asset]
    next: str | None


@get(_PATH, **signed_in(scope="projects:read"), tags=["projects"], summary="Assets of a project", responses=_READS)
async def show_list(
    project: _Project,
    caller: NamedDependency[Caller],
    state: State,
    first: Annotated[int, QueryParameter(ge=1, le=100, description="How many, at most")] = 20,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before")] = None,
    unused: Annotated[
        bool, QueryParameter(description="Those that neither the canvas nor a kept version shows")
    ] = False,
) -> Assets:
    """Newest first, without their content."""
    position = None if after is None else decode_cursor(after)
    listed = assets_usage.unused if unused else assets.page
    page = await listed(state.database, caller.actor, object_id(project, "project"), first=first, after=position)
    return Assets([shown(state, caller, item) for item in page.items], page.end_cursor if page.has_next else None)


@post(
    _PATH,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Upload an asset",
    request_max_body_size=None,
    operation_class=file_of("The file, or a form with it"),
    responses=_CHANGES
    | documented(
        _408="The body arrived slower than 1,000 bytes a second, or stopped for 30 seconds",
        _409="The upload ended, because the server did not hear from it",
        _413="The file is larger than XIMLER_ASSET_MAX_MB",
    ),
)
async def upload(
    project: _Project,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    name: Annotated[
        str | None, QueryParameter(max_length=1000, description="The file's name, in place of Content-Disposition")
    ] = None,
) -> Response[Asset]:
    """The body is the file, of any type, which comes from its content; or a form (`multipart/form-data`),
    whose first file is taken. The file's name is `name`, or that in `Content-Disposition`. Storage is
    reserved for `Content-Length`, or while the body arrives. Equal content is stored once.
    """
    project_id = object_id(project, "project")
    length = request.headers.get("content-length")
    size_bytes = None if length is None else int(length)
    given = name or name_in(request.headers.get("content-disposition", ""))
    pieces = paced(request)
    if request.content_type[0] == "multipart/form-data":
        found, pieces = await first_file(pieces, request.content_type[1].get("boundary", ""))
        given, size_bytes = given or found, None
    most = state.authentication.settings.asset_max_mb * 1_000_000
    try:
        receiving = await assets_uploads.begin(
            state.database,
            caller.actor,
            project_id,
            name=given or "file",
            size_bytes=size_bytes,
            most=most,
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    await receiving.write(piece)
            made = await receiving.finish()
        except Exception:
            await receiving.abandon()
            raise
    except assets_uploads.TooLarge as error:
        raise HTTPException(status_code=413, detail=error.message) from None
    return Response(shown(state, caller, made), headers={"Location": f"/v1/projects/{project_id}/assets/{made.id}"})


@get(
    _ONE,
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="Download an asset",
    responses=_FILE | _READS | documented(_416="The range starts after the file's last byte"),
)
async def show(
    project: _Project,
    asset: _AssetId,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    preview: Preview = 0,
    sha256: Sha256 = None,
) -> Response[bytes] | Stream:
    """The file, or with `Range` a part of it. Its entity tag is its SHA-256. Pictures, sound, video, fonts,
    plain text and JSON are shown by browsers; any other file, SVG and HTML among them, is downloaded.
    """
    found = await assets.get(state.database, caller.actor, *_ids(project, asset))
    return await answer(request, state, found, preview, sha256)


@get(
    "/v1/assets/{asset:str}",
    tags=["projects"],
    summary="Download an asset by its URL",
    responses=_FILE
    | documented(
        _400="The request cannot be read",
        _401="The URL has no token",
        _403="The URL has expired, was changed, or is for another asset",
        _404="The asset or its project is deleted, or its user has lost access",
        _416="The range starts after the file's last byte",
        _422="The id is malformed",
        _429="Too many requests of this account are under way",
        _503="The database is unavailable",
    ),
)
async def follow(
    asset: _AssetId,
    request: Request[Any, Any, Any],
    state: State,
    token: Annotated[str, QueryParameter(max_length=100, description="From the asset's `url`")] = "",
) -> Response[bytes] | Stream:
    """For `<img>` and other elements of a page, which send no key. An asset's `url` grants the access of the
    user who asked for it, for up to an hour. As with other downloads, SVG, HTML and unknown files are
    attachments.
    """
    found = await assets_links.follow(state.database, state.keyring, object_id(asset, "asset"), token)
    state.authentication.enter(request.scope["state"], ("url", found.actor.require_user()))
    response = await answer(request, state, found.asset, found.preview)
    response.headers["Cache-Control"] = f"private, max-age={found.left // timedelta(seconds=1)}, immutable"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return response


@delete(_ONE, **signed_in(scope="projects:write"), tags=["projects"], summary="Delete an asset", responses=_CHANGES)
async def remove(project: _Project, asset: _AssetId, caller: NamedDependency[Caller], state: State) -> None:
    """Delete the file for good. Its bytes are released unless another asset has the same content."""
    await assets.delete(state.database, caller.actor, *_ids(project, asset))


async def answer(
    request: Request[Any, Any, Any], state: State, asset: assets.Asset, preview: int = 0, sha256: str | None = None
) -> Response[bytes] | Stream:
    """The file, or a preview of it, which browsers keep if the request names its content.
    Raises NotFound if it is other content.
    """
    if sha256 is not None and sha256 != asset.digest.hex():
        raise NotFound("The asset has other content")
    response = await _preview(request, state, asset, preview) if preview else _file(request, state, asset)
    if sha256 is not None:
        response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    return response


async def _preview(request: Request[Any, Any, Any], state: State, asset: assets.Asset, preview: int) -> Response[bytes]:
    """Previews are small, so they have no ranges."""
    headers = {
        "ETag": f'"{asset.digest.hex()}-{assets_previews.require_side(preview)}"',
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": _SANDBOX,
    }
    if matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(b"", status_code=304, headers=headers)
    content = await assets_previews.get(state.database, asset, preview)
    return Response(content, media_type=assets_previews.CONTENT_TYPE, headers=headers)


def _file(request: Request[Any, Any, Any], state: State, asset: assets.Asset) -> Response[bytes] | Stream:
    size, tag = asset.size_bytes, f'"{asset.digest.hex()}"'
    shown = assets_kinds.is_shown(asset.content_type)
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition("inline" if shown else "attachment", asset.name),
        "Content-Security-Policy": _SANDBOX,
    }
    known = request.headers.get("if-none-match")
    if known and matches(known, tag):
        return Response(b"", status_code=304, headers=headers)
    status, (start, end) = 200, (0, size)
    unchanged = request.headers.get("if-range")
    if unchanged is None or asset.digest.hex() in strong_tags(unchanged):
        try:
            wanted = byte_range(request.headers.get("range"), size)
        except Unsatisfiable:
            raise HTTPException(
                status_code=416,
                detail=f"The file has {size:,} bytes: the range starts after its end",
                headers={"Content-Range": f"bytes */{size}"},
            ) from None
        if wanted:
            status, (start, end) = 206, wanted
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.scope["state"]["head"]:
        end = start
    content = assets.read(state.database, asset, start, end)
    return Stream(content, status_code=status, media_type=asset.content_type, headers=headers)


async def paced(request: Request[Any, Any, Any]) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, and nothing once a second while none of it does, so that a lease is renewed.

    Raises HTTPException (408) for a body that stops, or is slower than the least rate.
    """
    started = heard = monotonic()
    received = 0
    stream = request.stream()
    pending: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(stream, None))
            await asyncio.wait([pending], timeout=_TICK_S)
            now = monotonic()
            if not pending.done():
                if now - heard > _PATIENCE_S:
                    raise _too_slow()
                yield b""
                continue
            piece, pending = pending.result(), None
            if piece is None:
                return
            heard = now
            received += len(piece)
            if received < (now - started - _PATIENCE_S) * _LEAST_RATE:
                raise _too_slow()
            if piece:
                yield piece
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait([pending])
        await stream.aclose()


def _too_slow() -> HTTPException:
    return HTTPException(
        status_code=408,
        detail=f"The body arrives slower than {_LEAST_RATE:,} bytes a second: send it again",
        headers={"Connection": "close"},
    )


def _ids(project: str, asset: str) -> tuple[Any, Any]:
    return object_id(project, "project"), object_id(asset, "asset")


def shown(state: State, caller: Caller, asset: assets.Asset) -> Asset:
    """An asset as its user sees it, with addresses that grant the user's access."""
    now = state.database.clock.now()
    link = assets_links.link(state.keyring, caller.actor, asset, now)
    sides = assets_previews.SIDES if assets_previews.show(asset) else ()
    previews = {
        str(side): assets_links.link(state.keyring, caller.actor, asset, now, preview=side).url for side in sides
    }
    return msgspec.structs.replace(bare(asset), url=link.url, url_expires_at=link.expires_at, previews=previews)


def bare(asset: assets.Asset) -> Asset:
    """An asset without such addresses."""
    return Asset(
        id=str(asset.id),
        name=asset.name,
        content_type=asset.content_type,
        size_bytes=asset.size_bytes,
        sha256=asset.digest.hex(),
        created_at=asset.created_at,
    )


routes = (show_list, upload, show, follow, remove)
