"""Billing's notices to users: in the inbox, and by mail if their preferences ask for it.
Each is a job of the step's transaction."""

from datetime import datetime

from bson import ObjectId

from ximler.billing import states
from ximler.billing.declines import reason
from ximler.core.money import Money
from ximler.database import Database
from ximler.notifications import inbox
from ximler.notifications.inbox import Link
from ximler.schema.billing_account import Terms
from ximler.schema.invoice import Invoice

__all__ = [
    "began",
    "cancelled",
    "changed",
    "declined",
    "ended",
    "extended",
    "paid",
    "price_changes",
    "refund_failed",
    "refund_withdrawn",
    "refunded",
    "renews",
    "stays",
    "trial_ends",
]

_DAY = "%-d %B %Y"
_ENDED = {
    "given_up": "because its payment failed for a week",
    "ended": "at the end of its period, as you asked",
    "cancelled": "as you asked",
}


async def began(transaction: Database, user_id: ObjectId, terms: Terms, *, free_until: datetime | None) -> None:
    text = f"Your subscription to {terms.plan_name} has begun."
    if free_until is not None:
        text += f" It is free until {free_until:{_DAY}}."
    await _notify(transaction, user_id, f"Welcome to {terms.plan_name}", text)


async def paid(transaction: Database, invoice: Invoice) -> None:
    """A receipt."""
    amount = Money(invoice.due_minor, invoice.currency)
    lines = "; ".join(
        f"{line['description']} {Money(line['amount_minor'], invoice.currency)}"
        for line in invoice.lines
        if not line.get("included")
    )
    text = f"We received your payment of {amount}: {lines}."
    await _notify(transaction, invoice.user_id, f"Your receipt: {amount}", text, invoice, label="Open the invoice")


async def declined(transaction: Database, invoice: Invoice, failure: str) -> None:
    """The payment of a period failed and will be retried."""
    amount = Money(invoice.due_minor, invoice.currency)
    if failure == "authentication_required":
        title, label = "Confirm your payment", "Confirm the payment"
        text = f"Your bank requires you to confirm the payment of {amount}."
    else:
        title, label = "Your payment failed", "Pay now"
        text = f"Your payment of {amount} was declined ({reason(failure)})."
    text += " Your plan stays as it is while we try again in the next days."
    await _notify(transaction, invoice.user_id, title, text, invoice, label=label)


async def trial_ends(transaction: Database, user_id: ObjectId, terms: Terms, *, at: datetime) -> None:
    amount = Money(terms.price_minor, terms.currency)
    text = f"Your trial of {terms.plan_name} ends on {at:{_DAY}}. It costs {amount} from then on."
    await _notify(transaction, user_id, "Your trial ends soon", text)


async def renews(transaction: Database, user_id: ObjectId, terms: Terms, *, at: datetime) -> None:
    """Before a yearly renewal."""
    amount = Money(terms.price_minor, terms.currency)
    text = f"Your subscription to {terms.plan_name} renews on {at:{_DAY}} for another year, regularly {amount}."
    text += " You can cancel it until then."
    await _notify(transaction, user_id, f"{terms.plan_name} renews soon", text)


async def changed(transaction: Database, user_id: ObjectId, *, before: Terms, after: Terms) -> None:
    text = f"Your plan has changed from {before.plan_name} to {after.plan_name}."
    await _notify(transaction, user_id, f"Your plan is {after.plan_name} now", text)


async def stays(transaction: Database, user_id: ObjectId, terms: Terms, *, why: str) -> None:
    """A change that waited for a payment was not made."""
    text = f"Your plan was not changed: {why}. It is still {terms.plan_name}."
    await _notify(transaction, user_id, f"Your plan is still {terms.plan_name}", text)


async def cancelled(transaction: Database, user_id: ObjectId, terms: Terms, *, until: datetime) -> None:
    """At the end of the period."""
    text = f"{terms.plan_name} ends on {until:{_DAY}}, and is yours until then. You can resume it until that day."
    await _notify(transaction, user_id, "Your subscription is cancelled", text)


async def ended(transaction: Database, user_id: ObjectId, terms: Terms, event: states.Event) -> None:
    text = f"Your subscription to {terms.plan_name} has ended {_ENDED[event]}. You are on the free plan now."
    await _notify(transaction, user_id, f"{terms.plan_name} has ended", text)


async def refunded(transaction: Database, user_id: ObjectId, amount: Money, *, to_balance: bool) -> None:
    where = "added to your credit balance" if to_balance else "on its way to your card"
    await _notify(transaction, user_id, f"A refund of {amount}", f"A refund of {amount} is {where}.")


async def price_changes(
    transaction: Database, user_id: ObjectId, plan_name: str, price: Money, *, before: int, at: datetime
) -> None:
    text = f"The price of {plan_name} changes from {Money(before, price.currency)} to {price}, from {at:{_DAY}} on."
    text += " You can cancel until then."
    await _notify(transaction, user_id, f"The price of {plan_name} changes", text)


async def extended(transaction: Database, user_id: ObjectId, terms: Terms, *, until: datetime) -> None:
    text = f"Your current period of {terms.plan_name} lasts until {until:{_DAY}}, at no charge."
    await _notify(transaction, user_id, f"{terms.plan_name} was extended", text)


async def refund_failed(transaction: Database, user_id: ObjectId, amount: Money) -> None:
    text = f"Your card did not accept a refund of {amount}. We will contact you about another way."
    await _notify(transaction, user_id, f"A refund of {amount} failed", text)


async def refund_withdrawn(transaction: Database, user_id: ObjectId, amount: Money, *, owed: Money) -> None:
    text = f"Your bank returned your payment to your card, so {amount} that was refunded to your credit balance is withdrawn."
    if owed.minor:
        text += f" {owed} is added to your next invoice."
    await _notify(transaction, user_id, f"A refund of {amount} was withdrawn", text)


async def _notify(
    transaction: Database, user_id: ObjectId, title: str, text: str, invoice: Invoice | None = None, *, label: str = ""
) -> None:
    """With a link to the page of the invoice, if there is one. One command."""
    metadata = {"invoiceId": str(invoice.id)} if invoice else None
    link = Link(f"/invoices/{invoice.id}", label) if invoice else None
    await inbox.announce(transaction, user_id, "BILLING", title, text, metadata, link=link)
