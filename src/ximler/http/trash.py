"""Deleted projects over REST: moved to the trash, listed, restored, and deleted for good."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from litestar import delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import PathParameter, QueryParameter

from ximler.core.ids import decode_cursor, object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.problems import documented
from ximler.projects import projects, trash

__all__ = ["routes"]

_PATH = "/v1/trash"
_ONE = f"{_PATH}/{{project:str}}"
_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_UNKNOWN = "The project does not exist, is not deleted, or belongs to another user"


class Deleted(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A deleted project. Its `storageSize`, in bytes, counts as storage."""

    id: str
    name: str
    storage_size: int
    deleted_at: datetime | None


class Trash(msgspec.Struct, frozen=True):
    """Last deleted first. `next` continues the list, as `after`; null at its end."""

    projects: Sequence[Deleted]
    next: str | None


class Emptied(msgspec.Struct, frozen=True):
    """How many projects were deleted for good."""

    purged: int


class Restored(msgspec.Struct, frozen=True):
    id: str
    name: str


@delete(
    "/v1/projects/{project:str}",
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Move a project to the trash",
    responses=documented(
        _400="The request cannot be read",
        _401="The session or key is missing, expired or revoked",
        _403="Requires the scope projects:write; or sent by another site",
        _404="The project does not exist, is deleted or belongs to another user",
        _422="The id is malformed",
        _429="Too many changes",
        _503="The database is unavailable",
    ),
)
async def discard(project: _Project, caller: NamedDependency[Caller], state: State) -> None:
    """It no longer counts as a project. Its storage is released when it is purged, after 30 days."""
    await projects.delete(state.database, caller.actor, object_id(project, "project"))


@get(
    _PATH,
    **signed_in(scope="projects:read"),
    tags=["projects"],
    summary="Deleted projects",
    responses=documented(
        _400="The request cannot be read",
        _401="The session or key is missing, expired or revoked",
        _403="Requires the scope projects:read",
        _422="A cursor or size is malformed",
        _503="The database is unavailable",
    ),
)
async def show_list(
    caller: NamedDependency[Caller],
    state: State,
    first: Annotated[int, QueryParameter(ge=1, le=100, description="How many, at most")] = 20,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before")] = None,
) -> Trash:
    """Last deleted first."""
    position = None if after is None else decode_cursor(after)
    page = await projects.deleted_page(state.database, caller.actor, first=first, after=position)
    found = [
        Deleted(id=str(each.id), name=each.name, storage_size=each.storage_size, deleted_at=each.deleted_at)
        for each in page.items
    ]
    return Trash(found, page.end_cursor if page.has_next else None)


_CHANGES = documented(
    _400="The request cannot be read",
    _401="The session or key is missing, expired or revoked",
    _403="Requires the scope projects:write; or sent by another site",
    _404=_UNKNOWN,
    _422="The id is malformed",
    _429="The plan's projects are used up, or too many changes",
    _503="The database is unavailable",
)


@post(
    f"{_ONE}/restore",
    **signed_in(scope="projects:write"),
    status_code=200,
    tags=["projects"],
    summary="Restore a deleted project",
    responses=_CHANGES,
)
async def restore(project: _Project, caller: NamedDependency[Caller], state: State) -> Restored:
    """Within 30 days of its deletion, if the plan has a place. Its settings are restored as they were."""
    back = await projects.restore(state.database, caller.actor, object_id(project, "project"))
    return Restored(str(back.id), back.name)


@delete(
    _ONE,
    **signed_in(scope="projects:write"),
    tags=["projects"],
    summary="Delete a project in the trash for good",
    responses=_CHANGES,
)
async def purge(project: _Project, caller: NamedDependency[Caller], state: State) -> None:
    """With its canvas, versions and assets. Its storage is released."""
    await trash.purge(state.database, caller.actor, object_id(project, "project"))


@delete(
    _PATH,
    **signed_in(scope="projects:write"),
    status_code=200,
    tags=["projects"],
    summary="Empty the trash",
    responses={status: answer for status, answer in _CHANGES.items() if status not in (404, 422)},
)
async def empty(caller: NamedDependency[Caller], state: State) -> Emptied:
    """Delete all projects in the trash for good. Safe to repeat."""
    return Emptied(await trash.empty(state.database, caller.actor))


routes = (discard, show_list, restore, purge, empty)
