"""Small pictures of projects over REST."""

from typing import Annotated, Any

from litestar import Request, Response, delete, get, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter

from ximler.accounts import pictures
from ximler.core.ids import object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.bodies import file_of, sent_file
from ximler.http.conditional import matches
from ximler.http.problems import documented, documented_in_project
from ximler.projects import assets_links, thumbnails

__all__ = ["routes"]

_PATH = "/v1/projects/{project:str}/thumbnail"
_FORM_OVERHEAD = 10_000  # bytes around the file in a multipart body
_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_PICTURE = {
    200: ResponseSpec(bytes, description="PNG or WebP", media_type="image/*", generate_examples=False),
    304: ResponseSpec(None, description="Not modified"),
}
_CHANGES = documented_in_project(
    "thumbnail",
    _403="Requires the scope projects:write; or sent by another site",
    _422="The project's id is malformed, or the picture cannot be read",
    _429="Too many changes",
)


@get(
    _PATH,
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="A project's small picture",
    responses=_PICTURE
    | documented_in_project("canvas", _403="Requires the scope projects:read", _422="The project's id is malformed"),
)
async def show(
    project: _Project, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> Response[bytes]:
    """The picture that was sent, or else a drawing of the canvas as it is; 404 for one that shows nothing."""
    return _answer(request, await thumbnails.get(state.database, caller.actor, object_id(project, "project")))


@get(
    "/v1/thumbnails/{project:str}",
    tags=["projects"],
    summary="A project's small picture by its URL",
    responses=_PICTURE
    | documented(
        _400="The request cannot be read",
        _401="The URL has no token",
        _403="The URL has expired, was changed, or is for another project",
        _404="The project is deleted, its user has lost access, or the canvas shows nothing",
        _422="The id is malformed",
        _429="Too many requests of this account are under way",
        _503="The database is unavailable",
    ),
)
async def follow(
    project: _Project,
    request: Request[Any, Any, Any],
    state: State,
    token: Annotated[str, QueryParameter(max_length=100, description="From the project's `thumbnailUrl`")] = "",
) -> Response[bytes]:
    """For `<img>`, which sends no key. A `thumbnailUrl` grants the access of the user
    who asked for it, for up to an hour."""
    project_id = object_id(project, "project")
    actor = await assets_links.thumbnail_reader(state.database, state.keyring, project_id, token)
    state.authentication.enter(request.scope["state"], ("url", actor.require_user()))
    response = _answer(request, await thumbnails.get(state.database, actor, project_id))
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return response


@put(
    _PATH,
    **signed_in(scope="projects:write"),
    status_code=204,
    tags=["projects"],
    summary="Set a project's small picture",
    operation_class=file_of("The picture, or a form with it", "image/*"),
    request_max_body_size=pictures.MAX_BYTES + _FORM_OVERHEAD,
    responses=_CHANGES | documented(_413="The file is too large"),
)
async def replace(
    project: _Project, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> None:
    """PNG, JPEG, WebP or GIF, as the body itself or as the first file of a form. Kept as WebP, at most 512 ×
    512 pixels, and shown in place of a drawing.
    """
    await thumbnails.set_picture(
        state.database, caller.actor, object_id(project, "project"), await sent_file(request, "thumbnail")
    )


@delete(
    _PATH,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Remove a project's small picture",
    responses=_CHANGES,
)
async def remove(project: _Project, caller: NamedDependency[Caller], state: State) -> None:
    """The canvas is drawn again. Idempotent."""
    await thumbnails.remove(state.database, caller.actor, object_id(project, "project"))


def _answer(request: Request[Any, Any, Any], found: thumbnails.ProjectThumbnail) -> Response[bytes]:
    headers = {"ETag": f'"{found.digest.hex()[:32]}"', "Cache-Control": "private, no-cache"}
    if matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(b"", status_code=304, headers=headers)
    return Response(found.data, media_type=found.content_type, headers=headers)


routes = (show, follow, replace, remove)
