"""Subscriptions that Stripe's own billing runs, another application's for example:
mirrored, and never billed.

They have a `stripeSubscriptionId`. Events keep status, plan, price, dates, payments and limits in step;
cancel, resume and change of plan are passed on to Stripe. A reading takes a ticket before it begins, and is
applied only if no later one was.
"""

import contextlib
from typing import Any

import structlog
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import movements, states, subscriptions
from ximler.billing.changes import Change, When
from ximler.billing.periods import Period
from ximler.billing.plans import plan_on_offer
from ximler.billing.pricing import Line, Quote
from ximler.billing.provider import Mirrors, TheirInvoice, TheirSubscription
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, Invalid
from ximler.core.money import Money
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.database.updates import Update
from ximler.metering.limits import entitlements
from ximler.schema.billing_account import Terms
from ximler.schema.mirror import MIRRORS, Mirror
from ximler.schema.payment import Payment
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription
from ximler.schema.trial import TRIALS, Trial, trial_id

__all__ = [
    "cancel",
    "change",
    "of_user",
    "preview",
    "refunded",
    "resume",
    "see_invoice",
    "see_subscription",
]

_log = structlog.get_logger("ximler.billing")


async def of_user(database: Database, actor: Actor) -> Subscription | None:
    """The actor's live subscription, if Stripe bills it. One command."""
    live = {"userId": actor.require_user(), "status": {"$in": list(states.LIVE)}}
    found = await database.subscriptions.find(live)
    return next((each for each in found if each.stripe_subscription_id), None)


async def see_subscription(database: Database, stripe: Mirrors, subscription_id: str) -> bool:
    """Apply Stripe's current state of a subscription; False for one that is not known yet."""
    known = await database.subscriptions.find_one({"stripeSubscriptionId": subscription_id})
    if known is None:
        return False
    ticket = await _ticket(database, subscription_id)
    if await database.users.find_one({"_id": known.user_id}) is None:
        await stripe.end_subscription(subscription_id, now=True)
        return True
    state = await stripe.subscription(subscription_id)
    plan = await database.plans.find_one({"stripePriceId": state.price_id}) if state.price_id else None
    if plan is None:
        _log.warning("no plan has the price of a subscription", price=state.price_id, subscription=subscription_id)
    priced = plan or await database.plans.find_one({"id": known.plan_id})
    interval = priced.interval if priced else None
    where = {"_id": known.id, "userId": known.user_id}

    async def write(transaction: Database) -> None:
        if not await _newer(transaction, subscription_id, ticket):
            return
        before = await transaction.subscriptions.get(where)
        values = _values(state, plan)
        await transaction.subscriptions.patch(where, {"$set": values})
        after = await transaction.subscriptions.get(where)
        await movements.mirror(transaction, after, interval)
        if (before.status, before.plan_id) != (after.status, after.plan_id):
            await entitlements.entitle(transaction, known.user_id)
        for action, details in _story(before, after):
            await _record(transaction, SYSTEM, action, after, **details)
        await _record_trial(transaction, after, state)

    await database.transaction(write)
    return True


async def _record_trial(transaction: Database, found: Subscription, state: TheirSubscription) -> None:
    """The payment method is known once Stripe has begun the trial:
    a second one cannot be prevented, and is audited."""
    if state.trial_end is None or state.fingerprint is None:
        return
    of_this, of_method = trial_id(f"{state.fingerprint}:{state.id}"), trial_id(state.fingerprint)
    seen = {each.id for each in await transaction[TRIALS].find({"_id": {"$in": [of_this, of_method]}})}
    if of_this in seen:
        return
    await transaction[TRIALS].insert(Trial(id=of_this))
    if of_method in seen:
        await _record(transaction, SYSTEM, Action.TRIAL_REPEATED, found)
    else:
        await transaction[TRIALS].insert(Trial(id=of_method))


async def see_invoice(database: Database, stripe: Mirrors, invoice_id: str) -> bool:
    """Apply Stripe's current state of an invoice to its payment;
    False where the subscription is not known yet."""
    ticket = await _ticket(database, invoice_id)
    state = await stripe.invoice(invoice_id)
    if state.subscription_id is None or state.status is None or not state.amount_minor:
        return True  # another application's, a draft, or free of charge
    known = await database.subscriptions.find_one({"stripeSubscriptionId": state.subscription_id})
    if known is None:
        return False

    async def write(transaction: Database) -> None:
        if not await _newer(transaction, invoice_id, ticket):
            return
        where = {"userId": known.user_id, "stripeInvoiceId": invoice_id}
        payment = await transaction.payments.find_one(where)
        values = _payment_values(state)
        if payment is None:
            await transaction.payments.insert(_payment(state, known))
        else:
            if payment.status == "REFUNDED" and state.status == "PAID":
                del values["status"]
            await transaction.payments.patch({"_id": payment.id, "userId": known.user_id}, {"$set": values})

    await database.transaction(write)
    return True


async def refunded(database: Database, stripe: Mirrors, refund_id: str) -> bool:
    """Follow a refund that was made at Stripe, if its payment is mirrored;
    False where that is not known yet."""
    intent_id = (await stripe.refund_state(refund_id)).intent_id
    payment = await database.payments.find_one({"stripePaymentIntentId": intent_id}) if intent_id else None
    if payment is None or intent_id is None:
        return intent_id is None
    if payment.stripe_invoice_id is None:
        _log.error("a refund was not made by Ximler, and is not counted", refund=refund_id, payment=str(payment.id))
        return True
    ticket = await _ticket(database, intent_id)
    intent = await stripe.intent(intent_id)
    status = "REFUNDED" if intent.refunded_minor >= intent.amount_minor else "PAID"

    async def write(transaction: Database) -> None:
        if await _newer(transaction, intent_id, ticket):
            where = {"_id": payment.id, "userId": payment.user_id, "status": {"$in": ["PAID", "REFUNDED"]}}
            await transaction.payments.patch(where, {"$set": {"status": status}})

    await database.transaction(write)
    return True


async def cancel(
    database: Database,
    stripe: Mirrors,
    found: Subscription,
    actor: Actor,
    *,
    now: bool,
    reason: str | None = None,
    comment: str | None = None,
) -> Subscription:
    """Cancel at Stripe: at the end of the period, or now. Audited, with reason and comment.
    Raises ProviderUnavailable."""
    why = subscriptions.motive(reason, comment)
    await stripe.end_subscription(str(found.stripe_subscription_id), now=now)
    at = "NOW" if now else "PERIOD_END"
    await _passed_on(database, actor, Action.SUBSCRIPTION_CANCELLED, found, at=at, **why)
    return await _followed(database, stripe, found)


async def resume(database: Database, stripe: Mirrors, found: Subscription, actor: Actor) -> Subscription:
    """Take back a cancellation at Stripe. Audited.
    Raises Conflict where there is none, ProviderUnavailable."""
    if found.auto_renew:
        raise Conflict("The subscription is not about to end")
    await stripe.resume_subscription(str(found.stripe_subscription_id))
    await _passed_on(database, actor, Action.SUBSCRIPTION_RESUMED, found)
    return await _followed(database, stripe, found)


async def change(
    database: Database, stripe: Mirrors, found: Subscription, actor: Actor, *, plan_id: str, when: When | None = None
) -> Subscription:
    """Change the plan at Stripe, now: Stripe credits the rest of the old one. Audited:
    the request, and later its effect.

    Raises NotFound, Invalid for a plan that Stripe does not sell, Conflict, PaymentDeclined,
    ProviderUnavailable.
    """
    plan = await _plan(database, found, plan_id, when)
    await stripe.change_subscription(str(found.stripe_subscription_id), str(plan.stripe_price_id))
    change = {"before": {"planId": found.plan_id}, "after": {"planId": plan.id}, "at": "NOW"}
    await _passed_on(database, actor, Action.PLAN_CHANGE_REQUESTED, found, **change)
    return await _followed(database, stripe, found)


async def preview(
    database: Database, stripe: Mirrors, found: Subscription, *, plan_id: str, when: When | None = None
) -> Change:
    """Stripe's price of a change now. Raises as `change`."""
    plan = await _plan(database, found, plan_id, when)
    due = await stripe.preview_change(str(found.stripe_subscription_id), str(plan.stripe_price_id))
    now = database.clock.now().replace(microsecond=0)
    running = Period(index=0, start=found.period_start or found.start_date, end=found.period_end or now)
    line = Line(kind="PLAN", description=plan.name, amount_minor=due.minor, plan_id=plan.id)
    quote = Quote(
        currency=due.currency,
        lines=(line,),
        discount_minor=0,
        tax_minor=0,
        total_minor=due.minor,
        due_minor=due.minor,
        balance_minor=0,
    )
    terms = Terms(
        plan_id=plan.id,
        plan_name=plan.name,
        price_minor=plan.price_minor,
        currency=plan.currency.upper(),
        interval=plan.interval,
    )
    return Change(plan_id=plan.id, when="NOW", at=now, terms=terms, anchor=running.start, period=running, quote=quote)


async def _plan(database: Database, found: Subscription, plan_id: str, when: When | None) -> Plan:
    plan = await plan_on_offer(database, plan_id)
    if plan.stripe_price_id is None:
        raise Invalid.field("planId", f"{plan.name} has no price at Stripe, which bills this subscription")
    if when == "PERIOD_END":
        raise Invalid.field("when", "Stripe bills this subscription, and changes its plan now only")
    if plan.id == found.plan_id:
        raise Conflict(f"The plan is {plan.name} already")
    if not found.auto_renew:
        raise Conflict("The subscription is about to end: resume it first")
    return plan


async def _followed(database: Database, stripe: Mirrors, found: Subscription) -> Subscription:
    await see_subscription(database, stripe, str(found.stripe_subscription_id))
    return await database.subscriptions.get({"_id": found.id, "userId": found.user_id})


async def _ticket(database: Database, object_id: str) -> int:
    now = database.clock.now()
    taken: Update = {"$inc": {"ticket": 1}, "$set": {"readAt": now}}
    found = await database[MIRRORS].find_and_patch({"_id": object_id}, taken)
    if found is None:
        with contextlib.suppress(DocumentExists):
            await database[MIRRORS].insert(Mirror(id=object_id, read_at=now))
        found = await database[MIRRORS].find_and_patch({"_id": object_id}, taken)
    return found.ticket if found else 0


async def _newer(transaction: Database, object_id: str, ticket: int) -> bool:
    return await transaction[MIRRORS].patch(
        {"_id": object_id, "applied": {"$lt": ticket}}, {"$set": {"applied": ticket}}
    )


def _values(state: TheirSubscription, plan: Plan | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "status": state.status,
        "startDate": state.start,
        "endDate": state.end,
        "autoRenew": not state.cancels,
        "stripeCustomerId": state.customer_id,
        "periodStart": state.period_start,
        "periodEnd": state.period_end,
        "trialEnd": state.trial_end,
    }
    if plan is not None:
        values["planId"] = plan.id
    if state.price_minor is not None:
        values |= {"price": Money(state.price_minor, state.currency).major, "currency": state.currency}
    return values


def _story(before: Subscription, after: Subscription) -> list[tuple[Action, dict[str, Any]]]:
    """The change's entries in the audit log."""
    found: list[tuple[Action, dict[str, Any]]] = []
    lives, lived = after.status in states.LIVE, before.status in states.LIVE
    if lives and not lived:
        found.append((Action.SUBSCRIPTION_STARTED, {"planId": after.plan_id}))
    if lived and not lives:
        found.append((Action.SUBSCRIPTION_ENDED, {"status": after.status}))
    if before.plan_id != after.plan_id:
        change = {"before": {"planId": before.plan_id}, "after": {"planId": after.plan_id}}
        found.append((Action.PLAN_CHANGED, change))
    return found


def _payment_values(state: TheirInvoice) -> dict[str, Any]:
    return {
        "amount": Money(state.amount_minor, state.currency).major,
        "currency": state.currency,
        "status": state.status,
        "stripePaymentIntentId": state.intent_id,
        "invoiceUrl": state.url,
        "paidAt": state.paid_at,
    }


def _payment(state: TheirInvoice, subscription: Subscription) -> Payment:
    return Payment(
        user_id=subscription.user_id,
        subscription_id=subscription.id,
        amount=Money(state.amount_minor, state.currency).major,
        currency=state.currency,
        status=state.status or "PENDING",
        description=state.description,
        stripe_payment_intent_id=state.intent_id,
        stripe_invoice_id=state.id,
        invoice_url=state.url,
        paid_at=state.paid_at,
    )


async def _passed_on(database: Database, actor: Actor, action: Action, found: Subscription, **details: Any) -> None:
    async def write(transaction: Database) -> None:
        await _record(transaction, actor, action, found, **details)

    await database.transaction(write)


async def _record(transaction: Database, actor: Actor, action: Action, found: Subscription, **details: Any) -> None:
    resource_id: ObjectId = found.id
    await records.write(
        transaction,
        actor,
        action,
        resource="subscriptions",
        resource_id=resource_id,
        user_id=found.user_id,
        provider="stripe",
        **{name: value for name, value in details.items() if value is not None},
    )
