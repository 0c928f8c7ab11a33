"""Reading through a public link: its project, the canvas and the assets.
The link's token is the credential."""

from datetime import datetime
from time import monotonic
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated
from ximler.core.ids import decode_cursor, object_id
from ximler.http import assets as files
from ximler.http import canvas
from ximler.http.problems import documented
from ximler.metering.quota.bursts import Bursts
from ximler.projects import assets, links

__all__ = ["routes"]

_PATH = "/v1/shared"
_OPTIONS: dict[str, Any] = {"opt": {"api_calls": 0}, "tags": ["shared"]}
_ANSWERS = documented(
    _400="The request cannot be read",
    _401="There is no token",
    _404="The link does not exist, has expired or was revoked, or its project was deleted",
    _422="An id, cursor or size is malformed",
    _429="Too many requests with this link",
    _503="The database is unavailable",
)
_reads = Bursts("all visitors of this link together", rate=50, size=500)


class SharedProject(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """The project of a link, which expires at `expiresAt`."""

    id: str
    name: str
    description: str | None
    canvas_revision: int
    updated_at: datetime
    expires_at: datetime


@get(_PATH, **_OPTIONS, summary="The project of a public link", responses=_ANSWERS)
async def show(request: Request[Any, Any, Any], state: State) -> SharedProject:
    """Send the link's token as `Authorization: Bearer xil_…`. It is no API key: other routes reject it."""
    opened = await _opened(request, state)
    project = opened.project
    return SharedProject(
        id=str(project.id),
        name=project.name,
        description=project.description,
        canvas_revision=project.canvas_revision,
        updated_at=project.updated_at,
        expires_at=opened.link.expires_at,
    )


@get(
    f"{_PATH}/canvas",
    **_OPTIONS,
    summary="The canvas of a public link's project",
    responses={
        200: ResponseSpec(dict[str, Any], description="The canvas", generate_examples=False),
        304: ResponseSpec(None, description="Not modified"),
    }
    | _ANSWERS,
)
async def show_canvas(request: Request[Any, Any, Any], state: State) -> Response[bytes] | Stream:
    """As `GET /v1/projects/{project}/canvas`."""
    opened = await _opened(request, state)
    return await canvas.shown(state.database, opened.actor, opened.project.id, request)


@get(f"{_PATH}/assets", **_OPTIONS, summary="Assets of a public link's project", responses=_ANSWERS)
async def show_assets(
    request: Request[Any, Any, Any],
    state: State,
    first: Annotated[int, QueryParameter(ge=1, le=100, description="How many, at most")] = 20,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before")] = None,
) -> files.Assets:
    """Newest first, without their content."""
    opened = await _opened(request, state)
    position = None if after is None else decode_cursor(after)
    page = await assets.page(state.database, opened.actor, opened.project.id, first=first, after=position)
    return files.Assets([files.bare(item) for item in page.items], page.end_cursor if page.has_next else None)


@get(
    f"{_PATH}/assets/{{asset:str}}",
    **_OPTIONS,
    summary="Download an asset of a public link's project",
    responses={
        200: ResponseSpec(bytes, description="The file", media_type="*/*", generate_examples=False),
        206: ResponseSpec(bytes, description="The range of the file", media_type="*/*", generate_examples=False),
        304: ResponseSpec(None, description="Not modified"),
    }
    | _ANSWERS
    | documented(_416="The range starts after the file's last byte"),
)
async def show_asset(
    asset: Annotated[str, PathParameter(max_length=100, description="The asset's id")],
    request: Request[Any, Any, Any],
    state: State,
    preview: files.Preview = 0,
    sha256: files.Sha256 = None,
) -> Response[bytes] | Stream:
    """As `GET /v1/projects/{project}/assets/{asset}`."""
    opened = await _opened(request, state)
    found = await assets.get(state.database, opened.actor, opened.project.id, object_id(asset, "asset"))
    return await files.answer(request, state, found, preview, sha256)


async def _opened(request: Request[Any, Any, Any], state: State) -> links.Opened:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.startswith(links.PREFIX):
        raise Unauthenticated("Send the link's token as 'Authorization: Bearer xil_…'")
    scoped = request.scope["state"]
    visitor = Actor(address=scoped.get("address"), request_id=scoped.get("request_id"))
    opened = await links.open_link(state.database, visitor, token.strip())
    _reads.take(opened.link.id, 1, monotonic())
    state.authentication.enter(scoped, opened.link.id)  # a canvas that is read slowly takes megabytes
    return opened


routes = (show, show_canvas, show_assets, show_asset)
