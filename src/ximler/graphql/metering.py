"""Resolvers of metering."""

from ximler.graphql.context import Context
from ximler.graphql.engine import Resolvers
from ximler.metering.overview import ResourceUsage, overview
from ximler.schema.user import User

resolvers = Resolvers()


@resolvers.query("usage")
async def usage(ctx: Context) -> list[ResourceUsage]:
    user_id = ctx.actor.require_user()
    return (await overview(ctx.database, ctx.actor, [user_id]))[user_id]


@resolvers.field("User", "usage")
async def usage_of(ctx: Context, users: list[User]) -> list[list[ResourceUsage]]:
    found = await overview(ctx.database, ctx.actor, [user.id for user in users])
    return [found[user.id] for user in users]
