"""Resolvers for operators: accounts and projects of users."""

import asyncio

from ximler.accounts import administration, second_factor_enrolment
from ximler.accounts.administration import Account, Event
from ximler.core.ids import decode_cursor, object_id
from ximler.database.collection import Page
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.projects import everybodys
from ximler.projects.projects import ProjectSummary

resolvers = Resolvers()

_HISTORY = 100


@resolvers.query("users")
async def list_users(
    ctx: Context, search: str | None = None, first: int | None = None, after: str | None = None
) -> Connection[dict[str, object]]:
    page = await administration.page(
        ctx.database,
        ctx.actor,
        search=search,
        first=page_size(first),
        after=None if after is None else decode_cursor(after),
    )
    return Connection(Page([_account(each) for each in page.items], page.cursors, has_next=page.has_next))


@resolvers.query("user")
async def user(ctx: Context, id: str) -> dict[str, object]:  # noqa: A002 (the argument's name in GraphQL)
    return _account(await administration.get(ctx.database, ctx.actor, object_id(id)))


@resolvers.query("allProjects")
async def all_projects(
    ctx: Context, search: str, first: int | None = None, after: str | None = None
) -> Connection[ProjectSummary]:
    position = None if after is None else decode_cursor(after)
    return Connection(await everybodys.search(ctx.database, ctx.actor, search, first=page_size(first), after=position))


@resolvers.mutation("verifyUser")
async def verify_user(ctx: Context, id: str) -> dict[str, object]:  # noqa: A002 (as above)
    return _account(await administration.verify(ctx.database, ctx.actor, object_id(id)))


@resolvers.mutation("lockUser")
async def lock_user(ctx: Context, id: str, reason: str) -> dict[str, object]:  # noqa: A002 (as above)
    return _account(await administration.lock(ctx.database, ctx.actor, object_id(id), reason=reason))


@resolvers.mutation("unlockUser")
async def unlock_user(ctx: Context, id: str) -> dict[str, object]:  # noqa: A002 (as above)
    return _account(await administration.unlock(ctx.database, ctx.actor, object_id(id)))


@resolvers.mutation("removeSecondFactor")
async def remove_second_factor(ctx: Context, id: str) -> dict[str, object]:  # noqa: A002 (as above)
    await second_factor_enrolment.remove(ctx.database, ctx.actor, object_id(id))
    return _account(await administration.get(ctx.database, ctx.actor, object_id(id)))


@resolvers.mutation("revokeUserSessions")
async def revoke_user_sessions(ctx: Context, id: str) -> int:  # noqa: A002 (as above)
    return await administration.revoke_sessions(ctx.database, ctx.actor, object_id(id))


@resolvers.field("Account", "sessions")
async def sessions(ctx: Context, accounts: list[dict[str, object]]) -> list[list[dict[str, object]]]:
    async def of(account: dict[str, object]) -> list[dict[str, object]]:
        found = await administration.open_sessions(ctx.database, ctx.actor, object_id(str(account["id"])))
        return [
            {
                "id": each.public_id,
                "address": each.address,
                "user_agent": each.user_agent,
                "created_at": each.created_at,
                "expires_at": each.expires_at,
            }
            for each in found
        ]

    return await asyncio.gather(*(of(account) for account in accounts))


@resolvers.field("Account", "history")
async def history(ctx: Context, accounts: list[dict[str, object]]) -> list[list[Event]]:
    async def of(account: dict[str, object]) -> list[Event]:
        page = await administration.history(ctx.database, ctx.actor, object_id(str(account["id"])), first=_HISTORY)
        return page.items

    return await asyncio.gather(*(of(account) for account in accounts))


def _account(found: Account) -> dict[str, object]:
    user = found.user
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "email_verified": user.email_verified,
        "last_login": user.last_login,
        "created_at": user.created_at,
        "closed_at": user.deleted_at,
        "role": found.role,
        "locked_at": found.locked_at,
        "lock_reason": found.lock_reason,
        "second_factor": found.second_factor,
    }
