"""Versions of a project's canvas over REST."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, PathParameter, QueryParameter

from ximler.core.extended_json import plain
from ximler.core.ids import decode_cursor, object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.canvas import Saved
from ximler.http.conditional import matches
from ximler.http.idempotency import IDEMPOTENT, KEY_ERRORS
from ximler.http.problems import JSON_ONLY, documented, documented_in_project
from ximler.projects import versions
from ximler.projects.versions import CanvasVersion

__all__ = ["routes"]

_PATH = "/v1/projects/{project:str}/versions"
_ONE = f"{_PATH}/{{version:str}}"

_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_Version = Annotated[str, PathParameter(max_length=100, description="The version's id")]
_READS = documented_in_project(
    "version", _403="Requires the scope projects:read", _422="An id, cursor or size is malformed"
)
_CHANGES = documented_in_project(
    "version",
    _403="Requires the scope projects:write; or sent by another site",
    _422="An id or field is invalid",
    _429="The plan's storage is used up, the project has 1,000 versions, or too many changes",
)


class Version(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A version without its canvas. `sizeBytes` is the size of the canvas. `storedBytes` counts as storage,
    once for all versions of equal content; most versions are differences from an earlier one. `assets` are
    the project's assets that the canvas names by their ids; null where they are not known. Versions with a
    name or pin stay until they are deleted.
    """

    id: str
    revision: int
    name: str | None
    pinned: bool
    automatic: bool
    size_bytes: int
    stored_bytes: int
    assets: Sequence[str] | None
    created_at: datetime


class Versions(msgspec.Struct, frozen=True):
    """Newest first. `next` continues the list, as `after`; null at its end."""

    versions: Sequence[Version]
    next: str | None


class NewVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str | None = None
    pinned: bool = True


class VersionChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Omitted fields stay as they are; a name of null is removed."""

    name: str | msgspec.UnsetType | None = msgspec.UNSET
    # Not typed as a union, of which the document would show an alternative of one.
    pinned: bool = msgspec.UNSET  # type: ignore[assignment]  # see above


@get(
    _PATH,
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="Versions of a project's canvas",
    responses=_READS,
)
async def show_list(
    project: _Project,
    caller: NamedDependency[Caller],
    state: State,
    first: Annotated[int, QueryParameter(ge=1, le=100, description="How many, at most")] = 20,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before")] = None,
) -> Versions:
    """Newest first, without the canvases."""
    position = None if after is None else decode_cursor(after)
    page = await versions.page(state.database, caller.actor, object_id(project, "project"), first=first, after=position)
    return Versions([_shown(item) for item in page.items], page.end_cursor if page.has_next else None)


@post(
    _PATH,
    **signed_in(scope="projects:write"),
    **IDEMPOTENT,
    tags=["projects"],
    summary="Keep the canvas as a version",
    responses=_CHANGES | JSON_ONLY | KEY_ERRORS,
)
async def create(
    project: _Project, data: JSONBody[NewVersion], caller: NamedDependency[Caller], state: State
) -> Version:
    """Keep the canvas as it is now. Equal content is stored once."""
    project_id = object_id(project, "project")
    made = await versions.create(state.database, caller.actor, project_id, name=data.name, pinned=data.pinned)
    return _shown(made)


@get(_ONE, **signed_in(scope="projects:read"), tags=["projects"], summary="A version of a canvas", responses=_READS)
async def show(project: _Project, version: _Version, caller: NamedDependency[Caller], state: State) -> Version:
    return _shown(await versions.get(state.database, caller.actor, *_ids(project, version)))


@patch(
    _ONE,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Name or pin a version",
    responses=_CHANGES | JSON_ONLY,
)
async def change(
    project: _Project, version: _Version, data: JSONBody[VersionChanges], caller: NamedDependency[Caller], state: State
) -> Version:
    given = {name: value for name in ("name", "pinned") if (value := getattr(data, name)) is not msgspec.UNSET}
    return _shown(await versions.update(state.database, caller.actor, *_ids(project, version), given))


@delete(_ONE, **signed_in(scope="projects:write"), tags=["projects"], summary="Delete a version", responses=_CHANGES)
async def remove(project: _Project, version: _Version, caller: NamedDependency[Caller], state: State) -> None:
    """Its storage is released, unless another version has the same content."""
    await versions.delete(state.database, caller.actor, *_ids(project, version))


@get(
    f"{_ONE}/canvas",
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="The canvas of a version",
    responses={
        200: ResponseSpec(dict[str, Any], description="The canvas", generate_examples=False),
        304: ResponseSpec(None, description="Not modified"),
    }
    | _READS,
)
async def preview(
    project: _Project,
    version: _Version,
    caller: NamedDependency[Caller],
    request: Request[Any, Any, Any],
    state: State,
) -> Response[bytes]:
    """The canvas as it was. It never changes."""
    project_id, version_id = _ids(project, version)
    headers = {"ETag": f'"{version_id}"', "Cache-Control": "private, no-cache"}
    if matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        await versions.get(state.database, caller.actor, project_id, version_id)
        return Response(b"", status_code=304, headers=headers)
    data = await versions.content(state.database, caller.actor, project_id, version_id)
    return Response(msgspec.json.encode(data, enc_hook=plain), media_type="application/json", headers=headers)


@get(
    f"{_ONE}/changes",
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="What changed since a version",
    responses={200: ResponseSpec(list[dict[str, Any]], description="A JSON Patch", generate_examples=False)}
    | _READS
    | documented(_409="The canvases differ in more than 10,000 places"),
)
async def changes(
    project: _Project,
    version: _Version,
    caller: NamedDependency[Caller],
    state: State,
    to: Annotated[str | None, QueryParameter(description="Another version's id; omitted: the canvas as it is")] = None,
) -> Response[bytes]:
    """A JSON Patch (RFC 6902) that turns the version into another one, or into the canvas as it is."""
    other = None if to is None else object_id(to, "to")
    found = await versions.changes(state.database, caller.actor, *_ids(project, version), to=other)
    return Response(msgspec.json.encode(found, enc_hook=plain), media_type="application/json-patch+json")


@post(
    f"{_ONE}/restore",
    **signed_in(scope="projects:write"),
    **IDEMPOTENT,
    status_code=200,
    tags=["projects"],
    summary="Restore a version",
    responses=_CHANGES
    | KEY_ERRORS
    | documented(_409="The canvas is at another revision than `base`, or the Idempotency-Key is in use"),
)
async def restore(
    project: _Project,
    version: _Version,
    caller: NamedDependency[Caller],
    state: State,
    base: Annotated[int | None, QueryParameter(ge=0, description="Restore only over this revision")] = None,
) -> Saved:
    """The version's canvas becomes the current one, as a new revision.
    The canvas as it is becomes a version first."""
    based_on = None if base is None else (base,)
    return Saved(await versions.restore(state.database, caller.actor, *_ids(project, version), based_on=based_on))


def _ids(project: str, version: str) -> tuple[Any, Any]:
    return object_id(project, "project"), object_id(version, "version")


def _shown(version: CanvasVersion) -> Version:
    names = (field.name for field in msgspec.structs.fields(Version) if field.name not in ("id", "assets"))
    fields = {name: getattr(version, name) for name in names}
    assets = None if version.assets is None else [str(each) for each in version.assets]
    return Version(id=str(version.id), assets=assets, **fields)


routes = (show_list, create, show, change, remove, preview, changes, restore)
