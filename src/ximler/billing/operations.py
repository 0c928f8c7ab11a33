"""Operators' changes of running subscriptions: extended, paid elsewhere, moved to a new price. Audited."""

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, notices, subscriptions
from ximler.billing.account import ends_at, in_turn, live, lock, store
from ximler.core.actor import Actor
from ximler.core.clock import rfc3339
from ximler.core.errors import Conflict, Invalid
from ximler.core.money import Money
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount
from ximler.schema.charge import CHARGES
from ximler.schema.payment import Payment
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription

__all__ = ["Repriced", "extend", "mark_paid", "reprice"]

_MAX_TEXT = 500
_MOST = timedelta(days=3660)


async def extend(database: Database, actor: Actor, *, user_id: ObjectId, until: datetime, reason: str) -> Subscription:
    """Move the end of the current period, or of the trial, to a later moment,
    at no charge. The user is notified.

    Later periods are counted from `until`. The same `until` again changes nothing. Raises NotFound, Invalid,
    and Conflict while the period is unpaid or a payment is under way.
    """
    actor.require_operator()
    _check(reason=reason)
    until = until.replace(microsecond=0)

    async def write(transaction: Database) -> Subscription:
        account, subscription = await subscriptions.get_live(transaction, user_id)
        before = ends_at(account)
        if until == before:
            return subscription
        if not before < until <= transaction.clock.now() + _MOST:
            raise Invalid.field("until", f"must lie after {rfc3339(before)}, the present end, within ten years")
        if account.invoice_id is not None or account.charge_id is not None:
            raise Conflict("The period is unpaid, or a payment is under way")
        if account.period < 0:
            account.anchor = until
        else:
            account.extended_to = until
        account.reminded = False
        values = {"periodEnd": until}
        if subscription.trial_end is not None and account.period < 0:
            values["trialEnd"] = until
        if account.cancels:
            values["endDate"] = until
        where = {"_id": subscription.id, "userId": user_id}
        await transaction.subscriptions.patch(where, {"$set": values})
        change = {"before": {"periodEnd": before}, "after": {"periodEnd": until}, "reason": reason}
        await subscriptions.record(transaction, actor, Action.SUBSCRIPTION_EXTENDED, account, **change)
        await notices.extended(transaction, user_id, live(account).terms, until=until)
        await store(transaction, account)
        return await transaction.subscriptions.get(where)

    return await in_turn(database, user_id, write)


async def mark_paid(
    database: Database, actor: Actor, *, user_id: ObjectId, invoice_id: ObjectId, method: str, reason: str
) -> Payment:
    """Record that an open invoice was paid without the provider, by `method` ("bank transfer"). Idempotent.

    Takes effect as a payment of the whole amount due. It can be refunded to the credit balance. Raises
    NotFound, Invalid, and Conflict for an invoice that is not open, or whose payment is under way.
    """
    actor.require_operator()
    _check(method=method, reason=reason)

    async def write(transaction: Database) -> Payment:
        account = await lock(transaction, user_id)
        invoice = await invoices.get(transaction, account, invoice_id)
        known = await transaction[CHARGES].find_one({"_id": f"{invoice.key}:outside"})
        if known is not None:
            return await transaction.payments.get({"_id": known.payment_id, "userId": user_id})
        if invoice.status != "OPEN" or account.invoice_id != invoice_id:
            raise Conflict("Only an open invoice of a live subscription can be marked as paid")
        if account.charge_id is not None:
            raise Conflict("A payment is under way: wait until it is decided")
        description = f"{live(account).terms.plan_name}, by {method}"
        payment, _ = await subscriptions.charge_for(
            transaction,
            invoice,
            name="outside",
            description=description,
            method_id="none",
            customer_id="none",
            outside=method,
        )
        if not await subscriptions.paid(transaction, account, invoice):
            raise Conflict("The subscription has ended: nothing is due any more")
        await records.write(
            transaction,
            actor,
            Action.INVOICE_MARKED_PAID,
            resource="payments",
            resource_id=payment.id,
            user_id=user_id,
            amount=str(Money(invoice.due_minor, invoice.currency)),
            method=method,
            reason=reason,
        )
        await store(transaction, account)
        return payment

    return await in_turn(database, user_id, write)


class Repriced(msgspec.Struct, kw_only=True):
    """`moved`: subscribers that get the new price from their next period on, or would with `dry_run`.
    `already`: those that have it. `ending`: cancelled at the end of the period. `other`: another currency or
    interval, or a pending change to another plan.
    """

    plan_id: str
    price_minor: int
    currency: str
    moved: int = 0
    already: int = 0
    ending: int = 0
    other: int = 0


async def reprice(
    database: Database,
    actor: Actor,
    *,
    plan_id: str,
    dry_run: bool = False,
    progress: Callable[[Repriced], object] = lambda _: None,
) -> Repriced:
    """Move the subscribers of a plan to its present price from their next period on.
    Each is notified. Safe to repeat.

    Raises NotFound, and Invalid for a free plan.
    """
    actor.require_operator()
    plan = await database.plans.get({"id": plan_id})
    if plan.price_minor <= 0:
        raise Invalid.field("planId", f"{plan.name} is free")
    result = Repriced(plan_id=plan.id, price_minor=plan.price_minor, currency=plan.currency.upper())
    async for account in database[BILLING_ACCOUNTS].stream({"terms.planId": plan_id}):
        kind = _kind(account, plan)
        if kind == "moved" and not dry_run:
            kind = await _reprice(database, account.id, plan)
        setattr(result, kind, getattr(result, kind) + 1)
        progress(result)
    if not dry_run:
        await records.write(
            database,
            actor,
            Action.PLAN_REPRICED,
            resource="plans",
            resource_id=plan.id,
            price=str(Money(result.price_minor, result.currency)),
            moved=result.moved,
        )
    return result


async def _reprice(database: Database, user_id: ObjectId, plan: Plan) -> str:
    async def write(transaction: Database) -> str:
        account = await lock(transaction, user_id)
        kind = _kind(account, plan)
        if kind == "moved":
            before, terms = subscriptions.upcoming(account, transaction.business).terms, live(account).terms
            await notices.price_changes(
                transaction, user_id, terms.plan_name, plan.price_money, before=before.price_minor, at=ends_at(account)
            )
            account.new_price_minor = plan.price_minor
            await store(transaction, account)
        return kind

    return await in_turn(database, user_id, write)


def _kind(account: BillingAccount, plan: Plan) -> str:
    terms = account.terms
    if account.subscription_id is None or terms is None or terms.plan_id != plan.id or account.pending is not None:
        return "other"
    if (terms.currency, terms.interval) != (plan.currency.upper(), plan.interval):
        return "other"
    if plan.price_minor == (terms.price_minor if account.new_price_minor is None else account.new_price_minor):
        return "already"
    return "ending" if account.cancels else "moved"


def _check(**texts: str) -> None:
    for name, text in texts.items():
        if not text.strip() or len(text) > _MAX_TEXT:
            raise Invalid.field(name, f"1 to {_MAX_TEXT} characters")
