"""The payment methods of a user, ten at most: added on the provider's page; the default one is charged.

A new default is charged for the open invoice at once, also after a hard decline of the old one. Attempts that
a user asks for do not count as retries and do not move the deadline. A removed method is detached at the
provider, by a job.
"""

import contextlib

from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, payments, subscriptions
from ximler.billing.account import find, in_turn, live, lock, store
from ximler.billing.account import keep as add_to
from ximler.billing.account import methods as account_methods
from ximler.billing.attempts import refuse_declined
from ximler.billing.provider import PaymentMethod, Provider, ProviderUnavailable
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound
from ximler.database import Database, outbox
from ximler.schema.billing_account import BillingAccount, Method
from ximler.schema.charge import Charge
from ximler.schema.checkout import CHECKOUTS, Checkout
from ximler.schema.document import Document
from ximler.schema.invoice import Invoice

__all__ = ["DETACH", "Detached", "Method", "MethodNeeded", "keep", "make_default", "of_user", "pay", "remove", "save"]


class MethodNeeded(Conflict):
    code = "PAYMENT_METHOD_NEEDED"


class Detached(Document, kw_only=True):
    user_id: ObjectId
    method_id: str


DETACH = outbox.job("billing.detach", Detached)  # done by `billing.erasure`


async def of_user(database: Database, actor: Actor) -> list[Method]:
    """The actor's payment methods, the default first. One command."""
    return account_methods(await find(database, actor.require_user()))


async def keep(
    transaction: Database,
    account: BillingAccount,
    added: PaymentMethod,
    *,
    default: bool = True,
    instead_of: str | None = None,
) -> None:
    """Add a method to the locked account, and detach those that it replaces:
    `instead_of`, and what `account.keep` says."""
    before = account_methods(account)
    method = Method(id=added.id, label=added.label, fingerprint=added.fingerprint, expires=added.expires)
    add_to(account, method, default=default)
    account.other_methods = [each for each in account.other_methods if each.id != instead_of]
    kept = {each.id for each in account_methods(account)}
    for each in before:
        if each.id not in kept:
            await DETACH.enqueue(transaction, Detached(user_id=account.id, method_id=each.id))


async def save(database: Database, provider: Provider, checkout: Checkout, method: PaymentMethod) -> None:
    """Add the method entered for `checkout`. Idempotent, safe to race. Audited as the user's."""

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, checkout.user_id)
        saved = {"$set": {"status": "PAID", "tried": method.id}}
        if not await transaction[CHECKOUTS].patch({"_id": checkout.id, "status": "OPEN"}, saved):
            return None
        await keep(transaction, account, method, default=checkout.makes_default)
        charged = account.method is not None and account.method.id == method.id
        action = Action.PAYMENT_METHOD_CHANGED if charged else Action.PAYMENT_METHOD_ADDED
        user = Actor(kind="user", via="webhook", user_id=account.id)  # entered on the provider's page
        await _record(transaction, user, action, account, method.label)
        charge = await _charge(transaction, account) if charged else None
        await store(transaction, account)
        return charge

    charge = await in_turn(database, checkout.user_id, write)
    if charge is not None:
        await payments.drive(database, provider, charge.id)


async def make_default(database: Database, provider: Provider, actor: Actor, method_id: str) -> list[Method]:
    """Charge this method of the actor's from now on;
    an unpaid invoice at once, whose outcome is in `payments`. Audited.

    Raises NotFound, Conflict for one that was declined for good,
    and TooManyDeclines while an invoice is unpaid.
    """

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, actor.require_user())
        chosen = _find(account, method_id)
        if chosen.declined:
            raise Conflict(f"{chosen.label} was declined for good: add it again, or another one")
        if account.method is None or chosen.id == account.method.id:
            return None
        account.other_methods = [each for each in account_methods(account) if each.id != chosen.id]
        account.method = chosen
        await _record(transaction, actor, Action.PAYMENT_METHOD_CHANGED, account, chosen.label)
        charge = await _charge(transaction, account)
        await store(transaction, account)
        return charge

    charge = await in_turn(database, actor.require_user(), write)
    if charge is not None:
        with contextlib.suppress(ProviderUnavailable):  # it is driven on later
            await payments.drive(database, provider, charge.id)
    return await of_user(database, actor)


async def remove(database: Database, actor: Actor, method_id: str) -> None:
    """Remove a payment method of the actor's.
    Of a removed default the newest of the others takes the place. Audited.

    Raises NotFound, Conflict while a payment is under way,
    and MethodNeeded while a subscription will be charged to it.
    """

    async def write(transaction: Database) -> None:
        account = await lock(transaction, actor.require_user())
        removed = _find(account, method_id)
        if account.charge_id is not None or account.checkout_id is not None:
            raise Conflict("A payment is under way: wait until it is decided")
        await subscriptions.settle_end(transaction, account)
        charged = account.subscription_id is not None and (account.invoice_id is not None or not account.cancels)
        if charged and account.method is not None and removed.id == account.method.id:
            plan_name = live(account).terms.plan_name
            raise MethodNeeded(
                f"{plan_name} is charged to {removed.label}: choose another default, or cancel the subscription first"
            )
        left = [each for each in account_methods(account) if each.id != removed.id]
        account.method, account.other_methods = (left[0], left[1:]) if left else (None, [])
        await DETACH.enqueue(transaction, Detached(user_id=account.id, method_id=removed.id))
        await _record(transaction, actor, Action.PAYMENT_METHOD_REMOVED, account, removed.label)
        await store(transaction, account)

    await in_turn(database, actor.require_user(), write)


async def pay(database: Database, provider: Provider, actor: Actor, invoice_id: ObjectId) -> Invoice:
    """Charge the actor's unpaid invoice now. A pending payment leaves it OPEN;
    a paid invoice is returned unchanged.

    Raises NotFound, Conflict for one that is void or whose payment is under way, PaymentDeclined,
    and TooManyDeclines.
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


def _find(account: BillingAccount, method_id: str) -> Method:
    for each in account_methods(account):
        if each.id == method_id:
            return each
    raise NotFound("There is no such payment method")


async def _record(transaction: Database, actor: Actor, action: Action, account: BillingAccount, label: str) -> None:
    await records.write(
        transaction, actor, action, resource="users", resource_id=account.id, user_id=account.id, method=label
    )


async def _charge(transaction: Database, account: BillingAccount) -> Charge | None:
    """Begin a payment of the open invoice; None without an open invoice or a
    chargeable method. Raises TooManyDeclines."""
    await subscriptions.settle_end(transaction, account)
    if account.invoice_id is None or account.subscription_id is None:
        return None
    refuse_declined(account, transaction.clock.now())
    invoice = await invoices.get(transaction, account, account.invoice_id)
    description = f"{live(account).terms.plan_name}, again"
    return await subscriptions.collect(transaction, account, invoice, description=description, by_customer=True)
