"""Payments: an attempt is driven at the provider until its outcome is known, and applied once. Owns `payments` and `charges`.

`drive` may be repeated, run concurrently and be killed at any moment: the intent is created, its id stored, then
confirmed, and every retry continues with the same one. A reading of the provider's state takes a ticket before it begins
and is applied only if no later one was: a slow reader never overwrites a fast one.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import structlog
from bson import ObjectId

from ximler.billing import invoices, refunds, subscriptions
from ximler.billing.account import ensure, in_turn, lock, store
from ximler.billing.provider import Intent, Provider
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.invoice import INVOICES
from ximler.schema.payment import Payment

__all__ = ["PaymentDeclined", "declined", "drive", "observe", "page", "refunded"]


class PaymentDeclined(Conflict):
    code = "PAYMENT_DECLINED"


_log = structlog.get_logger("ximler.billing")
_LOOK_AGAIN_S = (30, 60, 300, 900, 3600)


async def drive(database: Database, provider: Provider, charge_id: str) -> Charge:
    """Bring the attempt as far as the provider lets it. Raises ProviderUnavailable: then it is driven on later."""
    ticket, charge = await _ticket(database, charge_id)
    if charge.status != "PENDING":
        return charge
    invoice = await database[INVOICES].get({"userId": charge.user_id, "_id": charge.invoice_id})
    wanted = invoice.status in ("DRAFT", "OPEN")
    if charge.intent_id is None:
        if not wanted:
            return await _apply(database, charge, _abandoned(charge), ticket)
        try:
            intent = await provider.create_intent(
                customer_id=charge.customer_id,
                amount_minor=charge.amount_minor,
                currency=charge.currency,
                reference=charge.id,
            )
        except Invalid as refused:
            _log.error("the provider rejects a payment", charge=charge.id, reason=refused.message)
            return await _apply(database, charge, _abandoned(charge, "rejected_by_the_provider"), ticket)
        where = {"_id": charge.id, "intentId": None}
        if not await database[CHARGES].patch(where, {"$set": {"intentId": intent.id}}):
            charge = await database[CHARGES].get(charge.id)  # another stored its own first
    intent = await provider.intent(str(charge.intent_id or intent.id))
    if intent.status == "CREATED":
        intent = await provider.confirm(intent.id, charge.method_id) if wanted else _abandoned(charge)
    return await _apply(database, charge, intent, ticket)


def declined(charge: Charge, consequence: str) -> PaymentDeclined:
    """The error for a charge that has failed."""
    return PaymentDeclined(f"The payment was declined ({(charge.failure or '').replace('_', ' ')}): {consequence}")


async def observe(database: Database, provider: Provider, intent_id: str, reference: str | None = None) -> bool:
    """Apply the provider's current state of an intent; False for one that is not known yet.

    `reference` is the charge's id, where the event says so. A state that changes nothing costs one command.
    """
    reference = reference or (await provider.intent(intent_id)).reference
    charge = await database[CHARGES].find_and_patch({"_id": reference}, {"$inc": {"ticket": 1}})
    if charge is None:
        return not reference
    if charge.intent_id != intent_id:
        return True  # created and lost: never confirmed
    intent = await provider.intent(intent_id)
    decided = "SUCCEEDED" if charge.status == "PAID" else charge.status
    if intent.status != decided:
        await _apply(database, charge, intent, charge.ticket)
    return True


async def page(database: Database, actor: Actor, *, first: int = 20, after: Position | None = None) -> Page[Payment]:
    """The actor's payments, newest first. One command."""
    return await database.payments.page({"userId": actor.require_user()}, first=first, after=after)


async def refunded(database: Database, payments: Sequence[Payment]) -> dict[ObjectId, int]:
    """The refunded amount of each payment in minor units, with pending refunds. One command."""
    where = {
        "userId": {"$in": list({each.user_id for each in payments})},
        "paymentId": {"$in": [each.id for each in payments]},
    }
    found = {each.payment_id: each.refunded_minor for each in await database[CHARGES].find(where)}
    return {each.id: found.get(each.id, 0) for each in payments}


async def _ticket(database: Database, charge_id: str) -> tuple[int, Charge]:
    charge = await database[CHARGES].find_and_patch({"_id": charge_id}, {"$inc": {"ticket": 1}})
    return (charge.ticket, charge) if charge else (0, await database[CHARGES].get(charge_id))


async def _apply(database: Database, charge: Charge, intent: Intent, ticket: int) -> Charge:
    await ensure(database, charge.user_id)

    async def write(transaction: Database) -> Charge:
        account = await lock(transaction, charge.user_id)
        newer = {"_id": charge.id, "applied": {"$lt": ticket}}
        known = await transaction[CHARGES].find_and_patch(newer, {"$set": {"applied": ticket}})
        if known is None:
            return await transaction[CHARGES].get(charge.id)
        now = transaction.clock.now()
        # An attempt that failed may have been paid all the same, later.
        decided = intent.status == "SUCCEEDED" or (intent.status == "FAILED" and known.status == "PENDING")
        if known.status != "PAID" and decided:
            invoice = await invoices.get(transaction, account, known.invoice_id)
            if account.charge_id == known.id:
                account.charge_id = account.charge_at = None
            if intent.status == "SUCCEEDED":
                await _set(transaction, known, "PAID", user_id=account.id)
                if not await subscriptions.paid(transaction, account, invoice):
                    await refunds.give_back(transaction, account, known, reason="No invoice needed it")
            else:
                failure = intent.failure or "declined"
                await _set(transaction, known, "FAILED", user_id=account.id, failure=failure)
                await subscriptions.failed(transaction, account, invoice, failure, hard=intent.hard)
        elif known.status == "PENDING":
            looks = min(known.looks, len(_LOOK_AGAIN_S) - 1)
            await transaction[CHARGES].patch({"_id": known.id}, {"$inc": {"looks": 1}})
            if account.charge_id == known.id:
                account.charge_at = now + timedelta(seconds=_LOOK_AGAIN_S[looks])
        await store(transaction, account)
        return await transaction[CHARGES].get(known.id)

    return await in_turn(database, charge.user_id, write)


async def _set(
    transaction: Database,
    charge: Charge,
    status: Literal["PAID", "FAILED"],
    *,
    user_id: ObjectId,
    failure: str | None = None,
) -> None:
    await transaction[CHARGES].patch({"_id": charge.id}, {"$set": {"status": status, "failure": failure}})
    values = {
        "status": status,
        "failure": failure,
        "stripePaymentIntentId": charge.intent_id,
        "paidAt": transaction.clock.now() if status == "PAID" else None,
    }
    await transaction.payments.patch({"_id": charge.payment_id, "userId": user_id}, {"$set": values})


def _abandoned(charge: Charge, failure: str = "cancelled") -> Intent:
    """For an attempt that took no money and never will."""
    return Intent(
        id=charge.intent_id or "",
        status="FAILED",
        reference=charge.id,
        amount_minor=charge.amount_minor,
        currency=charge.currency,
        failure=failure,
    )
