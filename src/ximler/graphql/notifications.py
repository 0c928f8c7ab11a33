"""Resolvers of notifications."""

from typing import Any

from ximler.core.ids import decode_cursor, object_id
from ximler.core.streams import Event
from ximler.database.topics import Topic
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.notifications import inbox
from ximler.schema.notification import Notification
from ximler.schema.user import User

resolvers = Resolvers()


@resolvers.query("notifications")
async def notifications(
    ctx: Context, first: int | None = None, after: str | None = None, unread: bool | None = None
) -> Connection[Notification]:
    page = await inbox.page(
        ctx.database,
        ctx.actor,
        unread=bool(unread),
        first=page_size(first),
        after=None if after is None else decode_cursor(after),
    )
    return Connection(page)


async def _my_inbox(ctx: Context) -> tuple[Topic, Any]:
    return inbox.ADDED, ctx.actor.require_user()


@resolvers.subscription("notificationAdded", follow=_my_inbox)
async def notification_added(ctx: Context, event: Event) -> Notification:
    return await inbox.get(ctx.database, ctx.actor, event.id)


@resolvers.mutation("markNotificationRead")
async def mark_notification_read(ctx: Context, id: str) -> Notification:  # noqa: A002 (the argument's name in GraphQL)
    return await inbox.mark_read(ctx.database, ctx.actor, object_id(id))


@resolvers.mutation("markAllNotificationsRead")
async def mark_all_notifications_read(ctx: Context) -> int:
    return await inbox.mark_all_read(ctx.database, ctx.actor)


@resolvers.field("User", "unreadNotifications")
async def unread_notifications(ctx: Context, users: list[User]) -> list[int]:
    counts = await inbox.unread_counts(ctx.database, ctx.actor, [user.id for user in users])
    return [counts[user.id] for user in users]
