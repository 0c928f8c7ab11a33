"""Steps of accounts that are due by time:
renewals, retries, ends of trials and of cancelled subscriptions, refunds.

`tick_each` decides a step of each account in a transaction and pays outside of it. A completed step is not
due any more, so it can be repeated, run concurrently, and be killed at any moment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import structlog
from bson import ObjectId

from ximler.billing import changes, invoices, payments, refunds, subscriptions
from ximler.billing.account import RETRIES, each_in_turn, ends_at, find, live, remind_at, store
from ximler.billing.provider import Provider
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount
from ximler.schema.charge import Charge
from ximler.schema.document import Identified
from ximler.schema.user import User

__all__ = ["MOST_STEPS", "tick_each"]

_log = structlog.get_logger("ximler.billing")
MOST_STEPS = 50
_AT_ONCE = 8


class _Drive(NamedTuple):
    """A payment or a refund that goes on at the provider. `charge`: one that was begun in this step."""

    kind: Literal["charge", "refund"]
    id: str
    charge: Charge | None = None


Step = _Drive | bool  # whether a step was taken


async def tick_each(
    database: Database, provider: Provider, user_ids: Sequence[ObjectId]
) -> dict[ObjectId, int | Exception]:
    """Take the steps that are due for these accounts, `MOST_STEPS` of each at most, together where possible.

    Returns the number of steps of each account, or the error that it waits for: the rest of its steps stays
    due. Raises Unavailable without a database.
    """
    results: dict[ObjectId, int | Exception] = dict.fromkeys(user_ids, 0)
    due = list(results)
    for count in range(MOST_STEPS):
        going = []
        steps = await each_in_turn(database, {user_id: _deciding(user_id) for user_id in due})
        driven = await _drive(database, provider, steps)
        for user_id, step in (steps | driven).items():
            if isinstance(step, Exception):
                results[user_id] = step
            elif step is not False:
                results[user_id] = count + 1
                going.append(user_id)
        if not going:
            return results
        where = {"_id": {"$in": going}, "nextAt": {"$lte": database.clock.now()}}
        due = [each.id for each in await database[BILLING_ACCOUNTS].find(where, into=Identified)]
        if not due:
            return results
    for user_id in due:
        _log.error("account does not come to rest", user=str(user_id))
    return results


async def _drive(
    database: Database, provider: Provider, steps: Mapping[ObjectId, Step | Exception]
) -> dict[ObjectId, Step | Exception]:
    """Go on at the provider with what the steps began; returns the failures, by user."""
    drives = {user_id: step for user_id, step in steps.items() if isinstance(step, _Drive)}
    fresh = {user_id: step.charge for user_id, step in drives.items() if step.charge is not None}
    attempts = [payments.Attempt(charge, charge.ticket) for charge in fresh.values()]
    driven = await payments.drive_each(database, provider, attempts)
    failed: dict[ObjectId, Step | Exception] = {}
    for user_id, charge in fresh.items():
        if isinstance(problem := driven[charge.id], Exception):
            failed[user_id] = problem
    others = asyncio.Semaphore(_AT_ONCE)

    async def resume(user_id: ObjectId, step: _Drive) -> None:
        async with others:
            try:
                await (payments if step.kind == "charge" else refunds).drive(database, provider, step.id)
            except Exception as problem:
                failed[user_id] = problem

    await asyncio.gather(*(resume(user_id, step) for user_id, step in drives.items() if step.charge is None))
    return failed


def _deciding(user_id: ObjectId) -> Callable[[Database], Awaitable[Step]]:
    return lambda transaction: _decide(transaction, user_id)


async def _decide(transaction: Database, user_id: ObjectId) -> Step:
    now = transaction.clock.now()
    # As `hold`, but makes no account for a user who was erased since the account was listed as due.
    account = await find(transaction, user_id)
    if account.next_at is None or account.next_at > now:
        return False
    if account.refunds and (account.refund_at or now) <= now:
        return _Drive("refund", account.refunds[0])
    if account.charge_id is not None:
        return _Drive("charge", account.charge_id)
    await subscriptions.settle_end(transaction, account)
    result: Step = True
    if account.subscription_id is not None:
        result = await _act(transaction, account)
    await store(transaction, account)
    return result


async def _act(transaction: Database, account: BillingAccount) -> Step:
    now, terms = transaction.clock.now(), live(account).terms
    if account.wanted is not None:
        begun = await changes.take_up(transaction, account, account.wanted)
        return True if begun is None else _Drive("charge", begun.id, begun)
    if account.invoice_id is not None:
        if await _user(transaction, account) is None:
            await subscriptions.end(transaction, account, "cancelled")
            return True
        return await _retry(transaction, account, account.invoice_id)
    if now < ends_at(account):
        if (reminder := remind_at(account)) is not None and reminder <= now:
            await subscriptions.remind(transaction, account)
        return True
    user = await _user(transaction, account)
    if account.cancels or user is None:
        await subscriptions.end(transaction, account, "ended")
        return True
    invoice = await subscriptions.renew(transaction, account, user)
    if not invoice.due_minor:
        return True
    description = f"{terms.plan_name}, renewal"
    charge = await subscriptions.collect(transaction, account, invoice, description=description, first=True)
    if charge is None:
        await subscriptions.failed(transaction, account, invoice, "no_payment_method")
        return True
    return _Drive("charge", charge.id, charge)


async def _user(transaction: Database, account: BillingAccount) -> User | None:
    """None if the user has closed their account: then they are not charged any more."""
    return await transaction.users.find_one({"_id": account.id})


async def _retry(transaction: Database, account: BillingAccount, invoice_id: ObjectId) -> Step:
    """Charge the open invoice again. The deadline also holds without a chargeable method.

    Retries that were missed, because no worker ran, are one: a card is never charged several times in a row.
    """
    plan_name = live(account).terms.plan_name
    invoice = await invoices.get(transaction, account, invoice_id)
    if account.failed_at is not None:
        since = transaction.clock.now() - account.failed_at
        account.retries = max(account.retries + 1, sum(each <= since for each in RETRIES))
    charge = await subscriptions.collect(transaction, account, invoice, description=f"{plan_name}, again")
    if charge is not None:
        return _Drive("charge", charge.id, charge)
    if account.retries >= len(RETRIES):
        await subscriptions.end(transaction, account, "given_up")
    return True
