"""Resolvers of projects."""

from typing import Any

from ximler.core.errors import NotFound
from ximler.core.ids import decode_cursor, object_id
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, Selected, page_size
from ximler.projects import projects, trash
from ximler.projects.projects import ProjectSummary
from ximler.schema.project import Project
from ximler.schema.user import User

resolvers = Resolvers()

Projects = Connection[ProjectSummary]


@resolvers.query("projects")
async def list_projects(
    ctx: Context,
    search: str | None = None,
    first: int | None = None,
    after: str | None = None,
    *,
    selected: Selected,
) -> Projects:
    page = await projects.page(
        ctx.database,
        ctx.actor,
        query=search,
        first=page_size(first),
        after=None if after is None else decode_cursor(after),
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


@resolvers.mutation("createProject")
async def create_project(ctx: Context, input: dict[str, Any]) -> Project:  # noqa: A002 (GraphQL's customary name)
    return await projects.create(ctx.database, ctx.actor, **input)


@resolvers.mutation("updateProject")
async def update_project(ctx: Context, id: str, input: dict[str, Any]) -> ProjectSummary:  # noqa: A002 (as above)
    return await projects.update(ctx.database, ctx.actor, object_id(id), input)


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


@resolvers.field("User", "projects")
async def projects_of(
    ctx: Context,
    users: list[User],
    search: str | None = None,
    first: int | None = None,
    after: str | None = None,
    *,
    selected: Selected,
) -> list[Projects | NotFound]:
    """Users see only their own projects, so one list is loaded for any number of users."""
    mine = await list_projects(ctx, search, first, after, selected=selected)
    return [mine if user.id == ctx.actor.user_id else NotFound("No such projects") for user in users]


@resolvers.field("Project", "settings", needs=("id",))
async def settings_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[Any]:
    """Large fields are read only when a query asks for them."""
    found = await projects.settings_of(ctx.database, ctx.actor, _unread(parents))
    return [p.settings if isinstance(p, Project) else found.get(p.id, {}) for p in parents]


@resolvers.field("Project", "canvasData", needs=("id",))
async def canvas_data_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[Any]:
    found = await projects.canvases(ctx.database, ctx.actor, _unread(parents))
    return [p.canvas_data if isinstance(p, Project) else found.get(p.id, {}) for p in parents]


def _unread(parents: list[ProjectSummary | Project]) -> list[Any]:
    return [parent.id for parent in parents if not isinstance(parent, Project)]
