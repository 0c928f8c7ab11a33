"""Users' pictures: uploaded as the body or as a form's file, public to read."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.enums import MediaType
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter
from litestar.response import Stream

from ximler.accounts import avatars, pictures
from ximler.core.ids import object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.bodies import file_of, sent_file
from ximler.http.conditional import matches
from ximler.http.problems import documented

__all__ = ["routes"]

_FORM_OVERHEAD = 10_000  # bytes around the file in a multipart body
# The sandbox prevents browsers from running it; caches keep it for at most a day, so that it disappears with
# its owner.
_HEADERS = {
    "Cache-Control": "public, max-age=86400",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class Avatar(msgspec.Struct, frozen=True):
    """`avatar` is the picture's path, or null."""

    avatar: str | None


@put(
    "/v1/avatar",
    **signed_in(),
    tags=["accounts"],
    summary="Set your picture",
    operation_class=file_of("The picture, or a form with it", "image/*"),
    request_max_body_size=pictures.MAX_BYTES + _FORM_OVERHEAD,
    responses=documented(
        _400="The form cannot be read",
        _401="Not signed in",
        _403="Sent with an API key, or by another site",
        _413="The file is too large",
        _422="The picture cannot be read",
        _429="Too many changes",
        _503="The database is unavailable",
    ),
)
async def upload(caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State) -> Avatar:
    """PNG, JPEG, WebP or GIF, as the body itself or as the first file of a form. Kept as WebP, at most 512 ×
    512 pixels.
    """
    return Avatar(await avatars.set_picture(state.database, caller.actor, await sent_file(request, "avatar")))


@delete(
    "/v1/avatar",
    **signed_in(),
    status_code=200,
    tags=["accounts"],
    summary="Remove your picture",
    responses=documented(
        _401="Not signed in",
        _403="Sent with an API key, or by another site",
        _429="Too many changes",
        _503="The database is unavailable",
    ),
)
async def remove(caller: NamedDependency[Caller], state: State) -> Avatar:
    """Idempotent."""
    await avatars.remove(state.database, caller.actor)
    return Avatar(None)


@get(
    "/v1/avatars/{picture:str}",
    tags=["accounts"],
    summary="A user's picture",
    media_type=pictures.CONTENT_TYPE,
    responses={
        200: ResponseSpec(bytes, description="The picture", media_type=pictures.CONTENT_TYPE, generate_examples=False),
        304: ResponseSpec(None, description="Not modified", media_type=MediaType.TEXT),
    }
    | documented(
        _400="The request cannot be read",
        _404="The picture does not exist or was removed",
        _422="The id is malformed",
        _503="The database is unavailable",
    ),
)
async def show(
    picture: Annotated[str, PathParameter(max_length=100)], request: Request[Any, Any, Any], state: State
) -> Response[Any]:
    """A path's picture never changes. It is removed when its owner replaces it or leaves."""
    file = await avatars.get(state.database, object_id(picture, "picture"))
    headers = {**_HEADERS, "ETag": f'"{file.id}"'}
    if matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(b"", status_code=304, headers=headers, media_type=file.content_type)
    return Stream(
        avatars.read(state.database, file),
        headers={**headers, "Content-Length": str(file.size_bytes)},
        media_type=file.content_type,
    )


routes = (upload, remove, show)
