"""The state machine of subscriptions: one table of event, status before, and status after. Pure.

Every update has its guard from this table: an event whose guard does not match changes nothing.
`docs/billing.md` shows it.
"""

from typing import Any, Literal

from ximler.schema.billing_account import BillingAccount
from ximler.schema.subscription import SubscriptionStatus

__all__ = ["LIVE", "TABLE", "Event", "after", "guard", "of"]

Event = Literal[
    "renewed", "payment_failed", "paid", "given_up", "ended", "cancelled", "cancelled_at_end", "resumed", "changed"
]

LIVE: tuple[SubscriptionStatus, ...] = ("ACTIVE", "PAST_DUE")

# Event → status before → status after. An event that is not listed for a status changes nothing.
TABLE: dict[Event, dict[SubscriptionStatus, SubscriptionStatus]] = {
    "renewed": {"ACTIVE": "ACTIVE"},  # the next period began
    "payment_failed": {"ACTIVE": "PAST_DUE", "PAST_DUE": "PAST_DUE"},
    "paid": {"ACTIVE": "ACTIVE", "PAST_DUE": "ACTIVE"},
    "given_up": {"PAST_DUE": "EXPIRED"},  # after the last retry
    "ended": {"ACTIVE": "CANCELLED"},  # the last period of a cancelled subscription is over
    "cancelled": {"ACTIVE": "CANCELLED", "PAST_DUE": "CANCELLED"},  # now
    "cancelled_at_end": {"ACTIVE": "ACTIVE"},
    "resumed": {"ACTIVE": "ACTIVE"},
    "changed": {"ACTIVE": "ACTIVE"},  # the plan, now or from the next period on
}


def after(event: Event, status: SubscriptionStatus) -> SubscriptionStatus | None:
    """The status after the event, or None if the event is impossible in this status."""
    return TABLE[event].get(status)


def guard(event: Event) -> dict[str, Any]:
    """The filter on `status` of an update for the event."""
    return {"$in": sorted(TABLE[event])}


def of(account: BillingAccount) -> SubscriptionStatus:
    """The status of the account's live subscription."""
    return "ACTIVE" if account.failed_at is None else "PAST_DUE"
