"""Documents that a transaction finds without reading them."""

from typing import Any

from bson import ObjectId

from ximler.database import Database, prefetched
from ximler.database.monitoring import round_trips
from ximler.schema.notification import NOTIFICATIONS, Notification


async def test_a_given_document_is_found_until_any_command_is_sent_to_its_collection(database: Database) -> None:
    made = await database.notifications.insert(
        Notification(user_id=ObjectId(), type="BILLING", title="Before", message="-")
    )
    where, change = {"_id": made.id, "userId": made.user_id}, {"$set": {"title": "After"}}
    raw = await database.notifications.raw.find_one(where)
    assert raw is not None
    writes: list[Any] = [
        lambda one: one.patch(where, change),
        lambda one: one.patch_each([(where, change)]),
        lambda one: one.delete_many(where),
    ]

    for write in writes:

        async def body(transaction: Database, write: Any = write) -> tuple[Any, Any]:
            prefetched.give(transaction, NOTIFICATIONS, raw)
            with round_trips() as trips:
                before = await transaction.notifications.find_one(where)
            assert trips == []
            await write(transaction.notifications)
            return before, await transaction.notifications.find_one(where)

        before, after = await database.transaction(body)
        assert before == made
        assert after is None or after.title == "After"
