"""Export of the caller's own data."""

from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Stream

from ximler.accounts import step_up
from ximler.core import in_flight
from ximler.http.authentication import Caller, signed_in
from ximler.http.problems import documented
from ximler.privacy import export

__all__ = ["routes"]

_ZIP = "application/zip"


@get(
    "/v1/export",
    **signed_in(),
    tags=["accounts"],
    summary="Export your data",
    media_type=_ZIP,
    responses={200: ResponseSpec(bytes, description="A zip archive", media_type=_ZIP, generate_examples=False)}
    | documented(
        _401="Not signed in",
        _403="The sign-in is older than ten minutes, or an API key was used",
        _429="Another export of this account is under way",
        _503="The database is unavailable, or the server too busy",
    ),
)
async def take_along(
    request: Request[Any, Any, Any], caller: NamedDependency[Caller], state: State
) -> Stream | Response[bytes]:
    """A zip archive of JSON files and your uploads, created while it is sent. A truncated archive does not
    open.
    """
    day = f"{state.database.clock.now():%Y-%m-%d}"
    headers = {"Content-Disposition": f'attachment; filename="ximler-{day}.zip"', "Cache-Control": "no-store"}
    if request.scope["state"].get("head"):  # exports nothing, so it is not audited as an export
        step_up.require(state.database, caller.actor)
        return Response(b"", media_type=_ZIP, headers=headers)
    state.authentication.enter_alone(request.scope["state"], "export", caller.actor.require_user())
    in_flight.hold(request.scope["state"], in_flight.EXPORT, known=True)
    archive = await export.take(state.database, caller.actor, caller.actor.require_user())
    return Stream(archive, media_type=_ZIP, headers=headers)


routes = (take_along,)
