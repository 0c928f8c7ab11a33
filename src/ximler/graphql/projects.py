"""Resolvers of projects."""

from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from ximler.core.errors import Invalid, NotFound, XimlerError
from ximler.core.ids import decode_cursor, object_id
from ximler.core.streams import Event
from ximler.database.topics import Topic
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, Selected, page_size
from ximler.graphql.engine.connections import Edge
from ximler.projects import duplicates, nearest, places, projects, trash, versions
from ximler.projects.nearest import NearProject
from ximler.projects.projects import ProjectSummary
from ximler.projects.versions import CanvasVersion
from ximler.schema.project import Project
from ximler.schema.user import User

resolvers = Resolvers()

Projects = Connection[ProjectSummary]
NearProjects = Connection[NearProject]


@resolvers.query("projects")
async def list_projects(
    ctx: Context,
    search: str | None = None,
    tags: list[str] | None = None,
    starred: bool | None = None,
    first: int | None = None,
    after: str | None = None,
    near: dict[str, Any] | None = None,
    within: dict[str, Any] | None = None,
    sort: str | None = None,
    *,
    selected: Selected,
) -> Projects | NearProjects:
    wanted: dict[str, Any] = {"query": search, "tagged": tags, "starred": starred, "within": within}
    if near is not None:
        if sort is not None:
            raise Invalid.field("sort", "does not go with near, whose order is the distance")
        found = await nearest.nearest(ctx.database, ctx.actor, near, first=page_size(first), after=after, **wanted)
        return NearProjects(found)
    page = await projects.page(
        ctx.database,
        ctx.actor,
        **wanted,
        sort=sort,
        first=page_size(first),
        after=projects.order_of(sort).decoded(after),
        attributes=selected.attributes("nodes", "edges.node"),
    )
    return Connection(page)


@resolvers.query("project")
async def project(ctx: Context, id: str) -> ProjectSummary:  # noqa: A002 (the argument's name in GraphQL)
    return await projects.get(ctx.database, ctx.actor, object_id(id))


@resolvers.query("trash")
async def list_trash(ctx: Context, first: int | None = None, after: str | None = None) -> Projects:
    position = None if after is None else decode_cursor(after)
    return Connection(await projects.deleted_page(ctx.database, ctx.actor, first=page_size(first), after=position))


async def _the_project(ctx: Context, id: str) -> tuple[Topic, Any]:  # noqa: A002 (as above)
    return projects.CHANGED, (await projects.get(ctx.database, ctx.actor, object_id(id))).id


@resolvers.subscription("projectChanged", follow=_the_project)
async def project_changed(ctx: Context, _event: Event, id: str) -> ProjectSummary | None:  # noqa: A002 (as above)
    with suppress(NotFound):
        return await projects.get(ctx.database, ctx.actor, object_id(id))
    return None


@resolvers.mutation("createProject")
async def create_project(ctx: Context, input: dict[str, Any]) -> Project:  # noqa: A002 (GraphQL's customary name)
    return _whole(await projects.create(ctx.database, ctx.actor, **input))


@resolvers.mutation("updateProject")
async def update_project(ctx: Context, id: str, input: dict[str, Any]) -> ProjectSummary:  # noqa: A002 (as above)
    return await projects.update(ctx.database, ctx.actor, object_id(id), input)


@resolvers.mutation("duplicateProject")
async def duplicate_project(ctx: Context, id: str, name: str | None = None) -> Project:  # noqa: A002 (as above)
    return _whole(await duplicates.make(ctx.database, ctx.actor, object_id(id), name=name))


@resolvers.mutation("deleteProject")
async def delete_project(ctx: Context, id: str) -> ProjectSummary:  # noqa: A002 (as above)
    return await projects.delete(ctx.database, ctx.actor, object_id(id))


@resolvers.mutation("restoreProject")
async def restore_project(ctx: Context, id: str) -> ProjectSummary:  # noqa: A002 (as above)
    return await projects.restore(ctx.database, ctx.actor, object_id(id))


@resolvers.mutation("purgeProject")
async def purge_project(ctx: Context, id: str) -> bool:  # noqa: A002 (as above)
    await trash.purge(ctx.database, ctx.actor, object_id(id))
    return True


@resolvers.mutation("emptyTrash")
async def empty_trash(ctx: Context) -> int:
    return await trash.empty(ctx.database, ctx.actor)


@resolvers.query("projectVersions")
async def list_versions(
    ctx: Context, project_id: str, first: int | None = None, after: str | None = None
) -> Connection[CanvasVersion]:
    position = None if after is None else decode_cursor(after)
    mine = object_id(project_id, "projectId")
    return Connection(await versions.page(ctx.database, ctx.actor, mine, first=page_size(first), after=position))


@resolvers.query("projectVersion")
async def version(ctx: Context, project_id: str, id: str) -> CanvasVersion:  # noqa: A002 (as above)
    return await versions.get(ctx.database, ctx.actor, *_version_ids(project_id, id))


@resolvers.mutation("createProjectVersion")
async def create_version(ctx: Context, project_id: str, name: str | None = None, pinned: bool = True) -> CanvasVersion:
    mine = object_id(project_id, "projectId")
    return await versions.create(ctx.database, ctx.actor, mine, name=name, pinned=pinned)


@resolvers.mutation("updateProjectVersion")
async def update_version(ctx: Context, project_id: str, id: str, input: dict[str, Any]) -> CanvasVersion:  # noqa: A002 (as above)
    return await versions.update(ctx.database, ctx.actor, *_version_ids(project_id, id), input)


@resolvers.mutation("deleteProjectVersion")
async def delete_version(ctx: Context, project_id: str, id: str) -> bool:  # noqa: A002 (as above)
    await versions.delete(ctx.database, ctx.actor, *_version_ids(project_id, id))
    return True


@resolvers.mutation("restoreProjectVersion")
async def restore_version(ctx: Context, project_id: str, id: str, base: int | None = None) -> ProjectSummary:  # noqa: A002 (as above)
    ids = _version_ids(project_id, id)
    await versions.restore(ctx.database, ctx.actor, *ids, based_on=None if base is None else (base,))
    return await projects.get(ctx.database, ctx.actor, ids[0])


@resolvers.field("ProjectVersion", "canvasData", needs=("id", "project_id", "size_bytes"))
async def version_data_of(ctx: Context, parents: list[CanvasVersion]) -> list[Any]:
    for each in parents:
        ctx.take_canvas(each.size_bytes)
    return [await _or_error(versions.content(ctx.database, ctx.actor, each.project_id, each.id)) for each in parents]


@resolvers.field("ProjectVersion", "changes", needs=("id", "project_id"))
async def version_changes_of(ctx: Context, parents: list[CanvasVersion], to: str | None = None) -> list[Any]:
    other = None if to is None else object_id(to, "to")
    return [
        await _or_error(versions.changes(ctx.database, ctx.actor, each.project_id, each.id, to=other))
        for each in parents
    ]


@resolvers.field("User", "projects")
async def projects_of(
    ctx: Context,
    users: list[User],
    search: str | None = None,
    tags: list[str] | None = None,
    starred: bool | None = None,
    first: int | None = None,
    after: str | None = None,
    sort: str | None = None,
    *,
    selected: Selected,
) -> list[Projects | NearProjects | NotFound]:
    """Users see only their own projects, so one list is loaded for any number of users."""
    mine = await list_projects(ctx, search, tags, starred, first, after, sort=sort, selected=selected)
    return [mine if user.id == ctx.actor.user_id else NotFound("No such projects") for user in users]


@resolvers.field("Project", "settings", needs=("id",))
async def settings_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[Any]:
    """Large fields are read only when a query asks for them."""
    found = await projects.settings_of(ctx.database, ctx.actor, _unread(parents))
    return [p.settings if isinstance(p, Project) else found.get(p.id, {}) for p in parents]


@resolvers.field("Project", "canvasData", needs=("id",))
async def canvas_data_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[Any]:
    found = await projects.canvases(ctx.database, ctx.actor, _unread(parents), take=ctx.take_canvas)
    return [p.canvas_data if isinstance(p, Project) else found.get(p.id, {}) for p in parents]


@resolvers.field("Project", "location", needs=("location",))
async def location_of(_: Context, parents: list[ProjectSummary | Project]) -> list[Any]:
    return [places.place_of(each.location) for each in parents]


@resolvers.field("ProjectEdge", "distanceKm")
async def distance_of(_: Context, parents: list[Edge[ProjectSummary]]) -> list[float | None]:
    return [each.node.distance_km if isinstance(each.node, NearProject) else None for each in parents]


def _whole(made: Project) -> Project:
    """With the values of absent fields."""
    made.tags, made.starred = made.tags or [], bool(made.starred)
    return made


def _unread(parents: list[ProjectSummary | Project]) -> list[Any]:
    return [parent.id for parent in parents if not isinstance(parent, Project)]


def _version_ids(project_id: str, version_id: str) -> tuple[Any, Any]:
    return object_id(project_id, "projectId"), object_id(version_id)


async def _or_error(reading: Awaitable[Any]) -> Any:
    """One version that cannot be read leaves the others as they are."""
    try:
        return await reading
    except XimlerError as error:
        return error
