"""Changes of the plan of a live subscription. One function computes both the preview and the change.

By default a change to a dearer plan takes effect now, one to a cheaper plan at the end of the period, and one
to another interval now, with a new anchor. A change that costs something takes effect when it is paid: after
a decline the old plan stays, with its limits.

A coupon is reserved before the payment and confirmed with it; after a decline it can be used again. For a
change at the end of the period it is redeemed now, and can be used again if the change is taken back.

Of two changes the one that was asked for last stands. While the bank decides on the payment of the earlier
one, that one is voided: its payment is refunded if it succeeds. The later one, if it costs something, follows
when the bank has decided (`take_up`), because an account has one payment under way.
"""

from datetime import datetime
from typing import Literal

import msgspec
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, notices, payments, redemptions, states, subscriptions
from ximler.billing.account import balance, current, discount, ends_at, in_turn, live, lock, rebate, store
from ximler.billing.account import find as account_of
from ximler.billing.attempts import refuse_declined
from ximler.billing.coupons import discount_of, normalised
from ximler.billing.methods import MethodNeeded
from ximler.billing.periods import Period, period
from ximler.billing.plans import plan_on_offer
from ximler.billing.pricing import Charge as Priced
from ximler.billing.pricing import Quote, Unused, price
from ximler.billing.provider import Provider
from ximler.billing.redemptions import Reservation
from ximler.billing.stripe_currencies import minimum, step
from ximler.billing.tax import tax_of
from ximler.core.actor import Actor
from ximler.core.business import Business
from ximler.core.errors import Conflict, Invalid, LimitExceeded, NotFound, XimlerError
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount, Method, Rebate, Terms, Wanted
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.invoice import INVOICES
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription

__all__ = ["Change", "When", "change", "clear", "let_go", "preview", "take_up"]

When = Literal["NOW", "PERIOD_END"]
_MOST_LAPSES = 3
_CHANGE = "change"  # in the key of an invoice, and in the ids of its charges


class PaymentUnderWay(Conflict):
    def __init__(self, charge_id: str) -> None:
        super().__init__("A payment is under way: try again when it is decided")
        self.charge_id = charge_id

    @property
    def of_change(self) -> bool:
        return f":{_CHANGE}:" in self.charge_id


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change of plan at a moment. `quote` is the content of its invoice; None if the change is free.
    `waits` for the bank to decide on the payment of an earlier change."""

    plan_id: str
    when: When
    at: datetime
    terms: Terms
    anchor: datetime
    period: Period
    quote: Quote | None = None
    waits: bool = False

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
    off, now, undecided = None, database.clock.now(), account.charge_id
    if coupon:
        fingerprint = _method(account).fingerprint
        off = rebate(discount_of(await redemptions.check(database, actor, coupon, plan=plan, fingerprint=fingerprint)))
    if undecided is None or not PaymentUnderWay(undecided).of_change:
        return compute(account, plan, when, now, database.business, coupon=off)
    found = compute(account, plan, when, now, database.business, coupon=off, instead_of=undecided)
    return msgspec.structs.replace(found, waits=found.due_minor > 0)


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
    stands: it follows the payment of the other, or replaces it while the bank decides on that. Raises
    NotFound, Invalid, Conflict while another payment is undecided or the subscription is unpaid or about to
    end, TooManyDeclines, and PaymentDeclined: then nothing has changed. With a coupon also MethodNeeded and
    the errors of `redemptions.reserve`.
    """
    plan = await plan_on_offer(database, plan_id)
    undecided, lapsed = None, 0
    while True:
        try:
            if coupon:
                return await _change_with_coupon(database, provider, actor, plan, when, coupon, undecided)
            return await _change(database, provider, actor, plan, when, None, undecided)
        except PaymentUnderWay as problem:
            if await _follow(database, provider, problem, plan, coupon):
                return await _present(database, actor)
            undecided = problem.charge_id
        except redemptions.ReservationLapsed:  # given back with another change that was asked for at this moment
            lapsed += 1
            if lapsed > _MOST_LAPSES:
                raise


async def _follow(
    database: Database, provider: Provider, earlier: PaymentUnderWay, plan: Plan, coupon: str | None
) -> bool:
    """Complete the payment of an earlier request as far as the bank lets it.

    True if the same request is being paid. Raises PaymentDeclined if it was declined: several clicks try a
    card once. Raises the earlier payment if it is undecided and of another kind.
    """
    charge = await payments.drive(database, provider, earlier.charge_id)
    if charge.status == "PENDING" and not earlier.of_change:
        raise earlier
    if charge.status == "PAID":
        return False
    invoice = await database[INVOICES].get({"userId": charge.user_id, "_id": charge.invoice_id})
    code = normalised(coupon) if coupon else None
    same = (invoice.kind, invoice.plan_id, invoice.coupon) == ("CHANGE", plan.id, code)
    if same and charge.status == "FAILED":
        raise payments.declined(charge, "the plan stays")
    return same and invoice.status == "DRAFT"


async def _change_with_coupon(
    database: Database,
    provider: Provider,
    actor: Actor,
    plan: Plan,
    when: When | None,
    coupon: str,
    undecided: str | None,
) -> Subscription:
    user_id = actor.require_user()
    account = await account_of(database, user_id)
    if account.terms is not None and await _asked(database, account, plan, coupon):
        return await database.subscriptions.get({"_id": account.subscription_id, "userId": user_id})
    compute(account, plan, when, database.clock.now(), database.business, instead_of=undecided)
    method = _method(account)
    held = await redemptions.reserve(database, actor, coupon, plan=plan)
    try:
        await redemptions.claim_fingerprint(database, held.id, held.token, method.fingerprint)
        return await _change(database, provider, actor, plan, when, held, undecided)
    except XimlerError:
        await let_go(database, user_id, held)
        raise


async def _change(
    database: Database,
    provider: Provider,
    actor: Actor,
    plan: Plan,
    when: When | None,
    held: Reservation | None,
    undecided: str | None,
) -> Subscription:
    """`undecided`: the charge of an earlier change that the bank has not decided on. This one replaces it."""
    coupon = rebate(held.discount) if held else None

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, actor.require_user())
        if not held and account.terms is not None and account.terms.plan_id == plan.id:  # changed already, or to stay
            await _stay(transaction, actor, account, undecided)
            return None
        now = transaction.clock.now()
        made = compute(account, plan, when, now, transaction.business, coupon=coupon, instead_of=undecided)
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
        code = coupon.code if coupon else None
        if account.charge_id is not None:
            await _give_way(transaction, account, code)
        if account.wanted is not None:
            await subscriptions.drop_wanted(transaction, account, coupon=code)
            await _show_pending(transaction, account, account.pending.plan_id if account.pending else None)
        waits = made.due_minor > 0 and account.charge_id is not None
        if waits or made.when == "PERIOD_END":
            await subscriptions.drop_pending(transaction, account)
            if waits:
                account.wanted = Wanted(plan_id=plan.id, when=made.when, rebate=coupon)
            else:
                account.pending, account.pending_rebate = made.terms, coupon
            if held and waits:
                await redemptions.hold(transaction, held.id, held.token, now + redemptions.HELD_WHILE_PAID)
            elif held:
                await redemptions.confirm(transaction, held.id, held.token, subscription_id=subscription_id)
            await _show_pending(transaction, account, plan.id)
            await store(transaction, account)
            return None
        if held:
            await redemptions.hold(transaction, held.id, held.token, now + redemptions.HELD_WHILE_PAID)
        if made.due_minor:
            refuse_declined(account, now)
            if subscriptions.chargeable_of(account) is None:
                raise payments.PaymentDeclined("There is no payment method that can be charged: add one")
        charge = await _make(transaction, account, plan, made, coupon, by_customer=True)
        await store(transaction, account)
        return charge

    charge = await in_turn(database, actor.require_user(), write)
    if charge is not None:
        charge = await payments.drive(database, provider, charge.id)
        if charge.status == "FAILED":
            raise payments.declined(charge, "the plan stays")
    return await _present(database, actor)


async def _make(
    transaction: Database,
    account: BillingAccount,
    plan: Plan,
    made: Change,
    coupon: Rebate | None,
    *,
    by_customer: bool,
) -> Charge | None:
    """The change's invoice and charge. Without an amount due it takes effect, and None is returned."""
    account.changes += 1
    # Of a free change nothing is asked for, also where the balance is owed: it stays for the next invoice.
    free = msgspec.structs.replace(price(made.terms.currency), balance_minor=balance(account, made.terms.currency))
    subscription_id = live(account).subscription_id
    invoice = await invoices.make(
        transaction,
        account,
        made.quote or free,
        key=f"{subscription_id}:{_CHANGE}:{account.changes}",
        kind="CHANGE",
        status="DRAFT",
        subscription_id=subscription_id,
        plan_id=plan.id,
        period=made.period,
        terms=made.terms,
        anchor=made.anchor,
        coupon=coupon.code if coupon else None,
    )
    if not made.due_minor:
        await subscriptions.paid(transaction, account, invoice)
        return None
    description = f"Change to {plan.name}"
    return await subscriptions.collect(transaction, account, invoice, description=description, by_customer=by_customer)


async def take_up(transaction: Database, account: BillingAccount, wanted: Wanted) -> Charge | None:
    """Make the change that has waited for the payment of another. The caller stores the account.

    If it is not possible any more, the plan stays, and the user is notified.
    """
    account.wanted = None
    await _show_pending(transaction, account, None)
    now = transaction.clock.now()
    try:
        plan = await plan_on_offer(transaction, wanted.plan_id)
        made = compute(account, plan, wanted.when, now, transaction.business, coupon=wanted.rebate)
        if made.due_minor:
            refuse_declined(account, now)
        if made.due_minor and subscriptions.chargeable_of(account) is None:
            raise payments.PaymentDeclined("there is no payment method that can be charged")
    except (Conflict, NotFound, Invalid, LimitExceeded) as problem:
        if wanted.rebate is not None:
            await redemptions.undo(transaction, wanted.rebate.code, account.id, "RESERVED")
        why = problem.message[:1].lower() + problem.message[1:]
        await notices.stays(transaction, account.id, live(account).terms, why=why)
        return None
    return await _make(transaction, account, plan, made, wanted.rebate, by_customer=False)


async def _give_way(transaction: Database, account: BillingAccount, coupon: str | None) -> bool:
    """The change whose payment the bank has not decided on does not happen; False if it was voided before.
    A `coupon` that the next one has as well stays reserved."""
    charge = await transaction[CHARGES].get(str(account.charge_id))
    invoice = await invoices.get(transaction, account, charge.invoice_id)
    if invoice.kind != "CHANGE" or invoice.status != "DRAFT":
        return False
    await subscriptions.void_change(transaction, account, invoice, coupon=coupon)
    return True


async def _stay(transaction: Database, actor: Actor, account: BillingAccount, undecided: str | None) -> None:
    """The plan stays: withdraw the changes that are pending or being paid. Audited."""
    if account.charge_id not in (None, undecided) and PaymentUnderWay(str(account.charge_id)).of_change:
        raise PaymentUnderWay(str(account.charge_id))
    pending = account.pending or account.wanted
    paying = undecided is not None and account.charge_id == undecided
    gave_way = paying and await _give_way(transaction, account, None)
    if pending is not None or gave_way:
        await _withdraw(transaction, actor, account, pending.plan_id if pending else None)
        await store(transaction, account)


async def _present(database: Database, actor: Actor) -> Subscription:
    account = await account_of(database, actor.require_user())
    return await database.subscriptions.get({"_id": account.subscription_id, "userId": account.id})


async def clear(database: Database, actor: Actor) -> Subscription:
    """Withdraw the pending change. Audited. Raises NotFound, and Conflict if there is none."""

    async def write(transaction: Database) -> Subscription:
        account = await lock(transaction, actor.require_user())
        pending = account.pending or account.wanted
        if pending is None or account.subscription_id is None:
            raise Conflict("No change of plan is pending")
        await _withdraw(transaction, actor, account, pending.plan_id)
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
    coupon: Rebate | None = None,
    instead_of: str | None = None,
) -> Change:
    """Compute the change at this moment. `coupon` replaces the one that applied. `instead_of`: the charge of
    an earlier change that gives way. Pure. Raises NotFound, Conflict."""
    now = now.replace(microsecond=0)
    old, anchor = account.terms, account.anchor
    if old is None or anchor is None or account.subscription_id is None:
        raise NotFound("You have no subscription")
    if account.charge_id not in (None, instead_of):
        raise PaymentUnderWay(str(account.charge_id))
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
    applied = coupon or old.rebate
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
    if (pending := account.pending or account.wanted) is not None:
        agreed, code = account.wanted.rebate if account.wanted else account.pending_rebate, normalised(coupon)
        return pending.plan_id == plan.id and agreed is not None and agreed.code == code
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


async def _withdraw(transaction: Database, actor: Actor, account: BillingAccount, plan_id: str | None) -> None:
    """Withdraw the pending change of the locked account. Audited."""
    await records.write(
        transaction,
        actor,
        Action.PLAN_CHANGE_WITHDRAWN,
        resource="subscriptions",
        resource_id=account.subscription_id,
        user_id=account.id,
        planId=plan_id,
    )
    await subscriptions.drop_pending(transaction, account)
    await _show_pending(transaction, account, None)


async def _show_pending(transaction: Database, account: BillingAccount, plan_id: str | None) -> None:
    """Write the pending plan to the subscription, where applications read it."""
    await subscriptions.settle_end(transaction, account)
    where = {"_id": account.subscription_id, "userId": account.id, "status": states.guard("changed")}
    if not await transaction.subscriptions.patch(where, {"$set": {"pendingPlanId": plan_id}}):
        raise Conflict("The subscription cannot be changed now")
