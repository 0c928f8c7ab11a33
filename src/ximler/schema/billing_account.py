"""`billingaccounts`: the billing state of each user who has paid, or begun to. Private to billing."""

from datetime import datetime
from typing import Any, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, Mixed, ShardKey, Theirs, UserId, ascending
from ximler.schema.plan import Interval

__all__ = ["BILLING_ACCOUNTS", "BillingAccount", "Details", "Method", "Rebate", "Recurring", "Terms", "Wanted"]


class Rebate(Document, kw_only=True):
    """A redeemed coupon's terms. `renewals` is how many periods are left; None is every one. `plans` are
    those that it is for; without them, every plan.
    """

    code: str
    currency: str
    percent: str | None = None  # a decimal number
    minor: int | None = None
    renewals: int | None = None
    plans: list[str] = field(default_factory=list)


class Terms(Document, kw_only=True):
    """The price of a subscription. `net_minor` is the current period's price after discount,
    which a change credits."""

    plan_id: str
    plan_name: str
    price_minor: int
    currency: str
    interval: Interval
    net_minor: int = 0
    rebate: Rebate | None = None


class Method(Document, kw_only=True):
    """A payment method that the provider keeps. `declined` for good: it is not charged again."""

    id: str
    label: str  # "Visa 4242"
    fingerprint: str
    expires: str | None = None  # the last month in which a card is valid: "2030-12"
    declined: bool = False


class Details(Document, kw_only=True):
    """Billing details. `address` has lines; `country` is ISO 3166, two letters;
    `vat_id` is one of that country."""

    name: str | None = None
    address: str | None = None
    country: str | None = None
    vat_id: str | None = None


class Recurring(Document, kw_only=True):
    """The recurring revenue of the live subscription, in minor units a year,
    as it is in the ledger of movements."""

    subscription_id: ObjectId
    plan_id: str
    currency: str
    annual_minor: int
    committed_minor: int  # what remains when the period ends
    at_risk_minor: int  # of which the payment failed


class Wanted(Document, kw_only=True):
    """A change of plan that follows when the payment of an earlier one is decided."""

    plan_id: str
    when: Literal["NOW", "PERIOD_END"]
    rebate: Rebate | None = None  # of the coupon that was entered with it, and is reserved


class BillingAccount(Document, kw_only=True):
    """One per user. Every step of billing is a transaction that increments `revision`, so a user's steps
    never overlap. `subscription_id` and `checkout_id` enforce one live subscription, or one purchase, per
    user.

    `period` is the index of the latest period that has an invoice, counted from `anchor`; -1 during a trial.
    `next_at` is the time of the next step that `billing run` takes for the account.
    """

    id: UserId = field(name="_id")  # the user's
    revision: Internal[int] = 0
    customer_id: Internal[str | None] = None  # at the provider
    method: Internal[Method | None] = None  # the default, which is charged
    other_methods: Internal[list[Method]] = field(default_factory=list)  # newest first; none without a default
    details: Theirs[Details | None] = None
    checkout_id: Internal[str | None] = None  # whose payment is under way
    subscription_id: Internal[ObjectId | None] = None  # the live one that Ximler bills
    terms: Internal[Terms | None] = None
    anchor: Internal[datetime | None] = None
    period: Internal[int] = -1
    pending: Internal[Terms | None] = None  # the plan from the next period on
    pending_rebate: Internal[Rebate | None] = None  # of the coupon that was entered with it
    wanted: Internal[Wanted | None] = None
    cancels: Internal[bool] = False  # at the end of the period
    extended_to: Internal[datetime | None] = None  # the end of the current paid period, if an operator moved it
    new_price_minor: Internal[int | None] = None  # of the plan, from the next period on
    trialed_at: Internal[datetime | None] = None
    reminded: Internal[bool] = False  # that the trial ends, or the year is renewed
    invoice_id: Internal[ObjectId | None] = None  # of the period, and unpaid
    failed_at: Internal[datetime | None] = None  # when its payment failed first
    retries: Internal[int] = 0  # automatic ones since
    not_before: Internal[datetime | None] = None  # for the next of several periods that are overdue
    charge_id: Internal[str | None] = None  # under way
    charge_at: Internal[datetime | None] = None  # when to look at it again
    declined_ms: Internal[list[int]] = field(default_factory=list)  # payments of the last day, see `billing.attempts`
    refunds: Internal[list[str]] = field(default_factory=list)  # under way
    refund_at: Internal[datetime | None] = None  # when to look at them again; None: now
    balances: Internal[Mixed] = field(default_factory=dict[str, Any])  # by currency: minor units, negative is owed
    changes: Internal[int] = 0  # of plan, so that each has an invoice of its own
    recurring: Internal[Recurring | None] = None  # the latest movement
    movements: Internal[int] = 0  # how many the account has had
    next_at: Internal[datetime | None] = None
    created_at: Internal[datetime] = AT_WRITE
    updated_at: Internal[datetime] = AT_WRITE


BILLING_ACCOUNTS = Collection(
    name="billingaccounts",
    document=BillingAccount,
    purpose="The billing state of a user: the live subscription and its terms, the payment method, the credit balance.",
    owner="billing",
    indexes=(
        ascending("nextAt", ours=True, why="accounts that are due"),
        ascending("terms.planId", ours=True, why="the subscribers of a plan, to move them to a new price"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "every step is of one user"),
)
