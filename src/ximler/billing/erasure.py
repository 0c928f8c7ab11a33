"""Objects at the provider that end with a user's data:
removed payment methods, erased users' subscriptions and customers.

Fields are erased by their marks. The ids of payments stay: a later refund or dispute must find its payment.
"""

import structlog
from bson import ObjectId

from ximler.billing import methods, states, subscriptions
from ximler.billing.account import find, in_turn, lock, store
from ximler.billing.account import methods as account_methods
from ximler.billing.provider import Mirrors, ProviderUnavailable
from ximler.billing.rails import rail
from ximler.core.errors import Invalid, NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.schema.checkout import CHECKOUTS
from ximler.schema.document import Document

__all__ = ["AtProvider", "AtStripe", "end_at_stripe", "end_subscriptions", "forget_cards", "forget_customer"]

_log = structlog.get_logger("ximler.billing")


class AtStripe(Document, kw_only=True):
    subscription_id: str


class AtProvider(Document, kw_only=True):
    """Without the user's id, because the job outlives the erasure."""

    customer_id: str
    method_ids: list[str]


@outbox.job("billing.end_at_stripe", AtStripe)
async def end_at_stripe(payload: AtStripe, *, database: Database, settings: Settings) -> None:
    """The subscription of an erased user costs nothing any more; one that is gone already is fine.

    Raises ProviderUnavailable, also without a key of Stripe and for a refusal: the job is tried again for
    nine hours, then logged as dead, and `billing reconcile` lists it.
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


@outbox.job("billing.forget_customer", AtProvider)
async def forget_customer(payload: AtProvider, *, database: Database, settings: Settings) -> None:
    """The provider keeps no card of an erased user. It keeps the payments, which law requires.

    Raises ProviderUnavailable, also for a refusal, and NoProvider: the job is tried again for nine hours,
    then logged as dead, and `billing reconcile` lists it.
    """
    provider = rail(database, settings)
    try:
        for method_id in payload.method_ids:
            await provider.detach(method_id)
        await provider.forget_customer(payload.customer_id)
    except Invalid as refused:
        raise ProviderUnavailable(
            f"The customer {payload.customer_id} of an erased user: {refused.message}"
        ) from refused


async def forget_cards(database: Database, user_id: ObjectId) -> None:
    """Remove an erased user's customers and payment methods at the provider,
    a moment later. Safe to repeat."""
    account = await find(database, user_id)
    opened = await database[CHECKOUTS].find({"userId": user_id, "customerId": {"$gt": ""}})
    for customer_id in {account.customer_id, *(each.customer_id for each in opened)} - {None}:
        own = [each.id for each in account_methods(account)] if customer_id == account.customer_id else []
        payload = AtProvider(customer_id=str(customer_id), method_ids=own)
        await forget_customer.enqueue(database, payload, dedupe_key=f"billing.forget:{customer_id}")


async def end_subscriptions(database: Database, user_id: ObjectId) -> None:
    """Cancel the subscriptions of an erased user that still run, also at Stripe,
    a moment later. Safe to repeat."""
    running = {"userId": user_id, "status": {"$in": list(states.LIVE)}}
    for found in await database.subscriptions.find(running):
        if found.stripe_subscription_id is not None:
            at_stripe = AtStripe(subscription_id=found.stripe_subscription_id)
            await end_at_stripe.enqueue(database, at_stripe, dedupe_key=f"billing.end:{found.stripe_subscription_id}")
    ended = {"$set": {"status": "CANCELLED", "endDate": database.clock.now()}}
    await database.subscriptions.patch_many(running, ended)
    if (await find(database, user_id)).subscription_id is not None:
        await in_turn(database, user_id, lambda transaction: _follow(transaction, user_id))


async def _follow(transaction: Database, user_id: ObjectId) -> None:
    """Void the open invoice, and record that the revenue ended:
    nothing follows once the account is erased."""
    account = await lock(transaction, user_id)
    if await subscriptions.settle_end(transaction, account):
        await store(transaction, account)
