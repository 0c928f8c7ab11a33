"""The billing account of a user, and its credit balance. Owns `billingaccounts` and `credits`.

Every step of billing is one transaction, run by `in_turn`, that begins with `lock` or `hold` and ends with
`store`. Steps of one user conflict on the account, so the server serialises them across processes. Within a
process they queue instead: n transactions that conflict are retried about n²/2 times.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec
import structlog
from bson import ObjectId

from ximler.billing import movements
from ximler.billing.periods import Period, period
from ximler.billing.pricing import Discount, Tax
from ximler.billing.tax import tax_of
from ximler.core.business import Business
from ximler.core.errors import Conflict
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.failures import DatabaseUnavailable, DocumentExists
from ximler.database.in_step import in_step
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount, Method, Rebate, Recurring, Terms
from ximler.schema.credit import CREDITS, Credit

__all__ = [
    "MOST_METHODS", "RETRIES", "AccountChanged", "balance", "current", "decline", "discount", "each_in_turn", "ends_at",
    "ensure", "find", "hold", "in_turn", "keep", "live", "lock", "methods", "move", "rebate", "recurring", "remind_at",
    "retry_at", "store",
]  # fmt: skip

RETRIES = tuple(timedelta(days=days) for days in (1, 3, 5, 7))  # after the first failure
MOST_METHODS = 10
_log = structlog.get_logger("ximler.billing")
_REMINDER = timedelta(days=3)  # before a trial ends
_YEARLY_REMINDER = timedelta(days=14)  # before a year is renewed
_KEPT = frozenset({"_id", "revision", "createdAt", "updatedAt"})
_turns: WeakValueDictionary[tuple[int, ObjectId], asyncio.Lock] = WeakValueDictionary()  # by client and user
T = TypeVar("T")
Step = Callable[[Database], Awaitable[T]]
_FIELDS = [name for name in BillingAccount.__struct_encode_fields__ if name not in _KEPT]


async def ensure(database: Database, user_id: ObjectId) -> None:
    """Create the account if it is missing. Outside of a transaction."""
    if await database[BILLING_ACCOUNTS].find_one({"_id": user_id}) is None:
        with contextlib.suppress(DocumentExists):
            await database[BILLING_ACCOUNTS].insert(BillingAccount(id=user_id))


async def find(database: Database, user_id: ObjectId) -> BillingAccount:
    """The stored account, or an empty one."""
    return await database[BILLING_ACCOUNTS].find_one({"_id": user_id}) or BillingAccount(id=user_id)


async def in_turn(database: Database, user_id: ObjectId, body: Step[T]) -> T:
    """Run a step of the user's billing in a transaction, after the steps of the user that wait already.

    As in `Database.transaction`, `body` may run more than once. Inside a transaction it joins that one.
    """
    if database.session is not None:
        return await body(database)
    async with _turn(database, user_id):
        return await database.transaction(body)


async def each_in_turn(database: Database, steps: Mapping[ObjectId, Step[T]]) -> dict[ObjectId, T | Exception]:
    """A step of each of several users, by user, in one transaction if possible. Raises DatabaseUnavailable.

    If a step fails or conflicts with another process, the halves are tried apart, down to the single step. A
    step that fails concerns its user only: its result is the error.
    """
    async with AsyncExitStack() as turns:
        for user_id in sorted(steps):  # in one order, so that two batches never wait for each other
            await turns.enter_async_context(_turn(database, user_id))
        return await _each(database, list(steps.items()))


async def _each(database: Database, steps: list[tuple[ObjectId, Step[T]]]) -> dict[ObjectId, T | Exception]:
    try:
        if len(steps) == 1:
            return {steps[0][0]: await database.transaction(steps[0][1])}
        results = await in_step(database, [step for _, step in steps])
        return {user_id: result for (user_id, _), result in zip(steps, results, strict=True)}
    except DatabaseUnavailable:
        raise
    except Exception as problem:
        if len(steps) == 1:
            return {steps[0][0]: problem}
        _log.debug("steps are taken apart", steps=len(steps), reason=str(problem))
    half = len(steps) // 2
    return await _each(database, steps[:half]) | await _each(database, steps[half:])


def _turn(database: Database, user_id: ObjectId) -> asyncio.Lock:
    return _turns.setdefault((id(database.client), user_id), asyncio.Lock())


async def lock(transaction: Database, user_id: ObjectId) -> BillingAccount:
    """Lock the account for this transaction and return it.
    Change its attributes, then `store` it. One command."""
    found = await transaction[BILLING_ACCOUNTS].find_and_patch({"_id": user_id}, {"$inc": {"revision": 1}})
    if found is None:  # erased with the user; a late payment may still arrive
        found = await transaction[BILLING_ACCOUNTS].insert(BillingAccount(id=user_id))
    return found


async def hold(transaction: Database, user_id: ObjectId) -> BillingAccount:
    """As `lock`, with a read: for steps that write nothing, or end with `store`.

    A transaction reads and writes the account in one snapshot of the server, and `store` always changes it.
    So if another step has stored the account since this read, `store` conflicts and the whole step runs
    again. A step that writes nothing needs no lock: the account may change a moment later in any case.
    """
    return await transaction[BILLING_ACCOUNTS].find_one({"_id": user_id}) or await lock(transaction, user_id)


class AccountChanged(Conflict):
    """Another step has stored the account since it was read."""


async def store(transaction: Database, account: BillingAccount) -> None:
    """Write the account. One command; another one if its recurring revenue has changed.

    Raises AccountChanged where the account was read before this transaction, and another step was faster.
    """
    await movements.follow(transaction, account, recurring(account, transaction.business))
    now = transaction.clock.now()
    account.next_at = _next_at(account, now)
    # Encoded as a whole: `patch` checks each of the 30 fields by itself, which takes several times as long.
    stored = codec_of(BillingAccount).encode(account, now.replace(tzinfo=None))
    values = {name: stored[name] for name in _FIELDS if name in stored}
    gone = dict.fromkeys((name for name in _FIELDS if name not in stored), "")
    # Without the increment, an account that is stored unchanged within a millisecond is not written,
    # and does not conflict.
    change = {"$set": values | {"updatedAt": now}, "$inc": {"revision": 1}} | ({"$unset": gone} if gone else {})
    if not await transaction[BILLING_ACCOUNTS].rewrite({"_id": account.id, "revision": account.revision}, change):
        raise AccountChanged("Another step of billing was faster: try again")
    account.revision += 1


def balance(account: BillingAccount, currency: str) -> int:
    """The credit balance in minor units; a negative one is owed."""
    return int(account.balances.get(currency, 0))


async def move(
    transaction: Database, account: BillingAccount, *, key: str, currency: str, amount_minor: int, reason: str
) -> None:
    """Add to the locked account's balance, with an entry in the ledger. One command; none for zero."""
    if not amount_minor:
        return
    await transaction[CREDITS].insert(
        Credit(id=key, user_id=account.id, currency=currency, amount_minor=amount_minor, reason=reason)
    )
    account.balances = {**account.balances, currency: balance(account, currency) + amount_minor}


def discount(rebate: Rebate | None, plan_id: str) -> Discount | None:
    """The discount that pricing applies to the plan for a stored rebate."""
    if rebate is None:
        return None
    percent = None if rebate.percent is None else Decimal(rebate.percent)
    return Discount(
        code=rebate.code,
        currency=rebate.currency,
        percent=percent,
        minor=rebate.minor,
        renewals=rebate.renewals,
        plans=tuple(rebate.plans),
    ).of(plan_id)


def rebate(discount: Discount | None) -> Rebate | None:
    """The stored form of a discount."""
    if discount is None:
        return None
    values = msgspec.structs.asdict(discount)
    percent = None if discount.percent is None else str(discount.percent)
    return Rebate(**values | {"percent": percent, "plans": list(discount.plans)})


def methods(account: BillingAccount) -> list[Method]:
    """The payment methods, the default first."""
    return [account.method, *account.other_methods] if account.method else []


def keep(account: BillingAccount, added: Method, *, default: bool) -> None:
    """Add a payment method. It replaces the same card, which was entered earlier,
    and the oldest where there are too many."""
    others = [each for each in methods(account) if each.fingerprint != added.fingerprint]
    if default or account.method is None or account.method.fingerprint == added.fingerprint:
        account.method = added
    else:
        others = [added, *others[1:]]  # without the default, which stays
    account.other_methods = others[: MOST_METHODS - 1]


def decline(account: BillingAccount, method_id: str) -> None:
    """A payment method was declined for good."""
    for each in methods(account):
        each.declined = each.declined or each.id == method_id


class Live(NamedTuple):
    """The parts of an account that are set while its subscription is live."""

    subscription_id: ObjectId
    terms: Terms
    anchor: datetime


def live(account: BillingAccount) -> Live:
    """Raises RuntimeError without a live subscription: callers check first."""
    if account.subscription_id is None or account.terms is None or account.anchor is None:
        raise RuntimeError(f"the account {account.id} has no live subscription")
    return Live(account.subscription_id, account.terms, account.anchor)


def current(account: BillingAccount) -> Period:
    """The current period; during a trial, the first paid one."""
    _, terms, anchor = live(account)
    found = period(anchor, terms.interval, max(account.period, 0))
    return msgspec.structs.replace(found, end=account.extended_to) if account.extended_to else found


def ends_at(account: BillingAccount) -> datetime:
    """The end of the period or the trial."""
    period = current(account)
    return period.start if account.period < 0 else period.end


def retry_at(account: BillingAccount) -> datetime | None:
    """The time of the next retry, or of giving up; None before the first attempt failed."""
    if account.failed_at is None:
        return None
    return account.failed_at + RETRIES[min(account.retries, len(RETRIES) - 1)]


def remind_at(account: BillingAccount) -> datetime | None:
    """The time of the reminder that a trial ends or a year is renewed; None if none is due any more."""
    if account.reminded or account.cancels:
        return None
    if account.period < 0:
        return ends_at(account) - _REMINDER
    return ends_at(account) - _YEARLY_REMINDER if live(account).terms.interval == "YEAR" else None


def recurring(account: BillingAccount, business: Business) -> Recurring | None:
    """Revenue of the live subscription in a year, without tax; None on a trial, and where it is free."""
    if account.subscription_id is None or account.terms is None or account.period < 0:
        return None
    terms, following, tax = account.terms, account.pending or account.terms, tax_of(business, account)
    annual = _annual(terms, terms.price_minor, terms.rebate, tax)
    if not annual:
        return None
    price = following.price_minor
    if account.pending is None and account.new_price_minor is not None:
        price = account.new_price_minor
    agreed = account.pending_rebate or terms.rebate
    return Recurring(
        subscription_id=account.subscription_id,
        plan_id=terms.plan_id,
        currency=terms.currency,
        annual_minor=annual,
        committed_minor=0 if account.cancels else _annual(following, price, agreed, tax),
        at_risk_minor=annual if account.failed_at is not None else 0,
    )


def _annual(terms: Terms, price_minor: int, rebate: Rebate | None, tax: Tax) -> int:
    off = discount(rebate, terms.plan_id)
    if off is not None and off.renewals is None:
        price_minor -= off.off(price_minor, terms.currency)
    if tax.inclusive:
        price_minor -= tax.of(price_minor)
    return price_minor * movements.YEARLY[terms.interval]


def _next_at(account: BillingAccount, now: datetime) -> datetime | None:
    moments: list[datetime] = []
    if account.refunds:
        moments.append(account.refund_at or now)
    if account.charge_id is not None:
        moments.append(account.charge_at or now)
    elif account.subscription_id is not None:
        if account.wanted is not None:
            moments.append(now)
        elif account.invoice_id is not None:
            moments.append(retry_at(account) or now)
        else:
            end = ends_at(account)
            moments.append(max(end, account.not_before) if account.not_before else end)
            if (reminder := remind_at(account)) is not None:
                moments.append(reminder)
    return min(moments, default=None)
