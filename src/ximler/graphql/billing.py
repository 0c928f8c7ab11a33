"""Resolvers of billing."""

from ximler.billing import virtuals
from ximler.graphql.context import Context
from ximler.graphql.engine import Resolvers
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

resolvers = Resolvers()


@resolvers.query("plans")
async def plans(ctx: Context) -> list[Plan]:
    return await ctx.plans.on_offer()


@resolvers.field("User", "subscription")
async def subscriptions(ctx: Context, users: list[User]) -> list[Subscription | None]:
    found = await virtuals.subscription_by_user(ctx.database, (user.id for user in users))
    return [found[user.id] for user in users]


@resolvers.field("Subscription", "plan")
async def plan_of(ctx: Context, subscriptions: list[Subscription]) -> list[Plan | None]:
    found = await ctx.plans.by_id(subscription.plan_id for subscription in subscriptions)
    return [found[subscription.plan_id] for subscription in subscriptions]
