"""The collections. Validators, indexes, export and erasure follow from these Structs."""

from typing import Annotated

from msgspec import Meta

from ximler.schema.document import Collection, Created, Record, ShardKey, Stamped, Theirs, Trimmed, UserId, ascending


class Bookmark(Created, kw_only=True):
    user_id: UserId
    title: Theirs[Trimmed]
    url: Theirs[Annotated[str, Meta(max_length=2000)]]


class BookmarkSettings(Stamped, kw_only=True):
    user_id: UserId
    reminders: Record[bool] = True


BOOKMARKS = Collection(
    name="bookmarks",
    document=Bookmark,
    purpose="Places to come back to.",
    owner="ximler_bookmarks",
    indexes=(ascending("userId", "-createdAt", "_id", why="a user's bookmarks, newest first"),),
    shard_key=ShardKey((("userId", "hashed"),), "read by user"),
)
BOOKMARK_SETTINGS = Collection(
    name="bookmarksettings",
    document=BookmarkSettings,
    purpose="Whether a user is reminded of new bookmarks.",
    owner="ximler_bookmarks",
    indexes=(ascending("userId", why="a user's settings", unique=True),),
    shard_key=ShardKey((("userId", 1),), "unique by user"),
)
