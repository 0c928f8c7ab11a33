"""Refunds: money that goes back, to the card or to the credit balance. Owns `refunds`.

The pending and successful refunds of a charge never exceed its captured amount: they are made under the
account's lock, and count from then on. Each has a credit note with its share of the tax. `drive` may be
repeated, and be killed at any moment. A refund may stay pending, and may fail after it succeeded: then its
payment is PAID and can be refunded again.
"""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

import structlog
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, notices
from ximler.billing.account import balance, in_turn, lock, move, store
from ximler.billing.pricing import share
from ximler.billing.provider import Dispute, Provider, ProviderUnavailable, Refunded
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.money import Money
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.invoice import Invoice
from ximler.schema.refund import REFUNDS, Refund, RefundTarget

__all__ = [
    "COLLECTION",
    "Refund",
    "RefundTooHigh",
    "dispute_changed",
    "drive",
    "give_back",
    "made_at",
    "observe",
    "observe_dispute",
    "of_user",
    "refund",
    "sums",
]

_log = structlog.get_logger("ximler.billing")
COLLECTION = REFUNDS.name
_LOOK_AGAIN_S = (30, 300, 3600, 6 * 3600)
_MAX_TEXT = 500
_DISPUTE = "dispute:"  # begins the names of refunds that disputes make
_WITHDRAWN = "The bank returned the payment to the card"  # of a refund to the balance


class RefundTooHigh(Invalid):
    code = "REFUND_TOO_HIGH"


async def refund(
    database: Database,
    provider: Provider,
    actor: Actor,
    *,
    user_id: ObjectId,
    payment_id: ObjectId,
    amount_minor: int | None = None,
    to: RefundTarget = "CARD",
    reason: str,
    key: str | None = None,
) -> Refund:
    """Refund the rest of a payment, or a part of it. Operators only; audited. Idempotent by `key`.

    Raises NotFound, Invalid, RefundTooHigh above the rest, Conflict for a payment that is not paid or is
    disputed. A provider that does not answer is no error: the refund is made and PENDING, and the next
    `billing run` sends it again. The user is notified when the provider accepts it, and again if it fails
    after that.
    """
    actor.require_operator()
    if to == "DISPUTE":
        raise Invalid.field("to", "a refund goes to the CARD or to the BALANCE")
    if not reason.strip() or len(reason) > _MAX_TEXT:
        raise Invalid.field("reason", f"1 to {_MAX_TEXT} characters")
    name = key or str(ObjectId())

    async def write(transaction: Database) -> Refund:
        account = await lock(transaction, user_id)
        charge = await transaction[CHARGES].find_one({"userId": user_id, "paymentId": payment_id})
        if charge is None:
            raise NotFound("There is no such payment, or it was not charged by Ximler")
        known = await transaction[REFUNDS].find_one({"_id": f"{charge.id}:refund:{name}"})
        if known is not None:
            return known
        invoice = await invoices.get(transaction, account, charge.invoice_id)
        if charge.status != "PAID" or invoice.status != "PAID":
            raise Conflict("Only a payment that is PAID can be refunded")
        if charge.outside is not None and to == "CARD":
            raise Invalid.field("to", f"the payment was made by {charge.outside}: refund it to the BALANCE")
        if charge.dispute == "OPEN":
            raise Conflict("The payment is disputed: it can be refunded when the dispute is decided")
        left = charge.amount_minor - charge.refunded_minor
        amount = left if amount_minor is None else amount_minor
        if amount <= 0 or amount > left:
            raise RefundTooHigh.field(
                "amountMinor",
                f"{Money(amount, charge.currency)} cannot be refunded: {Money(left, charge.currency)} is left",
            )
        made = await _make(transaction, account, charge, invoice, amount, name=f"refund:{name}", to=to, reason=reason)
        await records.write(
            transaction,
            actor,
            Action.PAYMENT_REFUNDED,
            resource="payments",
            resource_id=payment_id,
            user_id=user_id,
            amount=str(Money(amount, charge.currency)),
            to=to,
            reason=reason,
        )
        if to == "BALANCE":
            await notices.refunded(transaction, user_id, Money(amount, charge.currency), to_balance=True)
        await store(transaction, account)
        return made

    made = await in_turn(database, user_id, write)
    try:
        return await drive(database, provider, made.id)
    except ProviderUnavailable as problem:
        _log.warning("refund waits", refund=made.id, reason=problem.message)
        return made


async def give_back(transaction: Database, account: BillingAccount, charge: Charge, *, reason: str) -> None:
    """Return a payment that no invoice needed: it came too late, or twice.
    Part of the locked account's step."""
    name = "back" if charge.refunded_minor == 0 else f"back:{charge.refunded_minor}"
    left = charge.amount_minor - charge.refunded_minor
    if left:
        await _make(transaction, account, charge, None, left, name=name, to="CARD", reason=reason)


async def drive(database: Database, provider: Provider, refund_id: str) -> Refund:
    """Bring the refund as far as the provider lets it."""
    ticket, refund = await _ticket(database, refund_id)
    if refund.status != "PENDING":
        return refund
    charge = await database[CHARGES].get(refund.charge_id)
    if refund.provider_id is not None:
        state = await provider.refund_state(refund.provider_id)
    elif charge.dispute == "OPEN":
        state = Refunded(id=None, reference=refund.id, status="PENDING")
    else:
        try:
            state = await provider.refund(
                key=refund.id, intent_id=str(charge.intent_id), amount_minor=refund.amount_minor
            )
        except Invalid as refused:
            state = Refunded(id=None, reference=refund.id, status="FAILED", failure=refused.message)
    return await _apply(database, refund, state, ticket)


async def observe(database: Database, provider: Provider, provider_id: str, reference: str | None = None) -> bool:
    """Apply the provider's current state of a refund; False for one that is not known yet.

    `reference` is our refund's id, where the event says so.
    """
    reference = reference or (await provider.refund_state(provider_id)).reference
    refund = await database[REFUNDS].find_and_patch({"_id": reference}, {"$inc": {"ticket": 1}})
    if refund is None:
        return not reference
    await _apply(database, refund, await provider.refund_state(provider_id), refund.ticket)
    return True


async def observe_dispute(database: Database, provider: Provider, dispute_id: str) -> bool:
    """Apply the provider's current state of a dispute;
    False for a charge that is not known, or not known as paid, yet."""
    reference = (await provider.dispute(dispute_id)).reference
    charge = await database[CHARGES].find_and_patch({"_id": reference}, {"$inc": {"disputeTicket": 1}})
    if charge is None:
        return not reference
    if charge.status != "PAID":
        return False
    await dispute_changed(database, charge, await provider.dispute(dispute_id))
    return True


async def dispute_changed(database: Database, charge: Charge, dispute: Dispute) -> None:
    """Follow a dispute: while it is open nothing is refunded; when it is lost, the bank has taken the money
    back, and may return it later."""

    async def write(transaction: Database) -> None:
        account = await lock(transaction, charge.user_id)
        newer = {"_id": charge.id, "disputeApplied": {"$lt": charge.dispute_ticket}}
        change = {"$set": {"disputeApplied": charge.dispute_ticket, "dispute": dispute.status}}
        known = await transaction[CHARGES].find_and_patch(newer, change)
        if known is None:
            return
        account.refund_at = None
        if dispute.status == "LOST":
            await _lost(transaction, account, known, dispute)
        elif dispute.status == "WON" and dispute.id in known.lost:
            await _regained(transaction, account, known, dispute)
        await records.write(
            transaction,
            SYSTEM,
            Action.PAYMENT_DISPUTED,
            resource="payments",
            resource_id=charge.payment_id,
            user_id=account.id,
            status=dispute.status,
        )
        await store(transaction, account)

    await in_turn(database, charge.user_id, write)


async def of_user(database: Database, user_id: ObjectId) -> list[Refund]:
    """A user's refunds, newest first. One command."""
    return await database[REFUNDS].find({"userId": user_id}, sort=[("createdAt", -1)])


async def made_at(database: Database, ids: Iterable[str]) -> list[datetime]:
    """The times at which refunds were made."""
    return [each.created_at for each in await database[REFUNDS].find({"_id": {"$in": list(ids)}})]


async def sums(
    database: Database, within: dict[str, datetime], period: dict[str, Any]
) -> list[tuple[str, date, int, int]]:
    """Currency, period, number and sum of the refunds made in the range that have not failed.
    `period` is an expression."""
    rows = await database[REFUNDS].aggregate(
        [
            {"$match": {"createdAt": within, "status": {"$ne": "FAILED"}}},
            {
                "$group": {
                    "_id": {"currency": "$currency", "period": period},
                    "count": {"$sum": 1},
                    "amount": {"$sum": "$amountMinor"},
                }
            },
        ]
    )
    return [(row["_id"]["currency"], row["_id"]["period"].date(), row["count"], int(row["amount"])) for row in rows]


async def _make(
    transaction: Database,
    account: BillingAccount,
    charge: Charge,
    invoice: Invoice | None,
    amount_minor: int,
    *,
    name: str,
    to: RefundTarget,
    reason: str,
) -> Refund:
    """A refund under the account's lock. The credit note corrects `invoice`;
    None where the charge paid none."""
    note, tax_minor = None, 0
    if invoice is not None:
        tax_minor = await _tax(transaction, charge, invoice, amount_minor)
        note = await invoices.credit_note(
            transaction,
            account,
            invoice,
            key=f"{charge.id}:{name}",
            amount_minor=amount_minor,
            tax_minor=tax_minor,
            to_balance=to == "BALANCE",
        )
    made = await transaction[REFUNDS].insert(
        Refund(
            id=f"{charge.id}:{name}",
            user_id=account.id,
            charge_id=charge.id,
            payment_id=charge.payment_id,
            invoice_id=charge.invoice_id,
            note_id=note.id if note else None,
            amount_minor=amount_minor,
            tax_minor=tax_minor,
            currency=charge.currency,
            to=to,
            status="PENDING" if to == "CARD" else "SUCCEEDED",
            reason=reason,
        )
    )
    await _count(transaction, charge, amount_minor)
    if to == "CARD":
        account.refunds, account.refund_at = [*account.refunds, made.id], None
    return made


async def _tax(transaction: Database, charge: Charge, invoice: Invoice, amount_minor: int) -> int:
    """The tax in a refund, by cumulative difference:
    all refunds of a payment together contain exactly its tax."""
    whole = max(invoice.total_minor, invoice.due_minor)
    if not invoice.tax_minor or whole <= 0:
        return 0
    earlier = await transaction[REFUNDS].find({"chargeId": charge.id, "status": {"$ne": "FAILED"}})
    refunded = sum(each.amount_minor for each in earlier) + amount_minor
    tax = share(invoice.tax_minor, min(refunded, whole), whole) - sum(each.tax_minor for each in earlier)
    return max(0, min(tax, amount_minor))


async def _count(transaction: Database, charge: Charge, amount_minor: int) -> None:
    """Change the refunded amount of the charge by `amount_minor`, and the status of the payment with it."""
    after = await transaction[CHARGES].find_and_patch({"_id": charge.id}, {"$inc": {"refundedMinor": amount_minor}})
    if after is None or not 0 <= after.refunded_minor <= after.amount_minor:
        raise RuntimeError(f"the charge {charge.id} would be refunded beyond its amount")
    whole = after.refunded_minor == after.amount_minor
    payment = {"_id": charge.payment_id, "userId": charge.user_id}
    await transaction.payments.patch(payment, {"$set": {"status": "REFUNDED" if whole else "PAID"}})


async def _ticket(database: Database, refund_id: str) -> tuple[int, Refund]:
    found = await database[REFUNDS].find_and_patch({"_id": refund_id}, {"$inc": {"ticket": 1}})
    return (found.ticket, found) if found else (0, await database[REFUNDS].get(refund_id))


async def _apply(database: Database, refund: Refund, state: Refunded, ticket: int) -> Refund:
    async def write(transaction: Database) -> Refund:
        account = await lock(transaction, refund.user_id)
        newer = {"_id": refund.id, "applied": {"$lt": ticket}}
        known = await transaction[REFUNDS].find_and_patch(newer, {"$set": {"applied": ticket}})
        if known is None or known.to != "CARD":
            return await transaction[REFUNDS].get(refund.id)
        values: dict[str, Any] = {"providerId": state.id or known.provider_id}
        if state.id is not None and known.provider_id is None and state.status != "FAILED":
            value = Money(known.amount_minor, known.currency)
            await notices.refunded(transaction, account.id, value, to_balance=False)
        if state.status == "PENDING" and known.status == "PENDING":
            wait_s = _LOOK_AGAIN_S[min(known.looks, len(_LOOK_AGAIN_S) - 1)]
            values["looks"] = known.looks + 1
            account.refunds = [*(each for each in account.refunds if each != known.id), known.id]
            account.refund_at = transaction.clock.now() + timedelta(seconds=wait_s)
        elif state.status == "SUCCEEDED" and known.status == "PENDING":
            values["status"] = "SUCCEEDED"
            account.refunds = [each for each in account.refunds if each != known.id]
        elif state.status == "FAILED" and known.status != "FAILED":
            values |= await _failed(transaction, account, known, state.failure or "failed")
        await transaction[REFUNDS].patch({"_id": known.id}, {"$set": values})
        await store(transaction, account)
        return await transaction[REFUNDS].get(known.id)

    return await in_turn(database, refund.user_id, write)


async def _failed(transaction: Database, account: BillingAccount, refund: Refund, failure: str) -> dict[str, Any]:
    """The payment is PAID again. A payment that no invoice needed is added to the credit balance instead."""
    account.refunds = [each for each in account.refunds if each != refund.id]
    charge = await transaction[CHARGES].get(refund.charge_id)
    uncounted = await _uncounted(transaction, charge)
    if refund.note_id is None and refund.amount_minor <= uncounted:
        return {"status": "SUCCEEDED", "to": "DISPUTE", "failure": failure}  # the bank returned it by a lost dispute
    if refund.note_id is None:
        await _credit(transaction, account, refund, "A payment that could not be returned")
        value = Money(refund.amount_minor, refund.currency)
        await notices.refunded(transaction, account.id, value, to_balance=True)
        return {"status": "SUCCEEDED", "to": "BALANCE", "failure": failure}
    await _count(transaction, charge, -refund.amount_minor)
    await invoices.withdraw(transaction, account, refund.note_id)
    if uncounted:  # a dispute was lost meanwhile, and this refund left no room to count all of it
        await transaction[REFUNDS].patch({"_id": refund.id}, {"$set": {"status": "FAILED"}})
        charge.refunded_minor -= refund.amount_minor
        await _count_lost(transaction, account, charge, uncounted)
    if refund.provider_id is not None:  # the user was notified of it
        await notices.refund_failed(transaction, account.id, Money(refund.amount_minor, refund.currency))
    return {"status": "FAILED", "failure": failure}


async def _lost(transaction: Database, account: BillingAccount, charge: Charge, dispute: Dispute) -> None:
    """The amount that the bank took back counts as refunded, once;
    it covers refunds that were not sent yet first."""
    charge.lost = {**charge.lost, dispute.id: dispute.amount_minor}
    await transaction[CHARGES].patch({"_id": charge.id}, {"$set": {"lost": charge.lost}})
    taken = await _uncounted(transaction, charge)
    for refund in await transaction[REFUNDS].find({"chargeId": charge.id, "status": "PENDING", "providerId": None}):
        if refund.amount_minor <= taken:
            taken -= refund.amount_minor
            covered = {"$set": {"to": "DISPUTE", "status": "SUCCEEDED"}}
            await transaction[REFUNDS].patch({"_id": refund.id}, covered)
            account.refunds = [each for each in account.refunds if each != refund.id]
    await _count_lost(transaction, account, charge, taken)


async def _regained(transaction: Database, account: BillingAccount, charge: Charge, dispute: Dispute) -> None:
    """The bank has returned the money of a lost dispute, which no longer counts as refunded.

    A refund that the dispute had replaced is sent to the card. Refunds to the balance that were withdrawn
    because of the dispute are made again.
    """
    charge.lost = {name: minor for name, minor in charge.lost.items() if name != dispute.id}
    await transaction[CHARGES].patch({"_id": charge.id}, {"$set": {"lost": charge.lost}})
    counted = await transaction[REFUNDS].find({"chargeId": charge.id, "to": "DISPUTE", "status": "SUCCEEDED"})
    left = sum(each.amount_minor for each in counted) - int(sum(charge.lost.values()))
    rest = 0  # the part of a refund that counted for other disputes
    for refund in sorted(counted, key=lambda each: (each.created_at, each.id), reverse=True):
        if _of_dispute(refund) and left > 0:
            left -= refund.amount_minor
            rest = max(-left, 0)
            reversed_ = {"$set": {"status": "FAILED", "failure": "The bank reversed the dispute"}}
            await transaction[REFUNDS].patch({"_id": refund.id}, reversed_)
            await _count(transaction, charge, -refund.amount_minor)
            charge.refunded_minor -= refund.amount_minor
            if refund.note_id is not None:
                await invoices.withdraw(transaction, account, refund.note_id)
        elif not _of_dispute(refund) and refund.amount_minor <= left:
            left -= refund.amount_minor
            await _owe(transaction, account, refund)
    if rest:
        await _make_for_dispute(transaction, account, charge, rest, to="DISPUTE", reason="Lost dispute")
    credited = await transaction[REFUNDS].find({"chargeId": charge.id, "to": "BALANCE"})
    withdrawn = sum(each.amount_minor for each in credited if each.failure == _WITHDRAWN and not _of_dispute(each))
    made = sum(each.amount_minor for each in credited if each.status == "SUCCEEDED" and _of_dispute(each))
    amount = min(withdrawn - made, charge.amount_minor - charge.refunded_minor)
    if amount > 0:
        await _make_for_dispute(
            transaction, account, charge, amount, to="BALANCE", reason="A refund to the balance, made again"
        )
        await notices.refunded(transaction, account.id, Money(amount, charge.currency), to_balance=True)


async def _owe(transaction: Database, account: BillingAccount, refund: Refund) -> None:
    """Make a refund that a lost dispute had replaced: to the card, or if that failed, to the balance."""
    if refund.failure is None:
        await transaction[REFUNDS].patch({"_id": refund.id}, {"$set": {"to": "CARD", "status": "PENDING"}})
        account.refunds = [*account.refunds, refund.id]
        return
    await transaction[REFUNDS].patch({"_id": refund.id}, {"$set": {"to": "BALANCE"}})
    await _credit(transaction, account, refund, "A payment that could not be returned")
    value = Money(refund.amount_minor, refund.currency)
    await notices.refunded(transaction, account.id, value, to_balance=True)


async def _make_for_dispute(
    transaction: Database, account: BillingAccount, charge: Charge, amount_minor: int, *, to: RefundTarget, reason: str
) -> None:
    """A refund that a dispute makes."""
    invoice = await invoices.get(transaction, account, charge.invoice_id)
    paid = invoice if invoice.status == "PAID" else None
    number = await transaction[REFUNDS].count({"chargeId": charge.id})
    name = f"{_DISPUTE}{number}"
    made = await _make(transaction, account, charge, paid, amount_minor, name=name, to=to, reason=reason)
    charge.refunded_minor += amount_minor
    if paid is None and to == "BALANCE":  # else its credit note moves the balance
        await _credit(transaction, account, made, reason)


def _of_dispute(refund: Refund) -> bool:
    return refund.id.startswith(f"{refund.charge_id}:{_DISPUTE}")


async def _credit(transaction: Database, account: BillingAccount, refund: Refund, reason: str) -> None:
    """Add a refund to the balance unless its credit note does."""
    await move(
        transaction,
        account,
        key=f"refund:{refund.id}",
        currency=refund.currency,
        amount_minor=refund.amount_minor,
        reason=reason,
    )


async def _uncounted(transaction: Database, charge: Charge) -> int:
    """The part of lost disputes that does not count as refunded yet."""
    if not charge.lost:
        return 0
    counted = await transaction[REFUNDS].find({"chargeId": charge.id, "to": "DISPUTE", "status": {"$ne": "FAILED"}})
    return int(sum(charge.lost.values())) - sum(each.amount_minor for each in counted)


async def _count_lost(transaction: Database, account: BillingAccount, charge: Charge, taken: int) -> None:
    """Count this amount of lost disputes, as far as the charge has it;
    refunds to the balance are withdrawn for it."""
    left = charge.amount_minor - charge.refunded_minor
    withdrawn = await _withdraw(transaction, account, charge, taken - left)
    amount = min(taken, left + withdrawn)
    if amount <= 0:
        return
    await _make_for_dispute(transaction, account, charge, amount, to="DISPUTE", reason="Lost dispute")
    rest = min(withdrawn, left + withdrawn - amount)
    if rest > 0:
        await _make_for_dispute(
            transaction, account, charge, rest, to="BALANCE", reason="The rest of a refund to the balance"
        )
    if withdrawn > rest:
        gone, owed = withdrawn - rest, max(-balance(account, charge.currency), 0)
        currency = charge.currency
        await notices.refund_withdrawn(transaction, account.id, Money(gone, currency), owed=Money(owed, currency))


async def _withdraw(transaction: Database, account: BillingAccount, charge: Charge, amount_minor: int) -> int:
    """Withdraw refunds to the balance, the newest first, of that amount at least: the bank has returned this
    money to the card. Returns their sum. The balance may become negative.
    """
    withdrawn = 0
    credited = await transaction[REFUNDS].find({"chargeId": charge.id, "to": "BALANCE", "status": "SUCCEEDED"})
    for refund in sorted(credited, key=lambda each: (each.created_at, each.id), reverse=True):
        if withdrawn >= amount_minor:
            break
        await transaction[REFUNDS].patch({"_id": refund.id}, {"$set": {"status": "FAILED", "failure": _WITHDRAWN}})
        await _count(transaction, charge, -refund.amount_minor)
        if refund.note_id is not None:
            await invoices.withdraw(transaction, account, refund.note_id)
        await move(
            transaction,
            account,
            key=f"withdrawn:{refund.id}",
            currency=refund.currency,
            amount_minor=-refund.amount_minor,
            reason=_WITHDRAWN,
        )
        withdrawn += refund.amount_minor
    return withdrawn
