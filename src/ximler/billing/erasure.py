"""Billing's part of erasing a user; fields are erased by their marks.

Stripe's ids stay: a later refund or dispute must find its payment, and the personal data they lead to is at Stripe.
"""

from bson import ObjectId

from ximler.billing import states
from ximler.database import Database

__all__ = ["end_subscriptions"]


async def end_subscriptions(database: Database, user_id: ObjectId) -> None:
    """Cancel the subscriptions of an erased user that still run. Safe to repeat."""
    running = {"userId": user_id, "status": {"$in": list(states.LIVE)}}
    ended = {"$set": {"status": "CANCELLED", "endDate": database.clock.now()}}
    await database.subscriptions.patch_many(running, ended)
