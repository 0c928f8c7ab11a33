"""Taking along all that is kept of one."""

from typing import Any

from litestar import Request, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Stream

from ximler.http.authentication import identify
from ximler.http.problems import documented
from ximler.privacy import export

__all__ = ["take_along"]

_ZIP = "application/zip"


@get(
    "/export",
    tags=["accounts"],
    summary="Everything that is kept of you",
    media_type=_ZIP,
    responses={200: ResponseSpec(bytes, description="A zip archive", media_type=_ZIP, generate_examples=False)}
    | documented(_401="Nobody is signed in", _403="The sign-in is older than ten minutes", _503="The database is away"),
)
async def take_along(request: Request[Any, Any, Any], state: State) -> Stream:
    """A zip archive of JSON files, and of files of your own, made as it is sent. One that ends early does not open."""
    actor, _ = await identify(state.database, state.keyring, request.scope)  # type: ignore[arg-type]  # a TypedDict
    user_id = actor.require_user()
    archive = await export.take(state.database, actor, user_id)
    day = f"{state.database.clock.now():%Y-%m-%d}"
    headers = {"Content-Disposition": f'attachment; filename="ximler-{day}.zip"', "Cache-Control": "no-store"}
    return Stream(archive, media_type=_ZIP, headers=headers)
