"""Changes of the plan of a live subscription. One function computes both the preview and the change.

By default a change to a dearer plan takes effect now, one to a cheaper plan at the end of the period, and one
to another interval now, with a new anchor. A change that costs something takes effect when it is paid: after
a decline the old plan stays, with its limits.

A coupon is reserved before the payment and confirmed with it; after a decline it can be used again. For a
change at the end of the period it is redeemed now, and can be used again if the change is taken back.
"""

from datetime import datetime
from typing import Literal

import msgspec
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, payments, redemptions, states, subscriptions
from ximler.billing.account import balance, current, discount, ends_at, in_turn, live, lock, rebate, store
from ximler.billing.account import find as account_of
from ximler.billing.attempts import refuse_declined
from ximler.billing.coupons import discount_of, normalised
from ximler.billing.methods import MethodNeeded
from ximler.billing.periods import Period, period
from ximler.billing.plans import plan_on_offer
from ximler.billing.pricing import Charge as Priced
from ximler.billing.pricing import Discount, Quote, Unused, price
from ximler.billing.provider import Provider
from ximler.billing.redemptions import Reservation
from ximler.billing.stripe_currencies import minimum, step
from ximler.billing.tax import tax_of
from ximler.core.actor import Actor
from ximler.core.business import Business
from ximler.core.errors import Conflict, NotFound, XimlerError
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount, Method, Terms
from ximler.schema.charge import Charge
from ximler.schema.invoice import INVOICES
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription

__all__ = ["Change", "When", "change", "clear", "let_go", "preview"]

When = Literal["NOW", "PERIOD_END"]


class PaymentUnderWay(Conflict):
    def __init__(self, charge_id: str) -> None:
        super().__init__("A payment is under way: try again when it is decided")
        self.charge_id = charge_id


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change of plan at a moment. `quote` is the content of its invoice; None if the change is free."""

    plan_id: str
    when: When
    at: datetime
    terms: Terms
    anchor: datetime
    period: Period
    quote: Quote | None = None

    @property
    def due_minor(self) -> int:
        return self.quote.due_minor if self.quote else 0


async def preview(
    database: Database, actor: Actor, *, plan_id: str, when: When | None = None, coupon: str | None = None
) -> Change:
    """The price of a change now. Reads only. Raises NotFound, Invalid, Conflict, and with a coupon
    MethodNeeded and the errors of `redemptions.check`.
    """
    plan = await plan_on_offer(database, plan_id)
    account = await account_of(database, actor.require_user())
    off = None
    if coupon:
        fingerprint = _method(account).fingerprint
        off = discount_of(await redemptions.check(database, actor, coupon, plan=plan, fingerprint=fingerprint))
    return compute(account, plan, when, database.clock.now(), database.business, coupon=off)


async def change(
    database: Database,
    provider: Provider,
    actor: Actor,
    *,
    plan_id: str,
    when: When | None = None,
    coupon: str | None = None,
) -> Subscription:
    """Change the plan. Repeated and concurrent requests charge once. Audited:
    the request, and later its effect.

    A change to the present plan withdraws a pending one. Of two changes the one that was asked for last
    stands: it follows the payment of the other. Raises NotFound, Invalid, Conflict while a payment stays
    undecided or the subscription is unpaid or about to end, TooManyDeclines, and PaymentDeclined: then
    nothing has changed. With a coupon also MethodNeeded and the errors of `redemptions.reserve`.
    """
    plan = await plan_on_offer(database, plan_id)
    followed = None
    while True:
        try:
            if coupon:
                return await _change_with_coupon(database, provider, actor, plan, when, coupon)
            return await _change(database, provider, actor, plan, when, None)
        except PaymentUnderWay as problem:
            if problem.charge_id == followed:
                raise
            followed = problem.charge_id
            await _follow(database, provider, problem, plan, coupon)


async def _follow(
    database: Database, provider: Provider, earlier: PaymentUnderWay, plan: Plan, coupon: str | None
) -> None:
    """Complete the payment of an earlier request. Raises it while the bank decides, and
    PaymentDeclined if the same request was declined: several clicks try a card once.
    """
    charge = await payments.drive(database, provider, earlier.charge_id)
    if charge.status == "PENDING":
        raise earlier
    if charge.status == "FAILED":
        invoice = await database[INVOICES].get({"userId": charge.user_id, "_id": charge.invoice_id})
        code = normalised(coupon) if coupon else None
        if (invoice.kind, invoice.plan_id, invoice.coupon) == ("CHANGE", plan.id, code):
            raise payments.declined(charge, "the plan stays")


async def _change_with_coupon(
    database: Database, provider: Provider, actor: Actor, plan: Plan, when: When | None, coupon: str
) -> Subscription:
    user_id = actor.require_user()
    account = await account_of(database, user_id)
    if account.terms is not None and await _asked(database, account, plan, coupon):
        return await database.subscriptions.get({"_id": account.subscription_id, "userId": user_id})
    compute(account, plan, when, database.clock.now(), database.business)
    method = _method(account)
    held = await redemptions.reserve(database, actor, coupon, plan=plan)
    try:
        await redemptions.claim_fingerprint(database, held.id, held.token, method.fingerprint)
        return await _change(database, provider, actor, plan, when, held)
    except XimlerError:
        await let_go(database, user_id, held)
        raise


async def _change(
    database: Database, provider: Provider, actor: Actor, plan: Plan, when: When | None, held: Reservation | None
) -> Subscription:
    coupon = held.discount if held else None

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, actor.require_user())
        if not held and account.terms is not None and account.terms.plan_id == plan.id:  # changed already, or to stay
            if account.pending is not None:
                await _withdraw(transaction, actor, account, account.pending)
                await store(transaction, account)
            return None
        made = compute(account, plan, when, transaction.clock.now(), transaction.business, coupon=coupon)
        subscription_id, current_terms, _ = live(account)
        await records.write(
            transaction,
            actor,
            Action.PLAN_CHANGE_REQUESTED,
            resource="subscriptions",
            resource_id=subscription_id,
            user_id=account.id,
            before={"planId": current_terms.plan_id},
            after={"planId": plan.id},
            at=made.when,
            **({"coupon": coupon.code} if coupon else {}),
        )
        if made.when == "PERIOD_END":
            await subscriptions.drop_pending(transaction, account)
            account.pending = made.terms
            if held:
                account.pending_rebate = rebate(coupon)
                await redemptions.confirm(transaction, held.id, held.token, subscription_id=subscription_id)
            await _show_pending(transaction, account, plan.id)
            await store(transaction, account)
            return None
        charge = None
        if held:
            until = transaction.clock.now() + redemptions.HELD_WHILE_PAID
            await redemptions.hold(transaction, held.id, held.token, until)
        account.changes += 1
        zero = price(made.terms.currency, balance_minor=balance(account, made.terms.currency))
        invoice = await invoices.make(
            transaction,
            account,
            made.quote or zero,
            key=f"{subscription_id}:change:{account.changes}",
            kind="CHANGE",
            status="DRAFT",
            subscription_id=subscription_id,
            plan_id=plan.id,
            period=made.period,
            terms=made.terms,
            anchor=made.anchor,
            coupon=coupon.code if coupon else None,
        )
        if made.due_minor:
            refuse_declined(account, transaction.clock.now())
            charge = await subscriptions.collect(
                transaction, account, invoice, description=f"Change to {plan.name}", by_customer=True
            )
            if charge is None:
                raise payments.PaymentDeclined("There is no payment method that can be charged: add one")
        else:
            await subscriptions.paid(transaction, account, invoice)
        await store(transaction, account)
        return charge

    charge = await in_turn(database, actor.require_user(), write)
    if charge is not None:
        charge = await payments.drive(database, provider, charge.id)
        if charge.status == "FAILED":
            raise payments.declined(charge, "the plan stays")
    account = await account_of(database, actor.require_user())
    return await database.subscriptions.get({"_id": account.subscription_id, "userId": account.id})


async def clear(database: Database, actor: Actor) -> Subscription:
    """Withdraw the pending change. Audited. Raises NotFound, and Conflict if there is none."""

    async def write(transaction: Database) -> Subscription:
        account = await lock(transaction, actor.require_user())
        if account.pending is None or account.subscription_id is None:
            raise Conflict("No change of plan is pending")
        await _withdraw(transaction, actor, account, account.pending)
        await store(transaction, account)
        return await transaction.subscriptions.get({"_id": account.subscription_id, "userId": account.id})

    return await in_turn(database, actor.require_user(), write)


def compute(
    account: BillingAccount,
    plan: Plan,
    when: When | None,
    now: datetime,
    business: Business,
    *,
    coupon: Discount | None = None,
) -> Change:
    """Compute the change at this moment. `coupon` replaces the one that applied. Pure.
    Raises NotFound, Conflict."""
    now = now.replace(microsecond=0)
    old, anchor = account.terms, account.anchor
    if old is None or anchor is None or account.subscription_id is None:
        raise NotFound("You have no subscription")
    if account.charge_id is not None:
        raise PaymentUnderWay(account.charge_id)
    if account.invoice_id is not None:
        raise Conflict("The subscription is unpaid: pay first")
    if account.cancels:
        raise Conflict("The subscription is about to end: resume it first")
    if plan.currency.upper() != old.currency:
        raise Conflict(f"The subscription is paid in {old.currency}, and {plan.name} in {plan.currency.upper()}")
    if plan.id == old.plan_id and account.pending is None:
        raise Conflict(f"The plan is {plan.name} already")
    if plan.id == old.plan_id and coupon is not None:  # it would lower a period that is paid
        raise Conflict(f"The plan stays {plan.name}: apply the coupon instead, which holds from the next invoice")
    if plan.id == old.plan_id:
        return Change(plan_id=plan.id, when="NOW", at=now, terms=old, anchor=anchor, period=current(account))
    same = plan.interval == old.interval
    if when is None:
        when = "NOW" if not same or plan.price_minor >= old.price_minor else "PERIOD_END"
    applied = rebate(coupon) or old.rebate
    terms = Terms(
        plan_id=plan.id,
        plan_name=plan.name,
        price_minor=plan.price_minor,
        currency=old.currency,
        interval=plan.interval,
        rebate=applied,
    )
    running, off = current(account), discount(applied, plan.id)
    if account.period < 0:  # on trial: free, and it ends when it was to end
        first = period(anchor, plan.interval, 0)
        return Change(plan_id=plan.id, when="NOW", at=now, terms=terms, anchor=anchor, period=first)
    if when == "PERIOD_END":
        return Change(plan_id=plan.id, when=when, at=ends_at(account), terms=terms, anchor=anchor, period=running)
    left = running.remaining_s(now)
    unused = Unused(
        plan_id=old.plan_id,
        description=f"Unused {old.plan_name}",
        net_minor=old.net_minor,
        start=now,
        end=running.end,
        remaining_s=left,
        whole_s=running.seconds,
    )
    new_period = running if same else period(now, plan.interval, 0)
    charge = Priced(
        plan_id=plan.id,
        description=plan.name,
        price_minor=plan.price_minor,
        start=now,
        end=new_period.end,
        discount=off,
        remaining_s=left if same else 1,
        whole_s=running.seconds if same else 1,
    )
    terms.net_minor = plan.price_minor - (off.off(plan.price_minor, old.currency) if off else 0)
    if off and not same:  # a whole period, as a renewal is one
        terms.rebate = rebate(off.renewed(plan.price_minor))
    quote = price(
        old.currency,
        charges=[charge],
        unused=[unused],
        tax=tax_of(business, account),
        balance_minor=balance(account, old.currency),
        minimum_minor=minimum(old.currency),
        step_minor=step(old.currency),
    )
    new_anchor = anchor if same else now
    return Change(plan_id=plan.id, when="NOW", at=now, terms=terms, anchor=new_anchor, period=new_period, quote=quote)


async def _asked(database: Database, account: BillingAccount, plan: Plan, coupon: str) -> bool:
    """Whether the account has this change with this coupon already."""
    if account.pending is not None:
        pending, code = account.pending_rebate, normalised(coupon)
        return account.pending.plan_id == plan.id and pending is not None and pending.code == code
    same = account.terms is not None and account.terms.plan_id == plan.id
    return same and await redemptions.used(database, account.id, coupon)


async def let_go(database: Database, user_id: ObjectId, held: Reservation) -> None:
    """Release the reservation, unless a concurrent change is being paid with it."""

    async def write(transaction: Database) -> None:
        account = await lock(transaction, user_id)
        if account.charge_id is None:
            await redemptions.release(transaction, held.id, held.token)

    await in_turn(database, user_id, write)


def _method(account: BillingAccount) -> Method:
    """The payment method to which a coupon is bound. Raises NotFound, MethodNeeded."""
    if account.subscription_id is None:
        raise NotFound("You have no subscription")
    if account.method is None:
        raise MethodNeeded("Add a payment method first: each can use a coupon once")
    return account.method


async def _withdraw(transaction: Database, actor: Actor, account: BillingAccount, pending: Terms) -> None:
    """Withdraw the pending change of the locked account. Audited."""
    await records.write(
        transaction,
        actor,
        Action.PLAN_CHANGE_WITHDRAWN,
        resource="subscriptions",
        resource_id=account.subscription_id,
        user_id=account.id,
        planId=pending.plan_id,
    )
    await subscriptions.drop_pending(transaction, account)
    await _show_pending(transaction, account, None)


async def _show_pending(transaction: Database, account: BillingAccount, plan_id: str | None) -> None:
    """Write the pending plan to the subscription, where applications read it."""
    await subscriptions.settle_end(transaction, account)
    where = {"_id": account.subscription_id, "userId": account.id, "status": states.guard("changed")}
    if not await transaction.subscriptions.patch(where, {"$set": {"pendingPlanId": plan_id}}):
        raise Conflict("The subscription cannot be changed now")
