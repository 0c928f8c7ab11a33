"""Resolvers of assets."""

from ximler.core.ids import decode_cursor, object_id
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.projects import assets
from ximler.projects.assets import Asset

resolvers = Resolvers()


@resolvers.query("projectAssets")
async def list_assets(
    ctx: Context, project_id: str, first: int | None = None, after: str | None = None
) -> Connection[Asset]:
    position = None if after is None else decode_cursor(after)
    mine = object_id(project_id, "projectId")
    return Connection(await assets.page(ctx.database, ctx.actor, mine, first=page_size(first), after=position))


@resolvers.mutation("deleteAsset")
async def delete_asset(ctx: Context, project_id: str, id: str) -> bool:  # noqa: A002 (the argument's name in GraphQL)
    await assets.delete(ctx.database, ctx.actor, object_id(project_id, "projectId"), object_id(id))
    return True


@resolvers.field("Asset", "sha256", needs=("digest",))
async def sha256_of(ctx: Context, parents: list[Asset]) -> list[str]:  # noqa: ARG001 (of every resolver)
    return [asset.digest.hex() for asset in parents]
