"""`billing verify`: derives billing's invariants anew from the documents,
and lists violations. Reads only."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from bson import ObjectId

from ximler.billing import states
from ximler.billing.account import ends_at
from ximler.billing.periods import period
from ximler.core.money import Money
from ximler.database import Database
from ximler.metering.limits import entitlements
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.credit import CREDITS
from ximler.schema.invoice import INVOICES, Invoice
from ximler.schema.invoice_number import INVOICE_NUMBERS
from ximler.schema.redemption import REDEMPTIONS, redemption_id
from ximler.schema.refund import REFUNDS, Refund
from ximler.schema.subscription import Subscription

__all__ = ["verify"]

_USERS = 500


async def verify(database: Database, *, progress: Callable[[int], object] = lambda _: None) -> list[str]:
    """Every contradiction, in a sentence each; none is an empty list.
    `progress` gets the number of accounts."""
    return [
        *await _coupons(database),
        *await _numbers(database),
        *await _accounts(database, progress),
        *await _live(database),
    ]


async def _coupons(database: Database) -> list[str]:
    problems = []
    # Mongoose's version key: the application that made the coupon may have counted uses without redemptions.
    made_elsewhere = {each.id for each in await database.coupons.find({"code": {"$gt": ""}, "__v": {"$gte": 0}})}
    async for coupon in database.coupons.stream({"code": {"$gt": ""}}):
        counted = await database[REDEMPTIONS].count({"code": coupon.code, "counted": True})
        ids = [redemption_id(coupon.code, each["userId"]) for each in coupon.pending.values()]
        marked = {each.token for each in await database[REDEMPTIONS].find({"_id": {"$in": ids}}) if each.counted}
        under_way = len(coupon.pending.keys() - marked)  # counted, and their redemptions not marked yet
        most = max(counted + under_way, coupon.used_count if coupon.id in made_elsewhere else 0)
        if not counted <= coupon.used_count <= most:
            problems.append(
                f"Coupon {coupon.code}: usedCount is {coupon.used_count}, and {counted} redemptions are counted"
            )
        if coupon.max_uses is not None and coupon.used_count > coupon.max_uses:
            problems.append(f"Coupon {coupon.code}: usedCount {coupon.used_count} exceeds maxUses {coupon.max_uses}")
    return problems


async def _numbers(database: Database) -> list[str]:
    problems = []
    for year in await database[INVOICE_NUMBERS].find({}):
        expected = 1
        async for invoice in database[INVOICES].stream(
            {"year": year.year, "serial": {"$gt": 0}}, sort=[("year", 1), ("serial", 1)]
        ):
            if invoice.serial != expected:
                problems.append(f"Invoices of {year.year}: {invoice.serial} follows {expected - 1}")
            expected = (invoice.serial or 0) + 1
        if expected != year.last + 1:
            problems.append(f"Invoices of {year.year}: the last number is {expected - 1}, and the counter {year.last}")
    return problems


async def _accounts(database: Database, progress: Callable[[int], object]) -> list[str]:
    problems: list[str] = []
    batch: list[ObjectId] = []
    count = 0
    async for account in database[BILLING_ACCOUNTS].stream({}):
        batch.append(account.id)
        if len(batch) == _USERS:
            problems += await _of(database, batch)
            count += len(batch)
            progress(count)
            batch = []
    return problems + (await _of(database, batch) if batch else [])


async def _of(database: Database, user_ids: list[ObjectId]) -> list[str]:
    problems: list[str] = []
    of_them = {"$in": user_ids}
    accounts = await database[BILLING_ACCOUNTS].find({"_id": of_them})
    invoices = await database[INVOICES].find_by("userId", user_ids)
    charges = await database[CHARGES].find_by("userId", user_ids)
    refunds = await database[REFUNDS].find_by("userId", user_ids)
    credited = await database[CREDITS].find_by("userId", user_ids)
    payments = {each.id: each for each in await database.payments.find({"userId": of_them, "invoiceId": {"$ne": None}})}
    resolved = await entitlements.resolve(database, user_ids)
    written = {row["_id"]: row for row in await database.raw["entitlements"].find({"_id": of_them}).to_list()}
    for account in accounts:
        who = f"User {account.id}"
        sums: dict[str, int] = defaultdict(int)
        for credit in credited[account.id]:
            sums[credit.currency] += credit.amount_minor
        problems += [
            f"{who}: the balance is {account.balances.get(currency, 0)} {currency}, its entries add up to {sums[currency]}"
            for currency in sums.keys() | account.balances.keys()
            if sums[currency] != account.balances.get(currency, 0)
        ]
        by_invoice: dict[ObjectId, list[Any]] = defaultdict(list)
        for charge in charges[account.id]:
            by_invoice[charge.invoice_id].append(charge)
            payment = payments.get(charge.payment_id)
            status = "REFUNDED" if charge.refunded_minor >= charge.amount_minor else charge.status
            if payment is None or payment.status != status or payment.amount_minor != charge.amount_minor:
                problems.append(f"{who}: the payment of charge {charge.id} is not {status}, or of another amount")
        known = {charge.payment_id for charge in charges[account.id]}
        unknown = [each.id for each in payments.values() if each.user_id == account.id and each.id not in known]
        problems += [f"{who}: payment {payment_id} of an invoice has no charge" for payment_id in unknown]
        problems += _refunds(who, charges[account.id], refunds[account.id], invoices[account.id])
        returned: dict[ObjectId, int] = defaultdict(int)  # of money that no invoice needed
        for refund in refunds[account.id]:
            if refund.note_id is None and refund.status != "FAILED":
                returned[refund.invoice_id] += refund.amount_minor
        for invoice in invoices[account.id]:
            problems += _invoice(who, invoice, by_invoice[invoice.id], returned[invoice.id])
        if account.subscription_id is not None:
            problems += _periods(who, account, invoices[account.id])
            live = {"_id": account.subscription_id, "userId": account.id, "status": {"$in": list(states.LIVE)}}
            subscription = await database.subscriptions.find_one(live)
            if subscription is None:
                problems.append(f"{who}: the account's subscription is not live")
            else:
                problems += _shown(who, account, subscription)
        if (
            (row := written.get(account.id))
            and account.id in resolved
            and row["planId"] != resolved[account.id].plan_id
        ):
            problems.append(f"{who}: limits are of {row['planId']}, and the plan is {resolved[account.id].plan_id}")
    return problems


def _shown(who: str, account: Any, subscription: Subscription) -> list[str]:
    """The subscription says what the account bills."""
    billed = (
        account.terms.plan_id,
        account.terms.price_minor,
        account.terms.currency,
        ends_at(account),
        not account.cancels,
        states.of(account),
    )
    shown = (
        subscription.plan_id,
        subscription.price_minor,
        subscription.currency.upper(),
        subscription.period_end,
        subscription.auto_renew,
        subscription.status,
    )
    names = ("plan", "price", "currency", "end", "autoRenew", "status")
    return [
        f"{who}: the subscription's {name} is {theirs}, and the account's {ours}"
        for name, ours, theirs in zip(names, billed, shown, strict=True)
        if ours != theirs
    ]


def _invoice(who: str, invoice: Invoice, charges: list[Any], returned_minor: int) -> list[str]:
    name = f"{who}: invoice {invoice.number or invoice.key}"
    kept = sum(c.amount_minor for c in charges if c.status == "PAID") - returned_minor
    asked = max(invoice.due_minor, 0) if invoice.status == "PAID" else 0
    problems = []
    if kept != asked:
        problems.append(
            f"{name} is {invoice.status} for {Money(invoice.due_minor, invoice.currency)}, and {kept} was kept"
        )
    lines = sum(line["amount_minor"] for line in invoice.lines if not line.get("included"))
    if lines != invoice.due_minor:
        problems.append(f"{name}: its lines add up to {lines}, and {invoice.due_minor} is due")
    if invoice.total_minor != invoice.due_minor + invoice.balance_before_minor - invoice.balance_after_minor:
        problems.append(f"{name}: total, due and balance contradict each other")
    return problems


def _refunds(who: str, charges: list[Any], refunds: list[Refund], invoices: list[Invoice]) -> list[str]:
    """Refunds never exceed the captured amount, and each has its credit note."""
    problems: list[str] = []
    sums: dict[str, int] = defaultdict(int)
    notes = {each.id: each for each in invoices if each.kind == "CREDIT_NOTE"}
    for refund in refunds:
        if refund.status != "FAILED":
            sums[refund.charge_id] += refund.amount_minor
        if refund.note_id is not None:
            note = notes.pop(refund.note_id, None)
            status = "VOID" if refund.status == "FAILED" else "PAID"
            if note is None or note.total_minor != -refund.amount_minor or note.status != status:
                problems.append(f"{who}: the credit note of refund {refund.id} is missing, or says something else")
    problems += [f"{who}: credit note {note.number or note.key} belongs to no refund" for note in notes.values()]
    for charge in charges:
        if charge.refunded_minor != sums[charge.id]:
            problems.append(f"{who}: charge {charge.id} counts {charge.refunded_minor} refunded, not {sums[charge.id]}")
        if sums[charge.id] > (charge.amount_minor if charge.status == "PAID" else 0):
            problems.append(f"{who}: charge {charge.id} was refunded beyond its amount")
    return problems


def _periods(who: str, account: Any, invoices: list[Invoice]) -> list[str]:
    """Every period since the anchor has an invoice that is paid or open;
    the first may be the purchase's or a change's."""
    covered = {
        i.period_start
        for i in invoices
        if i.subscription_id == account.subscription_id and i.status in ("PAID", "OPEN")
    }
    missing = [
        index
        for index in range(account.period + 1)
        if period(account.anchor, account.terms.interval, index).start not in covered
    ]
    return [f"{who}: period {index} has no invoice" for index in missing]


async def _live(database: Database) -> list[str]:
    """At most one live subscription per user that Ximler bills."""
    rows = await database.subscriptions.aggregate(
        [
            {"$match": {"status": {"$in": list(states.LIVE)}, "periodEnd": {"$ne": None}}},
            {"$group": {"_id": "$userId", "count": {"$sum": 1}}},
            {"$match": {"count": {"$gt": 1}}},
        ]
    )
    return [f"User {row['_id']}: {row['count']} live subscriptions" for row in rows]
