"""Resolvers of API keys."""

from datetime import datetime, timedelta
from typing import Any

from ximler.apikeys import keys
from ximler.core.ids import object_id
from ximler.graphql.context import Context
from ximler.graphql.engine import Resolvers
from ximler.schema.api_key import ApiKey

resolvers = Resolvers()


@resolvers.query("apiKeys")
async def api_keys(ctx: Context) -> list[ApiKey]:
    return await keys.mine(ctx.database, ctx.actor)


@resolvers.mutation("createApiKey")
async def create(ctx: Context, input: dict[str, Any]) -> keys.Made:  # noqa: A002 (GraphQL's customary name)
    expires_at: datetime | None = input.get("expires_at")
    return await keys.create(
        ctx.database,
        ctx.actor,
        name=input["name"],
        permissions=input["permissions"],
        expires_at=expires_at,
        allowed_addresses=input.get("allowed_addresses") or [],
    )


@resolvers.mutation("updateApiKey")
async def update(ctx: Context, id: str, input: dict[str, Any]) -> ApiKey:  # noqa: A002 (the argument's name in GraphQL)
    given = {name: value for name, value in input.items() if value is not None}
    return await keys.change(ctx.database, ctx.actor, object_id(id), **given)


@resolvers.mutation("rotateApiKey")
async def rotate(ctx: Context, id: str, grace_hours: int | None = None) -> keys.Made:  # noqa: A002 (as above)
    grace = keys.GRACE if grace_hours is None else timedelta(hours=grace_hours)
    return await keys.rotate(ctx.database, ctx.actor, object_id(id), grace=grace)


@resolvers.mutation("revokeApiKey")
async def revoke(ctx: Context, id: str) -> ApiKey:  # noqa: A002 (as above)
    return await keys.revoke(ctx.database, ctx.actor, object_id(id))


@resolvers.field("ApiKey", "state")
async def state(ctx: Context, found: list[ApiKey]) -> list[keys.State]:
    now = ctx.database.clock.now()
    return [keys.state(key, now) for key in found]
