"""Whole projects over REST: exported as one file, and made from one."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from litestar import Request, Response, get, post, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from ximler.core import in_flight
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, LimitExceeded
from ximler.core.ids import object_id
from ximler.http.assets import paced
from ximler.http.authentication import Authentication, Caller, signed_in
from ximler.http.bodies import file_of
from ximler.http.forms import first_file
from ximler.http.problems import documented
from ximler.http.ranges import disposition, name_in
from ximler.projects import archives, assets_links, assets_uploads, projects

__all__ = ["routes"]

_ZIP = "application/zip"
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_under_way: set[Any] = set()  # users who import
_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_Format = Annotated[
    Literal["zip", "file"], QueryParameter(description="`file`: the canvas alone, such as `.excalidraw`")
]
_Versions = Annotated[bool, QueryParameter(description="With the kept versions of the canvas")]
_Name = Annotated[str | None, QueryParameter(max_length=1000, description="The project's name, in place of the file's")]
_Assets = Annotated[bool, QueryParameter(description="With the assets")]


class Imported(msgspec.Struct, frozen=True):
    id: str
    name: str


@get(
    "/v1/projects/{project:str}/export",
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="Export a project",
    responses={200: ResponseSpec(bytes, description="The archive or file", media_type="*/*", generate_examples=False)}
    | documented(
        _400="The request cannot be read",
        _401="The session or key is missing, expired or revoked",
        _403="Requires the scope projects:read",
        _404="The project does not exist, is deleted or belongs to another user",
        _422="The project's id or a parameter is malformed",
        _429="Another export of this account is under way",
        _503="The database is unavailable, or the server too busy",
    ),
)
async def export(
    project: _Project,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    format: _Format = "zip",  # noqa: A002 (the parameter's name in the API)
    versions: _Versions = True,
    assets: _Assets = True,
) -> Response[bytes] | Stream:
    """A zip archive of the settings, the canvas, its versions and the assets, made while it is sent; a
    truncated one does not open. Or the canvas as a file, with the data URLs that were lifted into assets when
    it was imported.
    """
    given = {"with_versions": versions, "with_assets": assets}
    return await _sent(request, state, caller.actor, project, format, given, place="export")


@get(
    "/v1/exports/{project:str}",
    tags=["projects"],
    summary="Export a project by its URL",
    responses={200: ResponseSpec(bytes, description="The archive or file", media_type="*/*", generate_examples=False)}
    | documented(
        _400="The request cannot be read",
        _401="The URL has no token",
        _403="The URL has expired, was changed, or is for another project",
        _404="The project is deleted, or its user has lost access",
        _422="The project's id or a parameter is malformed",
        _429="Another export of this account by URL is under way",
        _503="The database is unavailable, or the server too busy",
    ),
)
async def follow(
    project: _Project,
    request: Request[Any, Any, Any],
    state: State,
    token: Annotated[str, QueryParameter(max_length=100, description="From the project's `exportUrl`")] = "",
    format: _Format = "zip",  # noqa: A002 (the parameter's name in the API)
    versions: _Versions = True,
    assets: _Assets = True,
) -> Response[bytes] | Stream:
    """As the project's export. An `exportUrl` grants the access of the user who requested it, for up to an
    hour, so a page can link to it."""
    actor = await assets_links.exporter(state.database, state.keyring, object_id(project, "project"), token)
    state.authentication.enter(request.scope["state"], ("url", actor.require_user()))
    given = {"with_versions": versions, "with_assets": assets}
    # In a place of its own, so that downloads by the URL do not block the user's own exports.
    return await _sent(request, state, actor, project, format, given, place="export by URL")


async def _sent(
    request: Request[Any, Any, Any],
    state: State,
    actor: Actor,
    project: str,
    wanted: Literal["zip", "file"],
    given: dict[str, bool],
    *,
    place: str,
) -> Response[bytes] | Stream:
    project_id = object_id(project, "project")
    found = await projects.get(state.database, actor, project_id)
    kind, ending = (_ZIP, "zip") if wanted == "zip" else ("application/octet-stream", "json")
    headers = {"Content-Disposition": disposition("attachment", f"{found.name}.{ending}"), "Cache-Control": "no-store"}
    if request.scope["state"]["head"]:
        return Response(b"", media_type=kind, headers=headers)
    content: AsyncGenerator[bytes, None]
    state.authentication.enter_alone(request.scope["state"], place, actor.require_user())
    in_flight.hold(request.scope["state"], in_flight.EXPORT, known=True)
    if wanted == "zip":
        content = await archives.export(state.database, actor, project_id, **given)
    else:
        content = await archives.export_file(state.database, actor, project_id)
    return Stream(content, media_type=kind, headers=headers)


@post(
    "/v1/projects/import",
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Import a project",
    request_max_body_size=None,
    operation_class=file_of("The archive or file, or a form with it"),
    responses=documented(
        _400="The request cannot be read",
        _401="The session or key is missing, expired or revoked",
        _403="Requires the scope projects:write; or sent by another site",
        _408="The body arrived slower than 1,000 bytes a second, or stopped for 30 seconds",
        _409="The import took too long",
        _413="The file is larger than XIMLER_ASSET_MAX_MB",
        _422="The file is no exported project and no drawing: the detail names the entry or place",
        _429="The plan's projects or storage are used up, or another import of this account is under way",
        _503="The database is unavailable",
    ),
)
async def load(
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
    name: _Name = None,
) -> Response[Imported]:
    """Make a project from an archive that `export` made, or from a drawing such as `.excalidraw` and `.tldr`,
    whose data URLs become assets. The whole project is made, or none. The body is the file, or a form
    (`multipart/form-data`) whose first file is taken.
    """
    return await _imported(request, state, caller.actor, name=name)


@put(
    "/v1/imports/{project:str}",
    status_code=201,
    tags=["projects"],
    summary="Import a project by its URL",
    request_max_body_size=None,
    operation_class=file_of("The archive or file, or a form with it"),
    responses=documented(
        _400="The request cannot be read",
        _401="The URL has no token",
        _403="The URL has expired, was changed, or is for another project; or sent by another site",
        _404="The user's account is closed or locked",
        _408="The body arrived slower than 1,000 bytes a second, or stopped for 30 seconds",
        _409="The project was imported before, an import by this URL is under way, or it took too long",
        _413="The file is larger than XIMLER_ASSET_MAX_MB",
        _422="The file is no exported project and no drawing: the detail names the entry or place",
        _429="The plan's projects or storage are used up, another import of this account is under way, or too many "
        "imports by URL",
        _503="The database is unavailable",
    ),
)
async def load_by_url(
    project: Annotated[str, PathParameter(max_length=100, description="The id that the project will have")],
    request: Request[Any, Any, Any],
    state: State,
    token: Annotated[str, QueryParameter(max_length=100, description="From `createProjectImport`")] = "",
    name: _Name = None,
) -> Response[Imported]:
    """As the import of a project. The URL of GraphQL's `createProjectImport` makes one project, for the user
    who asked for it, within an hour. After a failure the file can be sent again.
    """
    project_id = object_id(project, "project")
    authentication: Authentication = state.authentication
    origin = authentication.anonymous(request.scope).actor  # type: ignore[arg-type]  # ASGI's scope, typed by two libraries
    actor = await assets_links.importer(state.database, state.keyring, project_id, token, origin)
    authentication.limit_changes_by_url(actor)
    authentication.enter(request.scope["state"], ("url", actor.require_user()))
    return await _imported(request, state, actor, name=name, project_id=project_id)


async def _imported(
    request: Request[Any, Any, Any],
    state: State,
    actor: Actor,
    *,
    name: str | None,
    project_id: Any = None,
) -> Response[Imported]:
    user_id = actor.require_user()
    if user_id in _under_way:
        raise LimitExceeded("Another import of this account is under way: wait for its answer", retry_after_s=5)
    _under_way.add(user_id)
    try:
        pieces, given = paced(request), name_in(request.headers.get("content-disposition", ""))
        if request.content_type[0] == "multipart/form-data":
            found, pieces = await first_file(pieces, request.content_type[1].get("boundary", ""))
            given = given or found
        most = state.authentication.settings.asset_max_mb * 1_000_000
        with tempfile.TemporaryFile() as file:  # without a name, so a killed process leaves nothing
            await _receive(pieces, file, most)
            try:
                made_id = await _load(state, actor, file, name=name, given=given, most=most, project_id=project_id)
            except assets_uploads.TooLarge as error:
                raise HTTPException(status_code=413, detail=error.message) from None
    finally:
        _under_way.discard(user_id)
    made = await projects.get(state.database, actor, made_id)
    return Response(Imported(str(made.id), made.name))


async def _receive(pieces: AsyncGenerator[bytes, None], file: BinaryIO, most: int) -> None:
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            size += len(piece)
            if size > most:
                raise HTTPException(status_code=413, detail=f"A file may have {most:,} bytes at most")
            await asyncio.to_thread(file.write, piece)


async def _load(
    state: State,
    actor: Actor,
    file: BinaryIO,
    *,
    name: str | None,
    given: str | None,
    most: int,
    project_id: Any,
) -> Any:
    size = file.tell()
    file.seek(0)
    if file.read(4) in _MAGIC:
        return await archives.load(state.database, actor, file, name=name, most=most, project_id=project_id)
    if size > archives.MOST_TEXT:
        raise Invalid.field("file", f"is no zip archive, and larger than the {archives.MOST_TEXT:,} bytes of a drawing")
    file.seek(0)
    text = await asyncio.to_thread(file.read)
    name = name or assets_uploads.file_name(given or "Imported").rsplit(".", 1)[0] or "Imported"
    return await archives.load_file(state.database, actor, text, name=name, most=most, project_id=project_id)


routes = (export, follow, load, load_by_url)
