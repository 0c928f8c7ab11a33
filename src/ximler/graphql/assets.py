"""Resolvers of assets."""

from datetime import datetime

import msgspec

from ximler.core.ids import decode_cursor, object_id
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.projects import assets, assets_links, assets_previews, assets_usage
from ximler.projects.assets import Asset
from ximler.projects.projects import ProjectSummary
from ximler.schema.project import Project

resolvers = Resolvers()


@resolvers.query("projectAssets")
async def list_assets(
    ctx: Context,
    project_id: str,
    first: int | None = None,
    after: str | None = None,
    unused: bool = False,
) -> Connection[Asset]:
    position = None if after is None else decode_cursor(after)
    mine = object_id(project_id, "projectId")
    listed = assets_usage.unused if unused else assets.page
    return Connection(await listed(ctx.database, ctx.actor, mine, first=page_size(first), after=position))


@resolvers.mutation("deleteAsset")
async def delete_asset(ctx: Context, project_id: str, id: str) -> bool:  # noqa: A002 (the argument's name in GraphQL)
    await assets.delete(ctx.database, ctx.actor, object_id(project_id, "projectId"), object_id(id))
    return True


class ProjectImport(msgspec.Struct, frozen=True):
    project_id: str
    url: str
    expires_at: datetime


@resolvers.mutation("createProjectImport")
async def create_project_import(ctx: Context, name: str | None = None) -> ProjectImport:
    project_id, link = assets_links.import_link(ctx.keyring, ctx.actor, ctx.database.clock.now(), name=name)
    return ProjectImport(str(project_id), link.url, link.expires_at)


@resolvers.field("Asset", "sha256", needs=("digest",))
async def sha256_of(ctx: Context, parents: list[Asset]) -> list[str]:  # noqa: ARG001 (of every resolver)
    return [asset.digest.hex() for asset in parents]


@resolvers.field("Asset", "url", needs=("id", "project_id"))
async def url_of(ctx: Context, parents: list[Asset]) -> list[str]:
    return [link.url for link in _links(ctx, parents)]


@resolvers.field("Asset", "urlExpiresAt", needs=("id", "project_id"))
async def url_expires_at_of(ctx: Context, parents: list[Asset]) -> list[datetime]:
    return [link.expires_at for link in _links(ctx, parents)]


@resolvers.field("Asset", "previewUrl", needs=("id", "project_id", "content_type", "size_bytes"))
async def preview_url_of(ctx: Context, parents: list[Asset], side: int) -> list[str | None]:
    links = _links(ctx, parents, assets_previews.require_side(side))
    return [link.url if assets_previews.show(asset) else None for asset, link in zip(parents, links, strict=True)]


@resolvers.field("Project", "thumbnailUrl", needs=("id",))
async def thumbnail_url_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[str]:
    now = ctx.database.clock.now()
    return [assets_links.thumbnail_link(ctx.keyring, ctx.actor, each.id, now).url for each in parents]


@resolvers.field("Project", "exportUrl", needs=("id",))
async def export_url_of(ctx: Context, parents: list[ProjectSummary | Project]) -> list[str]:
    now = ctx.database.clock.now()
    return [assets_links.export_link(ctx.keyring, ctx.actor, each.id, now).url for each in parents]


def _links(ctx: Context, parents: list[Asset], preview: int = 0) -> list[assets_links.Link]:
    now = ctx.database.clock.now()
    return [assets_links.link(ctx.keyring, ctx.actor, asset, now, preview=preview) for asset in parents]
