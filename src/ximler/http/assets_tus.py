"""Resumable uploads of assets: tus 1.0 with creation, creation-with-upload, creation-defer-length,
expiration, checksum and termination (https://tus.io/protocols/resumable-upload).
"""

import base64
import binascii
import hashlib
import re
from contextlib import aclosing
from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post, route
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Schema
from litestar.params import PathParameter

from ximler.core.errors import NotFound
from ximler.core.ids import object_id
from ximler.http.assets import paced
from ximler.http.authentication import Caller, signed_in
from ximler.http.bodies import body_of
from ximler.http.problems import documented
from ximler.projects import assets_resumable as resumable
from ximler.projects import assets_uploads

__all__ = ["ANSWERED", "HEADERS", "routes"]

# Headers that pages of other origins send, and read.
HEADERS = (
    "Range",
    "Tus-Resumable",
    "Upload-Checksum",
    "Upload-Defer-Length",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
)
ANSWERED = (
    "Asset-Location",
    "Content-Range",
    "Location",
    "Tus-Resumable",
    "Upload-Defer-Length",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Offset",
)

_PATH = "/v1/projects/{project:str}/uploads"
_ONE = f"{_PATH}/{{upload:str}}"
_TYPE = "application/offset+octet-stream"
_ALGORITHMS = ("sha1", "sha256", "md5")
_VERSION = {"Tus-Resumable": "1.0.0"}
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_MISMATCH = 460  # of the protocol's own

_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_UploadId = Annotated[str, PathParameter(max_length=100, description="The upload's id, from Location")]
_ANSWERS = documented(
    _400="A header is malformed, or the body cannot be read",
    _401="The session or key is missing, expired or revoked",
    _403="Requires the scope projects:write; or sent by another site",
    _404="The project or upload does not exist, has expired or belongs to another user",
    _408="The body arrived slower than 1,000 bytes a second, or stopped for 30 seconds",
    _409="The upload is at another offset, or another request writes it",
    _412="Tus-Resumable is not 1.0.0; Tus-Version has the supported one",
    _413="The file is larger than its length or than XIMLER_ASSET_MAX_MB",
    _415=f"The Content-Type is not {_TYPE}",
    _422="An id or a name is invalid",
    _429="The plan's storage is used up, the project has 1,000 assets, or too many changes",
    _503="The database is unavailable",
) | {
    _MISMATCH: ResponseSpec(None, description="The checksum is another one: nothing was kept", generate_examples=False)
}


class UploadState(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """`length` is null until it is known, `asset` until the upload is finished."""

    id: str
    offset: int
    length: int | None
    asset: str | None


@route(
    _PATH,
    http_method=[HttpMethod.OPTIONS],
    opt={"api_calls": 0},
    tags=["projects"],
    summary="What resumable uploads offer",
    status_code=204,
    responses=documented(_400="The request cannot be read")
    | {204: ResponseSpec(None, description="The headers say it", generate_examples=False)},
)
async def capabilities(project: _Project, state: State) -> Response[None]:  # noqa: ARG001 (a part of the path)
    return Response(
        None,
        headers=_VERSION
        | {
            "Tus-Version": "1.0.0",
            "Tus-Extension": "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination",
            "Tus-Max-Size": str(_most(state)),
            "Tus-Checksum-Algorithm": ",".join(_ALGORITHMS),
        },
    )


@post(
    _PATH,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Start a resumable upload",
    request_max_body_size=None,
    operation_class=body_of("The first bytes of the file, or nothing", **{_TYPE: Schema()}),
    responses=_ANSWERS | {201: ResponseSpec(None, description="Location has its address", generate_examples=False)},
)
async def create(
    project: _Project, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> Response[None]:
    """tus 1.0: `Upload-Length` or `Upload-Defer-Length: 1`, and `Upload-Metadata` with the file's `filename`.
    `Location` has the upload's address. Storage is reserved for the whole length.
    """
    _require_version(request)
    project_id = object_id(project, "project")
    length = _number(request, "upload-length")
    if length is None and request.headers.get("upload-defer-length") != "1":
        raise HTTPException(status_code=400, detail="Give Upload-Length, or Upload-Defer-Length: 1", headers=_VERSION)
    try:
        file = await resumable.create(
            state.database,
            caller.actor,
            project_id,
            name=_name_in(request.headers.get("upload-metadata", "")),
            length=length,
            most=_most(state),
        )
    except assets_uploads.TooLarge as error:
        raise HTTPException(status_code=413, detail=error.message, headers=_VERSION) from None
    headers = {"Location": f"/v1/projects/{project_id}/uploads/{file.id}", "Upload-Offset": "0"}
    if request.content_type[0] == _TYPE or length == 0:
        headers |= await _append(request, state, caller, file.project_id, file.id, 0)
    return Response(None, status_code=201, headers=_VERSION | _expires(file.until) | headers)


@get(
    _ONE,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="The offset of a resumable upload",
    responses=_ANSWERS,
)
async def show(
    project: _Project, upload: _UploadId, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> Response[UploadState]:
    """`HEAD` is tus's own way to ask; `GET` also names the asset once the upload is finished."""
    _require_version(request, optional=True)
    file = await resumable.find(state.database, caller.actor, *_ids(project, upload))
    headers = {"Upload-Offset": str(file.size_bytes), "Cache-Control": "no-store"}
    headers |= {"Upload-Defer-Length": "1"} if file.length is None else {"Upload-Length": str(file.length)}
    if file.asset_id is None:
        headers |= _expires(file.until)
    asset = None if file.asset_id is None else str(file.asset_id)
    shown = UploadState(id=str(file.id), offset=file.size_bytes, length=file.length, asset=asset)
    return Response(shown, headers=_VERSION | headers)


@patch(
    _ONE,
    **signed_in(scope="projects:write", saves=True),
    tags=["projects"],
    summary="Continue a resumable upload",
    status_code=204,
    request_max_body_size=None,
    operation_class=body_of("The next bytes of the file", **{_TYPE: Schema()}),
    responses=_ANSWERS | {204: ResponseSpec(None, description="Upload-Offset has the offset", generate_examples=False)},
)
async def append(
    project: _Project, upload: _UploadId, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> Response[None]:
    """tus 1.0: bytes from `Upload-Offset` on. The last one makes the asset, which `Asset-Location` has. Bytes
    that arrived before an interruption are kept, unless `Upload-Checksum` is given.
    """
    _require_version(request)
    if request.content_type[0] != _TYPE:
        raise HTTPException(status_code=415, detail=f"Send the bytes as {_TYPE}", headers=_VERSION)
    offset = _number(request, "upload-offset")
    if offset is None:
        raise HTTPException(status_code=400, detail="Give Upload-Offset", headers=_VERSION)
    headers = await _append(request, state, caller, *_ids(project, upload), offset)
    return Response(None, status_code=204, headers=_VERSION | headers)


@delete(
    _ONE, **signed_in(scope="projects:write"), tags=["projects"], summary="End a resumable upload", responses=_ANSWERS
)
async def terminate(
    project: _Project, upload: _UploadId, caller: NamedDependency[Caller], request: Request[Any, Any, Any], state: State
) -> Response[None]:
    """tus 1.0: remove the bytes stored so far, and release their storage.
    A finished upload is an asset: delete that."""
    _require_version(request)
    await resumable.terminate(state.database, caller.actor, *_ids(project, upload))
    return Response(None, status_code=204, headers=_VERSION)


async def _append(
    request: Request[Any, Any, Any], state: State, caller: Caller, project_id: Any, upload_id: Any, offset: int
) -> dict[str, str]:
    """Receive bytes; returns the answer's headers."""
    checksum = _checksum(request)
    length = None if request.method == "POST" else _number(request, "upload-length")
    most = _most(state)
    if length is not None and length > most:
        raise HTTPException(status_code=413, detail=f"A file may have {most:,} bytes at most", headers=_VERSION)
    writing = await resumable.claim(
        state.database,
        caller.actor,
        project_id,
        upload_id,
        offset=offset,
        length=length,
        most=most,
        whole=checksum is not None,
    )
    try:
        async with aclosing(paced(request)) as pieces:
            async for piece in pieces:
                await writing.write(piece)
                if checksum is not None:
                    checksum[0].update(piece)
        if checksum is not None:
            if checksum[0].digest() != checksum[1]:
                raise HTTPException(status_code=_MISMATCH, detail="The checksum is another one", headers=_VERSION)
            writing.verified()
        if not writing.complete:
            at = await writing.pause()
            return {"Upload-Offset": str(at)} | _expires(state.database.clock.now() + resumable.EXPIRES)
        asset = await writing.finish()
    except assets_uploads.TooLarge as error:
        await writing.pause()
        raise HTTPException(status_code=413, detail=error.message, headers=_VERSION) from None
    except (assets_uploads.UploadEnded, NotFound):
        raise
    except Exception:
        await writing.pause()
        raise
    return {
        "Upload-Offset": str(asset.size_bytes),
        "Asset-Location": f"/v1/projects/{project_id}/assets/{asset.id}",
    }


def _require_version(request: Request[Any, Any, Any], *, optional: bool = False) -> None:
    given = request.headers.get("tus-resumable")
    if given != "1.0.0" and not (optional and given is None):
        raise HTTPException(
            status_code=412,
            detail="Send Tus-Resumable: 1.0.0",
            headers={**_VERSION, "Tus-Version": "1.0.0"},
        )


def _number(request: Request[Any, Any, Any], name: str) -> int | None:
    given = request.headers.get(name)
    if given is None:
        return None
    if not _NUMBER.fullmatch(given):
        raise HTTPException(status_code=400, detail=f"{name.title()} is not a number of bytes", headers=_VERSION)
    return int(given)


def _checksum(request: Request[Any, Any, Any]) -> Any:
    """A hash to be fed, and the digest that it must have."""
    given = request.headers.get("upload-checksum")
    if given is None:
        return None
    algorithm, _, encoded = given.strip().partition(" ")
    if algorithm not in _ALGORITHMS:
        detail = f"Upload-Checksum may be {', '.join(_ALGORITHMS)}"
        raise HTTPException(status_code=400, detail=detail, headers=_VERSION)
    try:
        return hashlib.new(algorithm, usedforsecurity=False), base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise HTTPException(status_code=400, detail="Upload-Checksum is not Base64", headers=_VERSION) from None


def _name_in(metadata: str) -> str:
    """The file's name in `Upload-Metadata`. Pairs that cannot be read are skipped."""
    found = {}
    for pair in metadata.split(","):
        key, _, encoded = pair.strip().partition(" ")
        try:
            found[key.lower()] = base64.b64decode(encoded.strip()).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            continue
    return found.get("filename") or found.get("name") or "file"


def _expires(moment: datetime | None) -> dict[str, str]:
    return {} if moment is None else {"Upload-Expires": format_datetime(moment, usegmt=True)}


def _most(state: State) -> int:
    most: int = state.authentication.settings.asset_max_mb * 1_000_000
    return most


def _ids(project: str, upload: str) -> tuple[Any, Any]:
    return object_id(project, "project"), object_id(upload, "upload")


routes = (capabilities, create, show, append, terminate)
