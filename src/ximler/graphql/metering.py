"""Resolvers of metering."""

from datetime import datetime
from typing import Any

from ximler.core.errors import Invalid
from ximler.core.ids import object_id
from ximler.core.streams import Event
from ximler.database.topics import Topic
from ximler.graphql.context import Context
from ximler.graphql.engine import Resolvers
from ximler.metering.ledger import events as recording
from ximler.metering.reports import overview as standing
from ximler.metering.reports.overview import ResourceUsage, overview
from ximler.metering.reports.series import Consumer, Interval, Point, series, top_consumers
from ximler.schema.usage import ResourceType
from ximler.schema.user import User

FREE = frozenset({"recordUsage"})
"""Root fields that cost no API call: an operation of these alone is never refused by the month's quota."""
_MAX_EVENTS = 1000

resolvers = Resolvers()


@resolvers.query("usage")
async def usage(ctx: Context) -> list[ResourceUsage]:
    user_id = ctx.actor.require_user()
    return (await overview(ctx.database, ctx.actor, [user_id], plans=await ctx.plans.current()))[user_id]


@resolvers.query("quota")
async def quota(ctx: Context, resource: ResourceType, user_id: str | None = None) -> ResourceUsage:
    return await standing.quota(
        ctx.database,
        ctx.actor,
        resource,
        user_id=None if user_id is None else object_id(user_id, "userId"),
        plans=await ctx.plans.current(),
    )


@resolvers.query("usageSeries")
async def usage_series(
    ctx: Context, resource: ResourceType, from_: datetime, to: datetime, by: Interval, user_id: str | None = None
) -> list[Point]:
    return await series(
        ctx.database,
        ctx.actor,
        resource,
        since=from_,
        until=to,
        by=by,
        user_id=None if user_id is None else object_id(user_id, "userId"),
    )


@resolvers.query("topConsumers")
async def most_used(ctx: Context, resource: ResourceType, from_: datetime, to: datetime, first: int) -> list[Consumer]:
    return await top_consumers(ctx.database, ctx.actor, resource, since=from_, until=to, first=first)


async def _my_usage(ctx: Context) -> tuple[Topic, Any]:
    return standing.CHANGED, ctx.actor.require_user()


@resolvers.subscription("usageChanged", follow=_my_usage)
async def usage_changed(ctx: Context, _event: Event) -> list[ResourceUsage]:
    return await usage(ctx)


@resolvers.mutation("recordUsage")
async def record_usage(ctx: Context, events: list[recording.Event]) -> list[recording.Outcome]:
    if len(events) > _MAX_EVENTS:
        raise Invalid.field(
            "events", f"{len(events):,} are too many: send {_MAX_EVENTS:,} at most, or POST /v1/usage/events"
        )
    return await recording.record(ctx.database, ctx.actor, events)


@resolvers.field("User", "usage")
async def usage_of(ctx: Context, users: list[User]) -> list[list[ResourceUsage]]:
    if (standing := await ctx.standing_of(users)) is not None:
        return [standing[0]]
    found = await overview(ctx.database, ctx.actor, [user.id for user in users], plans=await ctx.plans.current())
    return [found[user.id] for user in users]
