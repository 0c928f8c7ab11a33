"""Objects at the provider that end with a user's data: a removed payment method, an erased user's subscription.

Fields are erased by their marks.

Stripe's ids stay: a later refund or dispute must find its payment, and the personal data they lead to is at Stripe.
"""

import structlog
from bson import ObjectId

from ximler.billing import methods, states
from ximler.billing.account import find
from ximler.billing.account import methods as account_methods
from ximler.billing.provider import Mirrors, ProviderUnavailable
from ximler.billing.rails import rail
from ximler.core.errors import Invalid, NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.schema.document import Document

__all__ = ["AtStripe", "end_at_stripe", "end_subscriptions"]

_log = structlog.get_logger("ximler.billing")


class AtStripe(Document, kw_only=True):
    subscription_id: str


@outbox.job("billing.end_at_stripe", AtStripe)
async def end_at_stripe(payload: AtStripe, *, database: Database, settings: Settings) -> None:
    """The subscription of an erased user costs nothing any more; one that is gone already is fine.

    Raises ProviderUnavailable, also without a key of Stripe and for a refusal: the job is tried again for nine hours, then
    logged as dead, and `billing reconcile` lists it.
    """
    theirs = payload.subscription_id
    provider = rail(database, settings)
    if not isinstance(provider, Mirrors):
        raise ProviderUnavailable(
            f"The subscription {theirs} of an erased user may still run at Stripe: there is no key"
        )
    try:
        await provider.end_subscription(theirs, now=True)
    except NotFound:
        _log.info("the subscription of an erased user is gone at Stripe", subscription=theirs)
    except Invalid as refused:  # for good, by the rules of jobs: but the customer would be charged on
        raise ProviderUnavailable(f"The subscription {theirs} of an erased user: {refused.message}") from refused


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
