"""Resolvers of shared projects and public links."""

from datetime import datetime
from typing import Any

import msgspec

from ximler.core.ids import decode_cursor, object_id
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.projects import links, projects, sharing
from ximler.projects.links import ProjectLink
from ximler.projects.projects import ProjectSummary
from ximler.projects.sharing import ProjectShare, Role, Shared
from ximler.schema.project import Project

resolvers = Resolvers()


class Created(msgspec.Struct, frozen=True):
    token: str
    link: ProjectLink


@resolvers.query("sharedProjects")
async def shared_projects(
    ctx: Context,
    search: str | None = None,
    sort: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> Connection[ProjectSummary]:
    position = projects.order_of(sort).decoded(after)
    found = await sharing.page(ctx.database, ctx.actor, query=search, sort=sort, first=page_size(first), after=position)
    return Connection(found)


@resolvers.query("projectShares")
async def shares(ctx: Context, project_id: str) -> list[ProjectShare]:
    return await sharing.people(ctx.database, ctx.actor, object_id(project_id, "projectId"))


@resolvers.mutation("shareProject")
async def share(ctx: Context, project_id: str, email: str, role: Role) -> ProjectShare:
    mine = object_id(project_id, "projectId")
    return await sharing.share(ctx.database, ctx.keyring, ctx.actor, mine, email=email, role=role)


@resolvers.mutation("unshareProject")
async def unshare(ctx: Context, project_id: str, email: str) -> bool:
    await sharing.revoke(ctx.database, ctx.actor, object_id(project_id, "projectId"), email)
    return True


@resolvers.mutation("leaveProject")
async def leave(ctx: Context, project_id: str) -> bool:
    await sharing.leave(ctx.database, ctx.actor, object_id(project_id, "projectId"))
    return True


@resolvers.query("projectLinks")
async def list_links(
    ctx: Context, project_id: str, first: int | None = None, after: str | None = None
) -> Connection[ProjectLink]:
    position = None if after is None else decode_cursor(after)
    mine = object_id(project_id, "projectId")
    return Connection(await links.page(ctx.database, ctx.actor, mine, first=page_size(first), after=position))


@resolvers.mutation("createProjectLink")
async def create_link(ctx: Context, project_id: str, expires_at: datetime | None = None) -> Created:
    mine = object_id(project_id, "projectId")
    link, token = await links.create(ctx.database, ctx.actor, mine, expires_at=expires_at)
    return Created(token, link)


@resolvers.mutation("revokeProjectLink")
async def revoke_link(ctx: Context, project_id: str, id: str) -> bool:  # noqa: A002 (the argument's name in GraphQL)
    await links.revoke(ctx.database, ctx.actor, object_id(project_id, "projectId"), object_id(id))
    return True


@resolvers.field("Project", "role", needs=("id", "user_id"))
async def role_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[str]:
    found = await _shared(ctx, parents)
    return [
        "OWNER" if each.user_id == ctx.actor.user_id else found[each.id].role if each.id in found else "READER"
        for each in parents
    ]


@resolvers.field("Project", "sharedBy", needs=("id", "user_id"))
async def shared_by(ctx: Context, parents: list[ProjectSummary | Project]) -> list[str | None]:
    found = await _shared(ctx, parents)
    return [found[each.id].owner if each.id in found else None for each in parents]


async def _shared(ctx: Context, parents: list[Any]) -> dict[Any, Shared]:
    others = [each.id for each in parents if each.user_id != ctx.actor.user_id]
    return await sharing.shared_with(ctx.database, ctx.actor, others)
