"""Steps of one account that are due by time: renewals, retries, ends of trials and of cancelled subscriptions, refunds.

`tick` decides each step in a transaction and pays outside of it. A completed step is not due any more, so `tick` can be
repeated, run concurrently, and be killed at any moment.
"""

from typing import Literal

import structlog
from bson import ObjectId

from ximler.billing import invoices, payments, refunds, subscriptions
from ximler.billing.account import RETRIES, ends_at, in_turn, live, lock, remind_at, retry_at, store
from ximler.billing.provider import Provider
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount

__all__ = ["MOST_STEPS", "tick"]

_log = structlog.get_logger("ximler.billing")
MOST_STEPS = 50
Step = tuple[Literal["drive", "refund"], str] | bool  # whether a step was taken


async def tick(database: Database, provider: Provider, user_id: ObjectId) -> int:
    """Take the steps that are due for the account, `MOST_STEPS` at most; returns how many. Raises ProviderUnavailable: the rest
    stays due.
    """
    for count in range(MOST_STEPS):
        due = {"_id": user_id, "nextAt": {"$lte": database.clock.now()}}
        if await database[BILLING_ACCOUNTS].find_one(due) is None:  # outside of a transaction: no commit
            return count
        match await in_turn(database, user_id, lambda transaction: _decide(transaction, user_id)):
            case ("drive", charge_id):
                await payments.drive(database, provider, charge_id)
            case ("refund", refund_id):
                await refunds.drive(database, provider, refund_id)
            case False:
                return count
    _log.error("account does not come to rest", user=str(user_id))
    return MOST_STEPS


async def _decide(transaction: Database, user_id: ObjectId) -> Step:
    now = transaction.clock.now()
    account = await lock(transaction, user_id)
    if account.next_at is None or account.next_at > now:
        return False
    if account.refunds and (account.refund_at or now) <= now:
        return "refund", account.refunds[0]
    if account.charge_id is not None:
        return "drive", account.charge_id
    await subscriptions.settle_end(transaction, account)
    result: Step = True
    if account.subscription_id is not None:
        result = await _act(transaction, account)
    await store(transaction, account)
    return result


async def _act(transaction: Database, account: BillingAccount) -> Step:
    now, terms = transaction.clock.now(), live(account).terms
    if account.invoice_id is not None:
        return await _retry(transaction, account, account.invoice_id)
    if now < ends_at(account):
        if (reminder := remind_at(account)) is not None and reminder <= now:
            await subscriptions.remind(transaction, account)
        return True
    if account.cancels:
        await subscriptions.end(transaction, account, "ended")
        return True
    invoice = await subscriptions.renew(transaction, account)
    if not invoice.due_minor:
        return True
    charge = await subscriptions.collect(transaction, account, invoice, description=f"{terms.plan_name}, renewal")
    if charge is None:
        await subscriptions.failed(transaction, account, invoice, "no_payment_method", hard=False)
        return True
    return "drive", charge.id


async def _retry(transaction: Database, account: BillingAccount, invoice_id: ObjectId) -> Step:
    """Charge the open invoice again. The deadline also holds without a chargeable method."""
    plan_name = live(account).terms.plan_name
    invoice = await invoices.get(transaction, account, invoice_id)
    if retry_at(account) is not None:
        account.retries += 1
    charge = await subscriptions.collect(transaction, account, invoice, description=f"{plan_name}, again")
    if charge is not None:
        return "drive", charge.id
    if account.retries >= len(RETRIES):
        await subscriptions.end(transaction, account, "given_up")
    return True
