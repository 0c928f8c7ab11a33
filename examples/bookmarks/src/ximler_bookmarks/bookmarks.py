"""The domain: every change takes an actor, and filters by its user."""

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler_bookmarks import jobs
from ximler_bookmarks.schema import BOOKMARK_SETTINGS, BOOKMARKS, Bookmark, BookmarkSettings


async def add(database: Database, actor: Actor, *, title: str, url: str) -> Bookmark:
    """Keep a place, and remind its user of it. Raises Unauthenticated, Invalid."""
    user_id = actor.require_user()
    if not url.startswith(("https://", "http://")):
        raise Invalid.field("url", "must begin with https:// or http://")
    bookmark = Bookmark(user_id=user_id, title=title, url=url)

    async def write(transaction: Database) -> Bookmark:
        made = await transaction[BOOKMARKS].insert(bookmark)
        await jobs.REMIND.enqueue(transaction, jobs.Reminder(user_id=user_id, bookmark_id=made.id))
        return made

    return await database.transaction(write)


async def page(database: Database, actor: Actor, *, first: int, after: Position | None) -> Page[Bookmark]:
    """The actor's bookmarks, newest first."""
    return await database[BOOKMARKS].page({"userId": actor.require_user()}, first=first, after=after)


async def reminds(database: Database, user_id: ObjectId) -> bool:
    """Whether the user wants reminders."""
    found = await database[BOOKMARK_SETTINGS].find_one({"userId": user_id})
    return found is None or found.reminders


async def set_reminders(database: Database, actor: Actor, *, on: bool) -> None:
    user_id = actor.require_user()
    fresh = BookmarkSettings(user_id=user_id)
    await database[BOOKMARK_SETTINGS].upsert({"userId": user_id}, {"$set": {"reminders": on}}, fresh=fresh)
