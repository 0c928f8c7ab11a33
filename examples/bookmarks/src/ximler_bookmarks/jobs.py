"""The jobs, which the worker runs at least once: the bookmark's id makes the notification idempotent."""

from bson import ObjectId

from ximler.database import Database, outbox
from ximler.notifications import inbox
from ximler.schema.document import Document
from ximler_bookmarks.schema import BOOKMARKS


class Reminder(Document, kw_only=True):
    user_id: ObjectId
    bookmark_id: ObjectId


REMIND = outbox.Kind("bookmarks.remind", Reminder)


@REMIND
async def remind(payload: Reminder, *, database: Database) -> None:
    """Add the bookmark to the inbox of its user, unless they switched reminders off."""
    from ximler_bookmarks import bookmarks  # here, because it enqueues this job

    user = await database.users.find_one({"_id": payload.user_id})
    bookmark = await database[BOOKMARKS].find_one({"_id": payload.bookmark_id, "userId": payload.user_id})
    if user is None or bookmark is None or not await bookmarks.reminds(database, user.id):
        return

    async def write(transaction: Database) -> None:
        await inbox.notify(transaction, user, "SYSTEM", f"Kept: {bookmark.title}", bookmark.url, occasion=bookmark.id)

    await database.transaction(write)
