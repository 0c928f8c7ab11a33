"""Objects at the provider that end with a user's data: a removed payment method, an erased user's subscription.

Fields are erased by their marks.

Stripe's ids stay: a later refund or dispute must find its payment, and the personal data they lead to is at Stripe.
"""

import contextlib

from bson import ObjectId

from ximler.billing import methods, states
from ximler.billing.account import find
from ximler.billing.account import methods as account_methods
from ximler.billing.provider import Mirrors
from ximler.billing.rails import rail
from ximler.core.errors import NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.schema.document import Document

__all__ = ["end_subscriptions"]


class AtStripe(Document, kw_only=True):
    subscription_id: str


@outbox.job("billing.end_at_stripe", AtStripe)
async def end_at_stripe(payload: AtStripe, *, database: Database, settings: Settings) -> None:
    """The subscription of an erased user costs nothing any more. Without a key of Stripe there is nothing to do."""
    if settings.stripe_key is None:
        return
    provider = rail(database, settings)
    if isinstance(provider, Mirrors):
        with contextlib.suppress(NotFound):
            await provider.end_subscription(payload.subscription_id, now=True)


@methods.DETACH
async def detach(payload: methods.Detached, *, database: Database, settings: Settings) -> None:
    """A removed payment method is not kept at the provider, unless it was added again meanwhile."""
    account = await find(database, payload.user_id)
    if payload.method_id not in {each.id for each in account_methods(account)}:
        await rail(database, settings).detach(payload.method_id)


async def end_subscriptions(database: Database, user_id: ObjectId) -> None:
    """Cancel the subscriptions of an erased user that still run, also at Stripe, a moment later. Safe to repeat."""
    running = {"userId": user_id, "status": {"$in": list(states.LIVE)}}
    for found in await database.subscriptions.find(running):
        if found.stripe_subscription_id is not None:
            at_stripe = AtStripe(subscription_id=found.stripe_subscription_id)
            await end_at_stripe.enqueue(database, at_stripe, dedupe_key=f"billing.end:{found.stripe_subscription_id}")
    ended = {"$set": {"status": "CANCELLED", "endDate": database.clock.now()}}
    await database.subscriptions.patch_many(running, ended)
