"""`notifications`: each user's inbox."""

from datetime import datetime
from typing import Any, Literal

from msgspec import field

from ximler.schema.document import Collection, Created, Mixed, ShardKey, Theirs, UserId, ascending

__all__ = ["NOTIFICATIONS", "Notification", "NotificationType"]

NotificationType = Literal["BILLING", "SECURITY", "PRODUCT", "SYSTEM"]


class Notification(Created, kw_only=True):
    user_id: UserId
    type: Theirs[NotificationType]
    title: Theirs[str]
    message: Theirs[str]
    read_at: Theirs[datetime | None] = None
    metadata: Theirs[Mixed] = field(default_factory=dict[str, Any])


NOTIFICATIONS = Collection(
    name="notifications",
    document=Notification,
    purpose="Each user's inbox.",
    owner="notifications",
    indexes=(
        ascending("userId", "readAt", why="a user's unread notifications"),
        ascending("type", why="reports"),
        ascending("-createdAt", why="newest first"),
        ascending("userId", "-createdAt", "-_id", ours=True, why="a user's inbox, newest first"),
        ascending("userId", "readAt", "-createdAt", "-_id", ours=True, why="unread notifications, newest first"),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "read by user; `_id` lets a chunk split within one"),
)
