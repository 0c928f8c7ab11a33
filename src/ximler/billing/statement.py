"""A user's subscription, invoices, payments and refunds, for operators;
and credit that an operator grants."""

from datetime import datetime

import msgspec
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing import invoices, payments, refunds, virtuals
from ximler.billing.account import discount, ensure, find, in_turn, lock, methods, move, store
from ximler.billing.subscriptions import Upcoming, next_invoice
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.money import Money
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount, Details, Method, Rebate
from ximler.schema.credit import CREDITS
from ximler.schema.invoice import INVOICES, Invoice
from ximler.schema.payment import Payment
from ximler.schema.redemption import REDEMPTIONS, Redemption
from ximler.schema.refund import Refund
from ximler.schema.subscription import Subscription

__all__ = ["Statement", "grant", "invoice", "read"]

_MAX_REASON = 500
_NEWEST = 100


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """`invoices`, `payments`: the newest hundred. `next_at` is when billing acts next.

    `rebate` is the subscription's coupon, while it applies to later periods.
    """

    user_id: ObjectId
    subscription: Subscription | None
    balances: dict[str, int]
    next_at: datetime | None
    details: Details
    methods: list[Method]  # the default first
    rebate: Rebate | None
    upcoming: Upcoming | None
    invoices: list[Invoice]
    payments: list[Payment]
    refunds: list[Refund]
    redemptions: list[Redemption]


async def read(database: Database, actor: Actor, user_id: ObjectId) -> Statement:
    """Operators only; audited. Closed accounts have one, too. Raises NotFound, Forbidden."""
    actor.require_operator()
    await database.users.get(user_id, deleted=True)
    viewed = Action.USER_VIEWED
    await records.write(database, actor, viewed, resource="users", resource_id=user_id, user_id=user_id, part="billing")
    theirs = msgspec.structs.replace(actor, user_id=user_id)
    account = await find(database, user_id)
    return Statement(
        user_id=user_id,
        subscription=(await virtuals.subscription_by_user(database, [user_id]))[user_id],
        balances={currency: minor for currency, minor in account.balances.items() if minor},
        next_at=account.next_at,
        details=account.details or Details(),
        methods=methods(account),
        rebate=_rebate(account),
        upcoming=next_invoice(account, database.business),
        invoices=(await invoices.page(database, theirs, first=_NEWEST)).items,
        payments=(await payments.page(database, theirs, first=_NEWEST)).items,
        refunds=await refunds.of_user(database, user_id),
        redemptions=await database[REDEMPTIONS].find({"userId": user_id}),
    )


def _rebate(account: BillingAccount) -> Rebate | None:
    terms = account.terms if account.subscription_id else None
    found = discount(terms.rebate, terms.plan_id) if terms else None
    return terms.rebate if terms and found and found.applies else None


async def invoice(database: Database, actor: Actor, invoice_id: ObjectId) -> Invoice:
    """Any user's invoice, with its number. Operators only; audited. Raises NotFound, Forbidden."""
    actor.require_operator()
    known = await database[INVOICES].get({"_id": invoice_id})
    viewed = Action.USER_VIEWED
    await records.write(
        database, actor, viewed, resource="users", resource_id=known.user_id, user_id=known.user_id, part="invoice"
    )
    return await invoices.find(database, msgspec.structs.replace(actor, user_id=known.user_id), invoice_id)


async def grant(
    database: Database, actor: Actor, *, user_id: ObjectId, amount: Money, reason: str, key: str | None = None
) -> int:
    """Add to a user's credit balance, or take away from it; returns the balance. Operators only; audited.

    The same `key` again grants once. Raises Invalid, NotFound.
    """
    actor.require_operator()
    if not reason.strip() or len(reason) > _MAX_REASON:
        raise Invalid.field("reason", f"1 to {_MAX_REASON} characters")
    if not amount.minor:
        raise Invalid.field("amountMinor", "must not be zero")
    _ = amount.major  # raises Invalid for an unknown currency and an amount that is too large
    await database.users.get(user_id)
    await ensure(database, user_id)
    name = f"grant:{user_id}:{key or ObjectId()}"

    async def write(transaction: Database) -> int:
        account = await lock(transaction, user_id)
        if await transaction[CREDITS].find_one({"_id": name}) is None:
            await move(
                transaction, account, key=name, currency=amount.currency, amount_minor=amount.minor, reason=reason
            )
            await records.write(
                transaction,
                actor,
                Action.CREDIT_GRANTED,
                resource="users",
                resource_id=user_id,
                user_id=user_id,
                amount=str(amount),
                reason=reason,
            )
            await store(transaction, account)
        return int(account.balances.get(amount.currency, 0))

    return await in_turn(database, user_id, write)
