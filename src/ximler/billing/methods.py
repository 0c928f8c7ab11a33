"""The payment method of a running subscription: replaced on the provider's page, and charged for the open invoice.

A new method is charged for the open invoice at once, also after a hard decline of the old one. Attempts that a user asks
for do not count as retries and do not move the deadline.
"""

from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, payments, subscriptions
from ximler.billing.account import find, in_turn, live, lock, store
from ximler.billing.provider import PaymentMethod, Provider
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount, Method
from ximler.schema.charge import Charge
from ximler.schema.checkout import CHECKOUTS, Checkout
from ximler.schema.invoice import Invoice

__all__ = ["Method", "MethodNeeded", "of_user", "pay", "remove", "save"]


class MethodNeeded(Conflict):
    code = "PAYMENT_METHOD_NEEDED"


async def of_user(database: Database, actor: Actor) -> list[Method]:
    """The actor's payment methods: none, or the one that is charged. One command."""
    account = await find(database, actor.require_user())
    return [account.method] if account.method else []


async def save(database: Database, provider: Provider, checkout: Checkout, method: PaymentMethod) -> None:
    """Replace the payment method by the one entered for `checkout`. Idempotent, safe to race. Audited as the user's."""

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, checkout.user_id)
        saved = {"$set": {"status": "PAID", "tried": method.id}}
        if not await transaction[CHECKOUTS].patch({"_id": checkout.id, "status": "OPEN"}, saved):
            return None
        account.method = Method(id=method.id, label=method.label, fingerprint=method.fingerprint)
        await records.write(
            transaction,
            Actor(kind="user", via="webhook", user_id=account.id),  # entered on the provider's page
            Action.PAYMENT_METHOD_CHANGED,
            resource="users",
            resource_id=account.id,
            user_id=account.id,
            method=method.label,
        )
        charge = await _charge(transaction, account)
        await store(transaction, account)
        return charge

    charge = await in_turn(database, checkout.user_id, write)
    if charge is not None:
        await payments.drive(database, provider, charge.id)


async def remove(database: Database, actor: Actor, method_id: str) -> None:
    """Remove the actor's payment method. Audited.

    Raises NotFound, Conflict while a payment is under way, and MethodNeeded while a subscription will be charged to it.
    """

    async def write(transaction: Database) -> None:
        account = await lock(transaction, actor.require_user())
        if account.method is None or account.method.id != method_id:
            raise NotFound("There is no such payment method")
        if account.charge_id is not None or account.checkout_id is not None:
            raise Conflict("A payment is under way: wait until it is decided")
        await subscriptions.settle_end(transaction, account)
        if account.subscription_id is not None and (account.invoice_id is not None or not account.cancels):
            plan_name, label = live(account).terms.plan_name, account.method.label
            raise MethodNeeded(f"{plan_name} is charged to {label}: replace it, or cancel the subscription first")
        await records.write(
            transaction,
            actor,
            Action.PAYMENT_METHOD_REMOVED,
            resource="users",
            resource_id=account.id,
            user_id=account.id,
            method=account.method.label,
        )
        account.method = None
        await store(transaction, account)

    await in_turn(database, actor.require_user(), write)


async def pay(database: Database, provider: Provider, actor: Actor, invoice_id: ObjectId) -> Invoice:
    """Charge the actor's unpaid invoice now. A pending payment leaves it OPEN; a paid invoice is returned unchanged.

    Raises NotFound, Conflict for one that is void or whose payment is under way, and PaymentDeclined.
    """
    found = await invoices.find(database, actor, invoice_id)

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, actor.require_user())
        if account.invoice_id != invoice_id:
            return None
        if account.charge_id is not None:
            raise Conflict("A payment is under way: wait until it is decided")
        charge = await _charge(transaction, account)
        if charge is None:
            raise payments.PaymentDeclined("There is no payment method that can be charged: add one")
        await store(transaction, account)
        return charge

    charge = await in_turn(database, actor.require_user(), write) if found.status == "OPEN" else None
    if charge is not None:
        charge = await payments.drive(database, provider, charge.id)
        if charge.status == "FAILED":
            raise payments.declined(charge, "the invoice is still unpaid")
    found = await invoices.find(database, actor, invoice_id)
    if found.status == "VOID" or found.kind == "CREDIT_NOTE":
        raise Conflict("There is nothing to pay: the invoice is void, or a credit note")
    return found


async def _charge(transaction: Database, account: BillingAccount) -> Charge | None:
    """Begin a payment of the open invoice; None without an open invoice or a chargeable method."""
    await subscriptions.settle_end(transaction, account)
    if account.invoice_id is None or account.subscription_id is None:
        return None
    invoice = await invoices.get(transaction, account, account.invoice_id)
    description = f"{live(account).terms.plan_name}, again"
    return await subscriptions.collect(transaction, account, invoice, description=description)
