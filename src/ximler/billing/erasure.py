"""What a person paid: the books stay whole, and lose the person.

Stripe's ids stay: a refund or a dispute that comes later must find its payment, and what they lead to is at Stripe, not here.
"""

from bson import ObjectId

from ximler.database import Database

__all__ = ["erase"]

_PAYMENT = (
    *("userId", "subscriptionId", "amount", "currency", "status", "paidAt", "createdAt"),
    *("stripePaymentIntentId", "stripeInvoiceId"),
)
_SUBSCRIPTION = (
    *("userId", "planId", "status", "startDate", "endDate", "price", "currency", "createdAt"),
    "stripeSubscriptionId",
)


async def erase(database: Database, user_id: ObjectId) -> None:
    """Keep an erased user's payments and subscriptions without words, links and customer. Safe to repeat.

    A subscription that still runs ends: nobody is left whom it could serve.
    """
    await database.payments.keep_only({"userId": user_id}, _PAYMENT)
    running = {"userId": user_id, "status": {"$in": ["ACTIVE", "PAST_DUE"]}}
    ended = {"$set": {"status": "CANCELLED", "endDate": database.clock.now()}}
    await database.subscriptions.patch_many(running, ended)
    await database.subscriptions.keep_only({"userId": user_id}, _SUBSCRIPTION, {"autoRenew": False})
