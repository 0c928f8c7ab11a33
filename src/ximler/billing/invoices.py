"""Invoices: made from a quote, paid or voided, and numbered without a gap.
Owns `invoices` and `invoicenumbers`.

Amounts and lines never change once an invoice is made. Making it moves the credit balance, voiding it back.
Numbers are given afterwards, in batches, so that payments do not wait for each other; an invoice is numbered
before it is shown.
"""

import contextlib
from datetime import datetime
from typing import Any

import msgspec
from bson import ObjectId

from ximler.billing.account import balance, move
from ximler.billing.periods import Period
from ximler.billing.pricing import Line, Quote
from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.failures import DocumentExists
from ximler.schema.billing_account import BillingAccount, Terms
from ximler.schema.document import Identified
from ximler.schema.invoice import INVOICES, Invoice, InvoiceKind, InvoiceStatus, invoice_id
from ximler.schema.invoice_number import INVOICE_NUMBERS, InvoiceNumber
from ximler.schema.user import User

__all__ = [
    "Invoice",
    "attempted",
    "credit_note",
    "discounted",
    "discounts",
    "find",
    "get",
    "make",
    "number",
    "page",
    "pay",
    "void",
    "withdraw",
]

_BATCH = 500
_PARTIES = ("seller", "buyer_name", "buyer_email", "buyer_address", "buyer_country", "buyer_vat_id")


class _Issued(Identified, kw_only=True):
    """An invoice to be numbered. Its content is not read,
    so that an unreadable one does not hold up the others."""

    user_id: Any


async def make(
    transaction: Database,
    account: BillingAccount,
    quote: Quote,
    *,
    key: str,
    kind: InvoiceKind,
    status: InvoiceStatus,
    subscription_id: ObjectId,
    plan_id: str,
    period: Period | None,
    checkout_id: str | None = None,
    corrects: Invoice | None = None,
    attempts: int = 0,
    terms: Terms | None = None,
    anchor: datetime | None = None,
    coupon: str | None = None,
    user: User | None = None,
) -> Invoice:
    """Make the invoice for an occasion, and move the balance. Raises DocumentExists if the occasion has one.

    The seller's and the buyer's details are stored as they are now; those of a credit note are of the invoice
    it corrects. `user`: the buyer, if they were read in this transaction.
    """
    parties = await _parties(transaction, account, user) if corrects is None else _parties_of(corrects)
    before = balance(account, quote.currency)
    now = transaction.clock.now()
    invoice = Invoice(
        id=invoice_id(key),
        key=key,
        user_id=account.id,
        subscription_id=subscription_id,
        checkout_id=checkout_id,
        corrects_id=corrects.id if corrects else None,
        kind=kind,
        status=status,
        attempts=attempts,
        issued_at=None if status == "DRAFT" else now,
        year=None if status == "DRAFT" else now.year,
        currency=quote.currency,
        lines=[_line(each) for each in quote.lines],
        discount_minor=quote.discount_minor,
        tax_minor=quote.tax_minor,
        total_minor=quote.total_minor,
        due_minor=quote.due_minor,
        balance_before_minor=before,
        balance_after_minor=quote.balance_minor,
        plan_id=plan_id,
        period_start=period.start if period else None,
        period_end=period.end if period else None,
        paid_at=now if status == "PAID" else None,
        terms=terms,
        anchor=anchor,
        coupon=coupon,
        **parties,
    )
    made = await transaction[INVOICES].insert(invoice)
    await move(
        transaction,
        account,
        key=f"invoice:{made.id}",
        currency=quote.currency,
        amount_minor=quote.balance_minor - before,
        reason=f"Invoice for {plan_id}",
    )
    return made


async def credit_note(
    transaction: Database,
    account: BillingAccount,
    invoice: Invoice,
    *,
    key: str,
    amount_minor: int,
    tax_minor: int,
    to_balance: bool,
) -> Invoice:
    """Correct a paid invoice by a refunded amount, of which `tax_minor` is tax.
    `to_balance` moves it to the balance now."""
    net_minor = amount_minor - tax_minor
    description = f"Refund for {invoice.plan_id}"
    lines = [Line(kind="REFUND", description=description, amount_minor=-net_minor, plan_id=invoice.plan_id)]
    if tax_minor:
        tax: dict[str, Any] = next((each for each in invoice.lines if each["kind"] == "TAX"), {})
        lines.append(
            Line(
                kind="TAX",
                description=tax.get("description", "Tax"),
                amount_minor=-tax_minor,
                rate=tax.get("rate"),
                country=tax.get("country"),
            )
        )
    if to_balance:
        lines.append(Line(kind="CREDIT", description="To the credit balance", amount_minor=amount_minor))
    held = balance(account, invoice.currency)
    quote = Quote(
        currency=invoice.currency,
        lines=tuple(lines),
        discount_minor=0,
        tax_minor=-tax_minor,
        total_minor=-amount_minor,
        due_minor=0 if to_balance else -amount_minor,
        balance_minor=held + amount_minor if to_balance else held,
    )
    return await make(
        transaction,
        account,
        quote,
        key=key,
        kind="CREDIT_NOTE",
        status="PAID",
        subscription_id=invoice.subscription_id,
        plan_id=invoice.plan_id,
        period=None,
        corrects=invoice,
    )


async def withdraw(transaction: Database, account: BillingAccount, note_id: ObjectId) -> None:
    """Void a credit note after its refund has failed or was withdrawn."""
    where = {"userId": account.id, "_id": note_id, "kind": "CREDIT_NOTE"}
    await transaction[INVOICES].patch(where, {"$set": {"status": "VOID"}})


async def get(database: Database, account: BillingAccount, which: ObjectId) -> Invoice:
    return await database[INVOICES].get({"userId": account.id, "_id": which})


async def discounts(database: Database, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Discounts on paid invoices issued in `[start, end)`, by coupon and currency, the largest first."""
    rows = await database[INVOICES].aggregate(
        [
            {"$match": {"issuedAt": {"$gte": start, "$lt": end}, "status": "PAID", "discountMinor": {"$gt": 0}}},
            {"$project": {"userId": 1, "currency": 1, "lines": 1}},
            {"$unwind": "$lines"},
            {"$match": {"lines.kind": "DISCOUNT"}},
            {
                "$group": {
                    "_id": {"code": "$lines.description", "currency": "$currency"},
                    "invoices": {"$addToSet": "$_id"},
                    "customers": {"$addToSet": "$userId"},
                    "discount": {"$sum": "$lines.amount_minor"},
                }
            },
            {"$project": {"invoices": {"$size": "$invoices"}, "customers": {"$size": "$customers"}, "discount": 1}},
            {"$sort": {"discount": 1, "_id": 1}},
        ]
    )
    return [
        {
            **row["_id"],
            "invoices": row["invoices"],
            "customers": row["customers"],
            "discount_minor": -row["discount"],
        }
        for row in rows
    ]


async def discounted(
    database: Database, start: datetime, end: datetime, code: str, *, first: int, after: Position | None
) -> Page[Invoice]:
    """The invoices behind the discounts of a coupon, latest first."""
    where = {
        "issuedAt": {"$gte": start, "$lt": end},
        "status": "PAID",
        "discountMinor": {"$gt": 0},
        "lines": {"$elemMatch": {"kind": "DISCOUNT", "description": code}},
    }
    return await database[INVOICES].page(where, first=first, after=after, by="issuedAt")


async def attempted(transaction: Database, invoice: Invoice, number: int) -> None:
    await transaction[INVOICES].patch({"userId": invoice.user_id, "_id": invoice.id}, {"$set": {"attempts": number}})


async def pay(transaction: Database, invoice: Invoice) -> None:
    """Mark the invoice paid, and issue a draft."""
    now = transaction.clock.now()
    values: dict[str, Any] = {"status": "PAID", "paidAt": now}
    if invoice.issued_at is None:
        values |= {"issuedAt": now, "year": now.year}
    await transaction[INVOICES].patch({"userId": invoice.user_id, "_id": invoice.id}, {"$set": values})


async def void(transaction: Database, account: BillingAccount, invoice: Invoice) -> None:
    """Void an unpaid invoice and return the credit it used to the balance.
    No effect on a paid or void one."""
    where = {"userId": invoice.user_id, "_id": invoice.id, "status": {"$in": ["DRAFT", "OPEN"]}}
    if await transaction[INVOICES].patch(where, {"$set": {"status": "VOID"}}):
        await move(
            transaction,
            account,
            key=f"void:{invoice.id}",
            currency=invoice.currency,
            amount_minor=invoice.balance_before_minor - invoice.balance_after_minor,
            reason=f"Voided invoice for {invoice.plan_id}",
        )


async def number(database: Database) -> int:
    """Number issued invoices, in the order of issue; returns how many. Safe to race and to kill:
    a batch is a transaction."""
    count, year = 0, database.clock.now().year
    for each in (year - 1, year):
        while done := await _number(database, each):
            count += done
    return count


async def page(database: Database, actor: Actor, *, first: int = 20, after: Position | None = None) -> Page[Invoice]:
    """The actor's invoices, newest first, drafts left out. One command, once all are numbered."""
    where = {"userId": actor.require_user(), "year": {"$gt": 0}}
    found = await database[INVOICES].page(where, first=first, after=after)
    if any(each.serial is None for each in found.items):
        await number(database)
        found = await database[INVOICES].page(where, first=first, after=after)
    return found


async def find(database: Database, actor: Actor, which: ObjectId) -> Invoice:
    """The actor's invoice, with its number. Raises NotFound, also for a draft.
    One command, once it is numbered."""
    where = {"userId": actor.require_user(), "_id": which, "year": {"$gt": 0}}
    found = await database[INVOICES].find_one(where)
    if found is not None and found.serial is None:
        await number(database)
        found = await database[INVOICES].find_one(where)
    if found is None:
        raise NotFound("There is no such invoice")
    return found


async def _number(database: Database, year: int) -> int:
    waiting = {"year": year, "serial": None}
    if await database[INVOICES].find_one(waiting, into=_Issued) is None:
        return 0
    with contextlib.suppress(DocumentExists):
        await database[INVOICE_NUMBERS].insert(InvoiceNumber(year=year))

    async def write(transaction: Database) -> int:
        # Concurrent batches conflict at the counter: the second starts anew after the first.
        order = [("issuedAt", 1), ("_id", 1)]
        found = await transaction[INVOICES].find(waiting, into=_Issued, sort=order, limit=_BATCH)
        counter = await transaction[INVOICE_NUMBERS].find_and_patch({"_id": year}, {"$inc": {"last": len(found)}})
        if counter is None:
            raise RuntimeError(f"the counter of {year} was removed")
        first = counter.last - len(found) + 1
        await transaction[INVOICES].patch_each(
            ({"userId": each.user_id, "_id": each.id}, {"$set": {"serial": first + index}})
            for index, each in enumerate(found)
        )
        return len(found)

    return await database.transaction(write)


async def _parties(transaction: Database, account: BillingAccount, user: User | None) -> dict[str, Any]:
    """The details of seller and buyer."""
    user, details = user or await transaction.users.find_one({"_id": account.id}), account.details
    return {
        "seller": transaction.business.seller,
        "buyer_name": (details.name if details else None) or (user.name if user else None),
        "buyer_email": user.email if user else None,
        "buyer_address": details.address if details else None,
        "buyer_country": details.country if details else None,
        "buyer_vat_id": details.vat_id if details else None,
    }


def _parties_of(invoice: Invoice) -> dict[str, Any]:
    return {name: getattr(invoice, name) for name in _PARTIES}


def _line(line: Any) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(line).items() if value is not None}
