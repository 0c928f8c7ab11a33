"""Payments: an attempt is driven at the provider until its outcome is known, and applied once.
Owns `payments` and `charges`.

`drive` may be repeated, run concurrently and be killed at any moment: the intent is created, its id stored,
then confirmed, and every retry continues with the same one. A reading of the provider's state takes a ticket
before it begins and is applied only if no later one was: a slow reader never overwrites a fast one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import structlog
from bson import ObjectId
from msgspec import field

from ximler.billing import invoices, refunds, subscriptions
from ximler.billing.account import AccountChanged, decline, each_in_turn, hold, in_turn, store
from ximler.billing.attempts import count_decline
from ximler.billing.declines import reason
from ximler.billing.provider import Intent, Provider
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.ids import Position
from ximler.database import Database, prefetched
from ximler.database.codec import codec_of
from ximler.database.collection import Page
from ximler.database.failures import DatabaseUnavailable
from ximler.database.in_step import in_step_or_alone
from ximler.database.reading import Filter
from ximler.database.updates import Update
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.document import Document
from ximler.schema.invoice import INVOICES
from ximler.schema.payment import Payment
from ximler.schema.subscription import SUBSCRIPTIONS

__all__ = [
    "Attempt",
    "Fetched",
    "PaymentDeclined",
    "declined",
    "drive",
    "drive_each",
    "fetching",
    "observe",
    "observe_each",
    "observe_fetched",
    "page",
    "paid_intents",
    "refunded",
]


class PaymentDeclined(Conflict):
    code = "PAYMENT_DECLINED"


A = TypeVar("A")
T = TypeVar("T")
_log = structlog.get_logger("ximler.billing")
_LOOK_AGAIN_S = (30, 60, 300, 900, 3600)


class _Paid(Document, kw_only=True):
    """The intent of a charge."""

    id: str = field(name="_id")
    intent_id: str | None = None


class Attempt(NamedTuple):
    """A charge to be driven. `ticket`: taken before the provider is read, or else the next,
    which is taken when the reading is applied. `wanted`: its invoice is not paid or void yet."""

    charge: Charge
    ticket: int
    wanted: bool = True
    taken: bool = True


class Fetched(NamedTuple):
    """A charge, and the documents that its payment changes, as the driver read them."""

    charge: dict[str, Any]
    invoice: dict[str, Any]
    account: dict[str, Any]
    subscription: dict[str, Any] | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Fetched | None":
        """Take them from a row of the pipeline `fetching`. None if one is missing."""
        charge, invoice, account, subscription = (next(iter(row.pop(name)), None) for name in _FETCHED)
        return cls(charge, invoice, account, subscription) if charge and invoice and account else None

    def give(self, transaction: Database) -> None:
        """The transaction finds these documents. Its guards are the charge's `ticket` and the account's
        `revision`, which every step increments. Another application may change the subscription: then the
        next step follows, as if this one had been faster."""
        prefetched.give(transaction, CHARGES, self.charge)
        prefetched.give(transaction, INVOICES, self.invoice)
        prefetched.give(transaction, BILLING_ACCOUNTS, self.account)
        if self.subscription is not None:
            prefetched.give(transaction, SUBSCRIPTIONS, self.subscription)


_FETCHED = ("charges", "invoices", "accounts", "subscriptions")


def fetching(reference: str) -> list[dict[str, Any]]:
    """Stages of a pipeline that add what `Fetched` is made from.
    `reference`: the field with the charge's id."""
    return [
        _lookup(CHARGES.name, "charges", reference, "_id"),
        _lookup(INVOICES.name, "invoices", "charges.userId", "userId", _id="$charges.invoiceId"),
        _lookup(BILLING_ACCOUNTS.name, "accounts", "charges.userId", "_id"),
        _lookup(SUBSCRIPTIONS.name, "subscriptions", "charges.userId", "userId", _id="$invoices.subscriptionId"),
    ]


def _lookup(collection: str, name: str, local: str, foreign: str, *, _id: str | None = None) -> dict[str, Any]:
    """By the shard key, and also by `_id` where that is another field."""
    lookup: dict[str, Any] = {"from": collection, "localField": local, "foreignField": foreign, "as": name}
    if _id is not None:
        lookup |= {"let": {"id": {"$first": _id}}, "pipeline": [{"$match": {"$expr": {"$eq": ["$_id", "$$id"]}}}]}
    return {"$lookup": lookup}


async def drive(database: Database, provider: Provider, charge_id: str) -> Charge:
    """Bring the attempt as far as the provider lets it. Raises ProviderUnavailable:
    then it is driven on later."""
    charge = (await _tickets(database, [charge_id])).get(charge_id)
    if charge is None:
        raise NotFound(f"No charge {charge_id}")
    if charge.status != "PENDING":
        return charge
    invoice = await database[INVOICES].get({"userId": charge.user_id, "_id": charge.invoice_id})
    attempt = Attempt(charge, charge.ticket, wanted=invoice.status in ("DRAFT", "OPEN"))
    return result_of(await drive_each(database, provider, [attempt]), charge_id)


async def drive_each(
    database: Database, provider: Provider, attempts: Sequence[Attempt]
) -> dict[str, Charge | Exception]:
    """Drive attempts of different users together;
    returns each charge, or the error that it waits for, by its id.

    Calls to the provider run concurrently. For any number of charges the commands are those of one, unless
    one of them conflicts with another process.
    """
    results: dict[str, Charge | Exception] = {}
    known: dict[str, Intent] = {}
    fresh = {each.charge.id: each for each in attempts if each.charge.intent_id is None and each.wanted}
    for attempt, made in zip(
        fresh.values(), await _each(lambda each: _create(provider, each.charge), fresh.values()), strict=True
    ):
        if isinstance(made, Exception):
            results[attempt.charge.id] = made
        else:
            known[attempt.charge.id] = made
    intent_ids = {each.charge.id: each.charge.intent_id for each in attempts} | await _stored(database, known)
    going = [each for each in attempts if each.charge.id not in results]
    seen: list[tuple[Attempt, Intent]] = []
    for attempt, intent in zip(
        going,
        await _each(lambda each: _confirm(provider, each, intent_ids[each.charge.id], known), going),
        strict=True,
    ):
        if isinstance(intent, Exception):
            results[attempt.charge.id] = intent
        else:
            seen.append((attempt, intent))
    return results | await _apply_each(database, seen)


def result_of(results: Mapping[str, Charge | Exception], charge_id: str) -> Charge:
    """Of `drive_each`. Raises the error."""
    result = results[charge_id]
    if isinstance(result, Exception):
        raise result
    return result


async def _each(call: Callable[[A], Awaitable[T]], arguments: Iterable[A]) -> list[T | Exception]:
    """Concurrent calls to the provider."""
    results = await asyncio.gather(*(call(each) for each in arguments), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result
    return cast("list[T | Exception]", results)


async def _create(provider: Provider, charge: Charge) -> Intent:
    try:
        return await provider.create_intent(
            customer_id=charge.customer_id,
            amount_minor=charge.amount_minor,
            currency=charge.currency,
            reference=charge.id,
        )
    except Invalid as refused:
        _log.error("the provider rejects a payment", charge=charge.id, reason=refused.message)
        return _abandoned(charge, "rejected_by_the_provider")


async def _stored(database: Database, intents: Mapping[str, Intent]) -> dict[str, str | None]:
    """Store the ids of created intents; returns those that stand,
    which another process may have stored first."""
    made = {charge_id: intent.id for charge_id, intent in intents.items() if intent.status == "CREATED"}
    changes: list[tuple[Filter, Update]] = [
        ({"_id": charge_id, "intentId": None}, {"$set": {"intentId": made[charge_id]}}) for charge_id in made
    ]
    if await _patch_each(database, changes) == len(changes):
        return dict(made)
    return {each.id: each.intent_id for each in await database[CHARGES].find({"_id": {"$in": list(made)}})}


async def _patch_each(database: Database, changes: Sequence[tuple[Filter, Update]]) -> int:
    """Apply updates of charges. A transaction is one oplog entry, which halves the server's cost."""
    if len(changes) == 1:
        return await database[CHARGES].patch_each(changes)
    return await database.transaction(lambda transaction: transaction[CHARGES].patch_each(changes))


async def _confirm(
    provider: Provider, attempt: Attempt, intent_id: str | None, created: Mapping[str, Intent]
) -> Intent:
    charge = attempt.charge
    intent = created.get(charge.id)
    if intent is None or intent.id != intent_id:
        if intent_id is None:
            return intent or _abandoned(charge)
        intent = await provider.intent(intent_id)
    if intent.status == "CREATED":
        return await provider.confirm(intent.id, charge.method_id) if attempt.wanted else _abandoned(charge)
    return intent


def declined(charge: Charge, consequence: str) -> PaymentDeclined:
    """The error for a charge that has failed."""
    return PaymentDeclined(f"The payment was declined ({reason(charge.failure)}): {consequence}")


async def observe(database: Database, provider: Provider, intent_id: str, reference: str | None = None) -> bool:
    """Apply the provider's current state of an intent; False for one that is not known yet.

    `reference` is the charge's id, where the event says so. A state that changes nothing costs one command.
    """
    result = (await observe_each(database, provider, {intent_id: reference}))[intent_id]
    if isinstance(result, Exception):
        raise result
    return result


async def observe_each(
    database: Database, provider: Provider, intents: Mapping[str, str | None]
) -> dict[str, bool | Exception]:
    """As `observe`, of several intents with their references; the result or the error of each, by its id."""
    results: dict[str, bool | Exception] = {}

    async def refer(intent_id: str) -> str:
        return intents[intent_id] or (await provider.intent(intent_id)).reference

    references: dict[str, str] = {}
    for intent_id, reference in zip(intents, await _each(refer, intents), strict=True):
        if isinstance(reference, str):
            references[intent_id] = reference
        else:
            results[intent_id] = reference
    known = await _unpaid(database, set(references.values()))
    charges: dict[str, Charge] = {}
    for intent_id, reference in references.items():
        charge = known.get(reference)
        if charge is None:
            results[intent_id] = not reference
        elif charge.status == "PAID" or charge.intent_id != intent_id:
            results[intent_id] = True  # nothing undoes a payment; the other was created and lost: never confirmed
        else:
            charges[intent_id] = charge
    seen: list[tuple[Attempt, Intent]] = []
    for (intent_id, charge), intent in zip(charges.items(), await _each(provider.intent, charges), strict=True):
        results[intent_id] = intent if isinstance(intent, Exception) else True
        if not isinstance(intent, Exception) and intent.status != charge.status:
            seen.append((Attempt(charge, charge.ticket), intent))
    for charge_id, applied in (await _apply_each(database, seen)).items():
        if isinstance(applied, Exception):
            results[str(known[charge_id].intent_id)] = applied
    return results


async def observe_fetched(
    database: Database,
    provider: Provider,
    intent_id: str,
    fetched: Fetched,
    *,
    finish: Callable[[Database], Awaitable[None]],
) -> bool:
    """As `observe`, with documents that were read already. `finish` is called in the same transaction.

    False if nothing was written: another process was faster, or the documents are not valid. Raises errors of
    the provider.
    """
    charge = codec_of(Charge).decode(deepcopy(fetched.charge))
    known = charge.status == "PAID" or charge.intent_id != intent_id
    intent = None if known else await provider.intent(intent_id)
    begun = False

    async def write(transaction: Database) -> None:
        nonlocal begun
        if begun:
            raise AccountChanged("Another process changes one of these documents")
        begun = True
        if intent is not None and intent.status != charge.status:
            fetched.give(transaction)
            await _step(Attempt(charge, charge.ticket + 1, taken=False), intent)(transaction)
        await finish(transaction)

    try:
        await (write(database) if known else in_turn(database, charge.user_id, write))
    except DatabaseUnavailable:
        raise
    except Exception as problem:  # the event is handled again, without these documents
        _log.debug("fetched documents are not used", charge=charge.id, reason=str(problem))
        return False
    return True


async def paid_intents(database: Database, references: Collection[str]) -> set[tuple[str, str | None]]:
    """Reference and id of the intents of these charges that were paid for good. One command."""
    where = {"_id": {"$in": list(references)}, "status": "PAID"}
    return (
        {(each.id, each.intent_id) for each in await database[CHARGES].find(where, into=_Paid)} if references else set()
    )


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


async def _tickets(database: Database, charge_ids: Iterable[str]) -> dict[str, Charge]:
    """A ticket of each charge that is known, by its id. Each is taken once."""

    def take(charge_id: str) -> Callable[[Database], Awaitable[Charge | None]]:
        return lambda database: database[CHARGES].find_and_patch({"_id": charge_id}, {"$inc": {"ticket": 1}})

    taken = await in_step_or_alone(database, [take(each) for each in charge_ids])
    return {charge.id: charge for charge in taken if charge is not None}


async def _unpaid(database: Database, charge_ids: Collection[str]) -> dict[str, Charge]:
    """As `_tickets`; charges that are paid are returned without a ticket.
    One command for one that is not paid."""
    if len(charge_ids) == 1:
        where = {"_id": {"$in": list(charge_ids)}, "status": {"$ne": "PAID"}}
        if taken := await database[CHARGES].find_and_patch(where, {"$inc": {"ticket": 1}}):
            return {taken.id: taken}
    found = {each.id: each for each in await database[CHARGES].find({"_id": {"$in": list(charge_ids)}})}
    return found | await _tickets(database, [each.id for each in found.values() if each.status != "PAID"])


async def _apply_each(database: Database, seen: Sequence[tuple[Attempt, Intent]]) -> dict[str, Charge | Exception]:
    """Apply readings of the provider's state; returns each charge, or its error, by its id."""
    results: dict[str, Charge | Exception] = {}
    waiting = list(seen)
    while waiting:
        first: dict[ObjectId, tuple[Attempt, Intent]] = {}  # of each user
        for each in waiting:
            first.setdefault(each[0].charge.user_id, each)
        applied = await each_in_turn(database, {user_id: _step(*each) for user_id, each in first.items()})
        results |= {attempt.charge.id: applied[user_id] for user_id, (attempt, _) in first.items()}
        waiting = [each for each in waiting if each[0].charge.id not in results]
    return results


def _step(attempt: Attempt, intent: Intent) -> Callable[[Database], Awaitable[Charge]]:
    charge, ticket = attempt.charge, attempt.ticket
    where = {"_id": charge.id} if attempt.taken else {"_id": charge.id, "ticket": ticket - 1}

    async def put(transaction: Database, **values: Any) -> None:
        """Write the charge."""
        applied = {"applied": ticket} if attempt.taken else {"applied": ticket, "ticket": ticket}
        if not await transaction[CHARGES].patch(where, {"$set": values | applied}):
            raise AccountChanged("A later reading of the payment was begun")

    async def outcome(transaction: Database, known: Charge) -> None:
        """Write the outcome of the charge, and of its payment."""
        values: dict[str, Any] = {"status": known.status, "failure": known.failure}
        await put(transaction, **values)
        paid_at = transaction.clock.now() if known.status == "PAID" else None
        values |= {"stripePaymentIntentId": known.intent_id, "paidAt": paid_at}
        await transaction.payments.patch({"_id": known.payment_id, "userId": known.user_id}, {"$set": values})

    async def write(transaction: Database) -> Charge:
        account = await hold(transaction, charge.user_id)
        known = await transaction[CHARGES].get(charge.id)
        if known.applied >= ticket:
            return known
        known.applied = ticket
        now = transaction.clock.now()
        # An attempt that failed may have been paid all the same, later.
        decided = intent.status == "SUCCEEDED" or (intent.status == "FAILED" and known.status == "PENDING")
        if known.status != "PAID" and decided:
            invoice = await invoices.get(transaction, account, known.invoice_id)
            if account.charge_id == known.id:
                account.charge_id = account.charge_at = None
            if intent.status == "SUCCEEDED":
                known.status, known.failure = "PAID", None
                await outcome(transaction, known)
                if not await subscriptions.paid(transaction, account, invoice):
                    await refunds.give_back(transaction, account, known, reason="No invoice needed it")
            else:
                known.status, known.failure = "FAILED", intent.failure or "declined"
                replaced = account.method is None or account.method.id != known.method_id
                await outcome(transaction, known)
                if known.by_customer:
                    count_decline(account, now)
                if intent.hard:
                    decline(account, known.method_id)
                by_customer = known.by_customer
                await subscriptions.failed(transaction, account, invoice, known.failure, by_customer=by_customer)
                if replaced and account.terms is not None and account.invoice_id == invoice.id:  # tried at once
                    description = f"{account.terms.plan_name}, again"
                    await subscriptions.collect(
                        transaction, account, invoice, description=description, by_customer=True
                    )
        elif known.status == "PENDING":
            looks, known.looks = min(known.looks, len(_LOOK_AGAIN_S) - 1), known.looks + 1
            await put(transaction, looks=known.looks)
            if account.charge_id == known.id:
                account.charge_at = now + timedelta(seconds=_LOOK_AGAIN_S[looks])
        else:
            await put(transaction)
        await store(transaction, account)
        return known

    return write


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
