"""The steps of a subscription that Ximler bills: bought, renewed, unpaid, changed, ended.
Owns the `subscriptions` it makes.

Each step runs in a transaction that holds the user's account locked (`billing.account`), and writes status,
limits, audit entry and notice together. Payments are `billing.payments`'; this module decides what follows
from one.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

import structlog
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, notices, redemptions, states
from ximler.billing.account import RETRIES, balance, current, discount, ends_at, in_turn, live, lock, rebate, store
from ximler.billing.declines import reason
from ximler.billing.periods import Period, period
from ximler.billing.pricing import Charge as Priced
from ximler.billing.pricing import Quote, price
from ximler.billing.stripe_currencies import minimum, step
from ximler.billing.tax import tax_of
from ximler.core.actor import SYSTEM, Actor
from ximler.core.business import Business
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.money import Money
from ximler.database import Database
from ximler.database.updates import Update
from ximler.metering.limits import entitlements
from ximler.schema.billing_account import BillingAccount, Terms
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.checkout import CHECKOUTS
from ximler.schema.invoice import Invoice
from ximler.schema.payment import Payment
from ximler.schema.redemption import REDEMPTIONS, redemption_id
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = [
    "Upcoming",
    "cancel",
    "charge_for",
    "chargeable_of",
    "collect",
    "drop_pending",
    "drop_wanted",
    "end",
    "failed",
    "forget",
    "get_live",
    "motive",
    "next_invoice",
    "paid",
    "record",
    "remind",
    "renew",
    "resume",
    "settle_end",
    "start",
    "upcoming",
    "void_change",
]

CATCH_UP = timedelta(days=3)  # between the payments of periods that are overdue together
_log = structlog.get_logger("ximler.billing")
_MAX_COMMENT = 1000  # the audit log cuts off more


async def cancel(
    database: Database, actor: Actor, *, now: bool = False, reason: str | None = None, comment: str | None = None
) -> Subscription:
    """Cancel the actor's subscription at the end of the period, or now. Audited, with reason and comment.

    While its period is unpaid it ends now in any case: no more payments are tried. Raises NotFound without a
    subscription, Invalid for a comment that is too long.
    """
    why = motive(reason, comment)

    async def write(transaction: Database) -> Subscription:
        account, subscription = await get_live(transaction, actor.require_user())
        if now or subscription.status == "PAST_DUE":
            await end(transaction, account, "cancelled", actor=actor, **why)
        else:
            again, account.cancels = account.cancels, True
            await drop_pending(transaction, account)
            values = {"autoRenew": False, "endDate": ends_at(account), "pendingPlanId": None}
            await _patch(transaction, account, "cancelled_at_end", values)
            await record(transaction, actor, Action.SUBSCRIPTION_CANCELLED, account, at="PERIOD_END", **why)
            if not again:
                await notices.cancelled(transaction, account.id, live(account).terms, until=ends_at(account))
        await store(transaction, account)
        return await transaction.subscriptions.get({"_id": subscription.id, "userId": account.id})

    return await in_turn(database, actor.require_user(), write)


def motive(reason: str | None, comment: str | None) -> dict[str, str | None]:
    """Of a cancellation, for the audit log. Raises Invalid for a comment that is too long."""
    comment = comment.strip() or None if comment else None
    if comment and len(comment) > _MAX_COMMENT:
        raise Invalid.field("comment", f"is longer than {_MAX_COMMENT:,} characters")
    return {"reason": reason, "comment": comment}


async def resume(database: Database, actor: Actor) -> Subscription:
    """Take back a cancellation before it takes effect. Audited.
    Raises NotFound, Conflict where it was not cancelled."""

    async def write(transaction: Database) -> Subscription:
        account, subscription = await get_live(transaction, actor.require_user())
        if not account.cancels or transaction.clock.now() >= ends_at(account):
            raise Conflict("The subscription is not about to end")
        account.cancels = False
        await _patch(transaction, account, "resumed", {"autoRenew": True, "endDate": None})
        await record(transaction, actor, Action.SUBSCRIPTION_RESUMED, account)
        await store(transaction, account)
        return await transaction.subscriptions.get({"_id": subscription.id, "userId": account.id})

    return await in_turn(database, actor.require_user(), write)


async def start(
    transaction: Database,
    account: BillingAccount,
    *,
    subscription_id: ObjectId,
    terms: Terms,
    anchor: datetime,
    checkout_id: str,
    trial: bool = False,
) -> None:
    """The subscription begins, with its limits: bought, or on trial until `anchor`."""
    now = transaction.clock.now()
    account.subscription_id, account.checkout_id = subscription_id, None
    account.terms, account.anchor, account.period = terms, anchor, -1 if trial else 0
    account.pending = account.pending_rebate = account.wanted = account.not_before = None
    account.cancels = account.reminded = False
    account.failed_at, account.retries, account.invoice_id = None, 0, None
    account.extended_to = account.new_price_minor = None
    running = current(account)
    await transaction.subscriptions.insert(
        Subscription(
            id=subscription_id,
            user_id=account.id,
            plan_id=terms.plan_id,
            status="ACTIVE",
            start_date=now if trial else anchor,
            price=Money(terms.price_minor, terms.currency).major,
            currency=terms.currency,
            period_start=now if trial else running.start,
            period_end=ends_at(account),
            trial_end=anchor if trial else None,
        )
    )
    done: Update = {"$set": {"status": "PAID", "subscriptionId": subscription_id}, "$unset": {"problem": ""}}
    checkout = await transaction[CHECKOUTS].find_and_patch({"_id": checkout_id}, done)
    # The checkout's coupon: of one that applies once, nothing is left in `terms`.
    if checkout is not None and checkout.terms.rebate is not None:
        await _confirm_coupon(transaction, account, checkout.terms.rebate.code)
    await entitlements.entitle(transaction, account.id)
    await record(transaction, SYSTEM, Action.SUBSCRIPTION_STARTED, account, planId=terms.plan_id)
    await notices.began(transaction, account.id, terms, free_until=anchor if trial else None)


async def _confirm_coupon(transaction: Database, account: BillingAccount, code: str) -> None:
    """Confirm the coupon reserved for this invoice, also if the reservation has lapsed meanwhile."""
    held = await transaction[REDEMPTIONS].find_one({"_id": redemption_id(code, account.id)})
    try:
        if held is not None:
            subscription_id = live(account).subscription_id
            await redemptions.confirm(transaction, held.id, held.token, subscription_id=subscription_id)
    except redemptions.ReservationLapsed:
        _log.warning("coupon lapsed while it was paid", coupon=code, user=str(account.id))


async def drop_pending(transaction: Database, account: BillingAccount) -> None:
    """The pending change of plan does not happen, nor one that waits, and its coupon can be used again."""
    if account.pending_rebate is not None:
        await redemptions.undo(transaction, account.pending_rebate.code, account.id, "CONFIRMED")
    account.pending = account.pending_rebate = None
    await drop_wanted(transaction, account)


async def drop_wanted(transaction: Database, account: BillingAccount, *, coupon: str | None = None) -> None:
    """The change that waits for a payment does not happen. Its coupon can be used again,
    unless it is `coupon`."""
    if account.wanted is not None and account.wanted.rebate is not None and account.wanted.rebate.code != coupon:
        await redemptions.undo(transaction, account.wanted.rebate.code, account.id, "RESERVED")
    account.wanted = None


class Upcoming(NamedTuple):
    """The next period as it will be billed: `terms` are those of after it was billed."""

    terms: Terms
    anchor: datetime
    period: Period
    quote: Quote


def upcoming(account: BillingAccount, business: Business) -> Upcoming:
    """Price the period after the current one, at the pending plan or the new price if there is one. Pure."""
    (_, terms, anchor), index = live(account), account.period + 1
    terms = Terms(**_fields(terms))
    if account.extended_to is not None:
        anchor, index = account.extended_to, 0
    if account.pending is not None:
        if account.pending.interval != terms.interval:
            anchor, index = ends_at(account), 0
        terms = Terms(**_fields(account.pending) | {"rebate": account.pending_rebate or terms.rebate})
    elif account.new_price_minor is not None:
        terms.price_minor = account.new_price_minor
    running, off = period(anchor, terms.interval, index), discount(terms.rebate, terms.plan_id)
    charge = Priced(
        plan_id=terms.plan_id,
        description=terms.plan_name,
        price_minor=terms.price_minor,
        start=running.start,
        end=running.end,
        discount=off,
    )
    quote = price(
        terms.currency,
        charges=[charge],
        tax=tax_of(business, account),
        balance_minor=balance(account, terms.currency),
        minimum_minor=minimum(terms.currency),
        step_minor=step(terms.currency),
    )
    terms.net_minor = terms.price_minor - quote.discount_minor
    terms.rebate = rebate(off.renewed(terms.price_minor)) if off else None
    return Upcoming(terms, anchor, running, quote)


def next_invoice(account: BillingAccount, business: Business) -> Upcoming | None:
    """The same, or None where no period follows: without a subscription, or once it is cancelled."""
    return None if account.subscription_id is None or account.cancels else upcoming(account, business)


async def renew(transaction: Database, account: BillingAccount, user: User) -> Invoice:
    """Bill the user for the period after the one that ended. A period has one invoice."""
    (subscription_id, before, _), (terms, anchor, running, quote) = (
        live(account),
        upcoming(account, transaction.business),
    )
    if account.pending is not None:
        await _record_change(transaction, account, before=before, after=terms)
    account.terms, account.anchor, account.period = terms, anchor, running.index
    account.pending = account.pending_rebate = None
    account.new_price_minor = account.extended_to = account.not_before = None
    account.reminded = False
    invoice = await invoices.make(
        transaction,
        account,
        quote,
        key=f"{subscription_id}:{anchor:%Y%m%dT%H%M%S}:{running.index}",
        kind="RENEWAL",
        status="OPEN",
        attempts=int(quote.due_minor > 0 and chargeable_of(account) is not None),
        subscription_id=subscription_id,
        plan_id=terms.plan_id,
        period=running,
        user=user,
    )
    values = {
        "periodStart": running.start,
        "periodEnd": running.end,
        "planId": terms.plan_id,
        "price": Money(terms.price_minor, terms.currency).major,
        "pendingPlanId": None,
    }
    await _patch(transaction, account, "renewed", values)
    account.invoice_id = invoice.id
    if not invoice.due_minor:
        await paid(transaction, account, invoice)
    if terms.plan_id != before.plan_id:
        await entitlements.entitle(transaction, account.id)
    return invoice


async def collect(
    transaction: Database,
    account: BillingAccount,
    invoice: Invoice,
    *,
    description: str,
    first: bool = False,
    by_customer: bool = False,
) -> Charge | None:
    """Begin the next attempt at an invoice. None without a payment method that may be charged,
    or while one is under way.

    `first`: the invoice was made in this step, and counts this attempt. `by_customer`: a decline counts, as
    `billing.attempts` says.
    """
    chargeable = chargeable_of(account)
    if account.charge_id is not None or chargeable is None:
        return None
    number = 1 if first else invoice.attempts + 1
    method_id, customer_id = chargeable
    _, charge = await charge_for(
        transaction,
        invoice,
        name=str(number),
        description=description,
        method_id=method_id,
        customer_id=customer_id,
        by_customer=by_customer,
    )
    if number != invoice.attempts:
        await invoices.attempted(transaction, invoice, number)
    account.charge_id, account.charge_at = charge.id, transaction.clock.now()
    return charge


def chargeable_of(account: BillingAccount) -> tuple[str, str] | None:
    """The ids of the method and the customer to charge."""
    if account.method is None or account.method.declined or account.customer_id is None:
        return None
    return account.method.id, account.customer_id


async def charge_for(
    transaction: Database,
    invoice: Invoice,
    *,
    name: str,
    description: str,
    method_id: str,
    customer_id: str,
    outside: str | None = None,
    by_customer: bool = False,
) -> tuple[Payment, Charge]:
    """Write a payment of the amount due, and its charge:
    PENDING, or PAID if it was made `outside` of the provider."""
    payment = await transaction.payments.insert(
        Payment(
            user_id=invoice.user_id,
            subscription_id=invoice.subscription_id,
            amount=Money(invoice.due_minor, invoice.currency).major,
            currency=invoice.currency,
            status="PAID" if outside else "PENDING",
            description=description,
            invoice_id=invoice.id,
            paid_at=transaction.clock.now() if outside else None,
        )
    )
    charge = await transaction[CHARGES].insert(
        Charge(
            id=f"{invoice.key}:{name}",
            user_id=invoice.user_id,
            invoice_id=invoice.id,
            payment_id=payment.id,
            amount_minor=invoice.due_minor,
            currency=invoice.currency,
            method_id=method_id,
            customer_id=customer_id,
            ticket=1,  # of the first drive, which follows at once
            outside=outside,
            by_customer=by_customer,
            status="PAID" if outside else "PENDING",
        )
    )
    return payment, charge


async def paid(transaction: Database, account: BillingAccount, invoice: Invoice) -> bool:
    """An invoice was paid, or nothing is due.
    False if the payment is no longer needed and is to be refunded."""
    if invoice.status not in ("DRAFT", "OPEN") or await _gone(transaction, account, invoice):
        return False
    await invoices.pay(transaction, invoice)
    match invoice.kind:
        case "CHECKOUT":
            terms, anchor = _effect(invoice)
            await start(
                transaction,
                account,
                subscription_id=invoice.subscription_id,
                terms=terms,
                anchor=anchor,
                checkout_id=str(invoice.checkout_id),
            )
        case "RENEWAL":
            now = transaction.clock.now()
            if states.of(account) != "ACTIVE":  # else `_gone` has seen it ACTIVE, or made it so
                await _patch(transaction, account, "paid", {})
            account.invoice_id, account.failed_at, account.retries = None, None, 0
            if ends_at(account) <= now:
                account.not_before = now + CATCH_UP
        case "CHANGE":
            await _changed(transaction, account, invoice)
    if invoice.due_minor:
        await notices.paid(transaction, invoice)
    return True


async def failed(
    transaction: Database, account: BillingAccount, invoice: Invoice, failure: str, *, by_customer: bool = True
) -> None:
    """An attempt at an invoice was declined. `by_customer`: they wait for the answer."""
    if invoice.status not in ("DRAFT", "OPEN") or await _gone(transaction, account, invoice):
        return
    if invoice.kind != "RENEWAL":
        await void_change(transaction, account, invoice)
        if invoice.kind == "CHANGE" and not by_customer:
            why = f"the payment was declined ({reason(failure)})"
            await notices.stays(transaction, account.id, live(account).terms, why=why)
        if invoice.kind == "CHECKOUT":
            account.checkout_id = None
            again = {"$set": {"status": "OPEN", "problem": f"The payment was declined: {reason(failure)}"}}
            await transaction[CHECKOUTS].patch({"_id": invoice.checkout_id, "status": "PROCESSING"}, again)
        return
    if account.cancels:  # while the payment was under way: it is not tried again
        await end(transaction, account, "cancelled")
        return
    await _patch(transaction, account, "payment_failed", {})
    if account.failed_at is None:
        account.failed_at, account.retries = transaction.clock.now(), 0
    if account.retries >= len(RETRIES):
        await end(transaction, account, "given_up")
        return
    await notices.declined(transaction, invoice, failure)


async def end(
    transaction: Database,
    account: BillingAccount,
    event: states.Event,
    *,
    actor: Actor = SYSTEM,
    **why: str | None,
) -> None:
    """The subscription ends, with its plan's limits. An open invoice is voided;
    late payments are refunded."""
    now = transaction.clock.now()
    terms = live(account).terms
    if account.invoice_id is not None:
        await invoices.void(transaction, account, await invoices.get(transaction, account, account.invoice_id))
    await drop_pending(transaction, account)
    await _patch(transaction, account, event, {"endDate": now, "autoRenew": False, "pendingPlanId": None})
    await record(transaction, actor, Action.SUBSCRIPTION_ENDED, account, event=event, **why)
    forget(account)
    await entitlements.entitle(transaction, account.id)
    await notices.ended(transaction, account.id, terms, event)


def forget(account: BillingAccount) -> None:
    """The account has no live subscription any more. Balance and payments under way stay."""
    account.subscription_id = account.terms = account.anchor = account.invoice_id = None
    account.pending = account.pending_rebate = account.wanted = None
    account.failed_at = account.not_before = account.extended_to = account.new_price_minor = None
    account.period, account.retries, account.cancels = -1, 0, False


async def remind(transaction: Database, account: BillingAccount) -> None:
    """Before a trial ends, and before a year is renewed."""
    account.reminded = True
    notice = notices.trial_ends if account.period < 0 else notices.renews
    await notice(transaction, account.id, upcoming(account, transaction.business).terms, at=ends_at(account))


async def settle_end(transaction: Database, account: BillingAccount) -> bool:
    """Follow where another application, or erasure, has ended the subscription:
    nothing is asked for any more."""
    if account.subscription_id is None or await _live(transaction, account) is not None:
        return False
    _log.warning("subscription was ended by another application", user=str(account.id))
    if account.invoice_id is not None:
        await invoices.void(transaction, account, await invoices.get(transaction, account, account.invoice_id))
    await drop_pending(transaction, account)
    forget(account)
    await entitlements.entitle(transaction, account.id)
    return True


async def _gone(transaction: Database, account: BillingAccount, invoice: Invoice) -> bool:
    """Whether the subscription that the invoice is for is not live any more; then the invoice is void."""
    if invoice.kind == "CHECKOUT":
        return False
    await settle_end(transaction, account)
    if account.subscription_id == invoice.subscription_id:
        return False
    await void_change(transaction, account, invoice)
    return True


async def void_change(
    transaction: Database, account: BillingAccount, invoice: Invoice, *, coupon: str | None = None
) -> None:
    """A purchase or a change was not paid, or does not happen. The coupon of a change can be used again,
    unless it is `coupon`; a checkout keeps its own."""
    await invoices.void(transaction, account, invoice)
    if invoice.coupon not in (None, coupon):
        await redemptions.undo(transaction, str(invoice.coupon), account.id, "RESERVED")


async def _changed(transaction: Database, account: BillingAccount, invoice: Invoice) -> None:
    """The new plan takes effect."""
    terms, anchor = _effect(invoice)
    if anchor != account.anchor:
        account.period, account.extended_to = 0, None
    before, account.new_price_minor = live(account).terms, None
    await drop_pending(transaction, account)
    account.terms, account.anchor, account.reminded = terms, anchor, False
    if invoice.coupon is not None:
        await _confirm_coupon(transaction, account, invoice.coupon)
    price_major = Money(terms.price_minor, terms.currency).major
    values: dict[str, Any] = {"planId": terms.plan_id, "price": price_major, "pendingPlanId": None}
    if account.period >= 0:  # a trial ends when it was to end
        running = current(account)
        values |= {"periodStart": running.start, "periodEnd": running.end}
    if account.cancels:  # while the change was paid
        values["endDate"] = ends_at(account)
    await _patch(transaction, account, "changed", values)
    await entitlements.entitle(transaction, account.id)
    await _record_change(transaction, account, before=before, after=terms)


def _effect(invoice: Invoice) -> tuple[Terms, datetime]:
    """The terms and the anchor that take effect when a purchase or a change of plan is paid."""
    if invoice.terms is None or invoice.anchor is None:
        raise RuntimeError(f"the invoice {invoice.key} has no terms")
    return invoice.terms, invoice.anchor


async def get_live(transaction: Database, user_id: ObjectId) -> tuple[BillingAccount, Subscription]:
    """The locked account and its live subscription. Raises NotFound."""
    account = await lock(transaction, user_id)
    found = None if account.subscription_id is None else await _live(transaction, account)
    if found is None:
        raise NotFound("There is no subscription")
    return account, found


async def _live(transaction: Database, account: BillingAccount) -> Subscription | None:
    """The account's subscription, if it is live.

    Another application may have made it PAST_DUE while nothing is unpaid, or ACTIVE while retries run: the
    account decides. Otherwise no payment would ever make the one ACTIVE, and the other would never expire.
    """
    where = {"_id": account.subscription_id, "userId": account.id, "status": {"$in": list(states.LIVE)}}
    found = await transaction.subscriptions.find_one(where)
    if found is not None and found.status != (status := states.of(account)):
        _log.warning("status was changed by another application", user=str(account.id), status=found.status)
        await _patch(transaction, account, "paid" if status == "ACTIVE" else "payment_failed", {})
        found.status = status
    return found


async def _patch(transaction: Database, account: BillingAccount, event: states.Event, values: dict[str, Any]) -> None:
    """Move the subscription along the table of states.
    Raises Conflict where another application has ended it."""
    expected = states.of(account)
    for before, status in sorted(states.TABLE[event].items(), key=lambda each: each[0] != expected):
        where = {"_id": account.subscription_id, "userId": account.id, "status": before}
        if await transaction.subscriptions.patch(where, {"$set": {**values, "status": status}}):
            return
    raise Conflict(f"The subscription cannot be {event.replace('_', ' ')} now")


async def record(transaction: Database, actor: Actor, action: Action, account: BillingAccount, **details: Any) -> None:
    """Write an audit entry about the account's subscription."""
    details = {name: value for name, value in details.items() if value is not None}
    await records.write(
        transaction,
        actor,
        action,
        resource="subscriptions",
        resource_id=account.subscription_id,
        user_id=account.id,
        **details,
    )


async def _record_change(transaction: Database, account: BillingAccount, *, before: Terms, after: Terms) -> None:
    """The new plan takes effect; who asked for it is in PLAN_CHANGE_REQUESTED."""
    change = {"before": {"planId": before.plan_id}, "after": {"planId": after.plan_id}}
    await record(transaction, SYSTEM, Action.PLAN_CHANGED, account, **change)
    await notices.changed(transaction, account.id, before=before, after=after)


def _fields(terms: Terms) -> dict[str, Any]:
    return {name: getattr(terms, name) for name in terms.__struct_fields__}
