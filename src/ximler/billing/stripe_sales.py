"""Subscriptions that Ximler sells and Stripe bills (`XIMLER_STRIPE_BILLING`):
sold on Stripe's page, mirrored from then on.

Of two that were bought at once, one is kept: the account's lock decides.
The other ends at Stripe, and is refunded.
"""

import structlog
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import redemptions, states, stripe_mirror
from ximler.billing.account import ensure, in_turn, lock, store
from ximler.billing.provider import Mirrors, Provider, Sale, Session, TheirSubscription
from ximler.core.actor import SYSTEM
from ximler.core.errors import Conflict, NotFound
from ximler.core.money import Money
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.metering.limits import entitlements
from ximler.schema.checkout import CHECKOUTS, Checkout
from ximler.schema.plan import Plan
from ximler.schema.redemption import REDEMPTIONS, redemption_id
from ximler.schema.subscription import Subscription

__all__ = ["adopt", "open_page", "seller"]

_WAITS = ["OPEN", "EXPIRED"]  # the customer may pay in the last moment
_log = structlog.get_logger("ximler.billing")


def seller(provider: Provider, settings: Settings, plan: Plan) -> Mirrors | None:
    """The provider, if it is to bill subscriptions to the plan."""
    sells = settings.stripe_billing and plan.stripe_price_id is not None
    return provider if sells and isinstance(provider, Mirrors) else None


async def open_page(stripe: Mirrors, checkout: Checkout, plan: Plan, customer_id: str) -> Session:
    """Stripe's page for a checkout, with our coupon."""
    rebate, months = checkout.terms.rebate, None
    if rebate is not None and rebate.renewals is not None:
        months = rebate.renewals * (12 if plan.interval == "YEAR" else 1)
    sale = Sale(
        key=checkout.id,
        customer_id=customer_id,
        price_id=str(plan.stripe_price_id),
        currency=checkout.terms.currency,
        trial_days=checkout.trial_days,
        return_url=checkout.return_url,
        expires_at=checkout.expires_at,
        code=rebate.code if rebate else None,
        percent=rebate.percent if rebate else None,
        minor=rebate.minor if rebate else None,
        once=rebate is not None and rebate.renewals == 1,
        months=months,
    )
    return await stripe.open_sale(sale)


async def adopt(database: Database, stripe: Mirrors, checkout: Checkout) -> None:
    """Mirror the subscription that was bought, once it was. Safe to repeat and to race.
    Raises ProviderUnavailable.

    The customer has paid already: where the subscription cannot be kept, it ends at Stripe and is refunded.
    """
    subscription_id = (await stripe.session(str(checkout.session_id))).subscription_id
    if subscription_id is None:
        return
    state = await stripe.subscription(subscription_id)
    await ensure(database, checkout.user_id)
    try:
        await _begin(database, checkout, state)
    except (Conflict, NotFound) as problem:
        await _give_back(stripe, checkout, state)
        refused = {"$set": {"status": "REFUSED", "problem": f"{problem.message}: the payment was refunded"}}
        await database[CHECKOUTS].patch({"_id": checkout.id, "status": {"$in": _WAITS}}, refused)
        return
    await stripe_mirror.see_subscription(database, stripe, subscription_id)


async def _begin(database: Database, checkout: Checkout, state: TheirSubscription) -> None:
    """Write the subscription, with its limits. Raises Conflict, and NotFound for a closed account."""
    made, terms = ObjectId(), checkout.terms

    async def write(transaction: Database) -> None:
        account = await lock(transaction, checkout.user_id)
        paid = {"$set": {"status": "PAID", "subscriptionId": made}}
        if not await transaction[CHECKOUTS].patch({"_id": checkout.id, "status": {"$in": _WAITS}}, paid):
            return  # by another process
        if await transaction.users.find_one({"_id": checkout.user_id}) is None:
            raise NotFound("The account was closed")
        live = {"userId": account.id, "status": {"$in": list(states.LIVE)}}
        if account.checkout_id is not None or await transaction.subscriptions.find_one(live) is not None:
            raise Conflict("There is a subscription already")
        if checkout.trial_days:
            account.trialed_at = transaction.clock.now()
        subscription = await transaction.subscriptions.insert(
            Subscription(
                id=made,
                user_id=account.id,
                plan_id=terms.plan_id,
                status=state.status,
                start_date=state.start,
                price=Money(terms.price_minor, terms.currency).major,
                currency=terms.currency,
                stripe_subscription_id=state.id,
            )
        )
        if terms.rebate is not None:
            await _confirm_coupon(transaction, redemption_id(terms.rebate.code, account.id), made)
        await entitlements.entitle(transaction, account.id)
        await records.write(
            transaction,
            SYSTEM,
            Action.SUBSCRIPTION_STARTED,
            resource="subscriptions",
            resource_id=subscription.id,
            user_id=account.id,
            planId=terms.plan_id,
            provider="stripe",
        )
        await store(transaction, account)

    await in_turn(database, checkout.user_id, write)


async def _confirm_coupon(transaction: Database, reservation_id: str, subscription_id: ObjectId) -> None:
    held = await transaction[REDEMPTIONS].find_one({"_id": reservation_id})
    try:
        if held is not None:
            await redemptions.confirm(transaction, held.id, held.token, subscription_id=subscription_id)
    except redemptions.ReservationLapsed:
        _log.warning("coupon lapsed while it was paid", redemption=reservation_id)


async def _give_back(stripe: Mirrors, checkout: Checkout, state: TheirSubscription) -> None:
    """End the subscription and refund its first invoice. Safe to repeat."""
    await stripe.end_subscription(state.id, now=True)
    invoice = await stripe.invoice(state.invoice_id) if state.invoice_id else None
    if invoice is not None and invoice.status == "PAID" and invoice.intent_id and invoice.amount_minor:
        await stripe.refund(key=f"{checkout.id}:second", intent_id=invoice.intent_id, amount_minor=invoice.amount_minor)
