"""Checkouts: the purchase of a subscription, from the price shown to the plan's limits. Owns `checkouts`.

1. `start` fixes the price, reserves the coupon, and opens the provider's page, which saves a payment method.
2. `complete` then claims the account for this checkout, makes the invoice, and begins the payment.
3. A paid invoice starts the subscription; after a decline the checkout is open for another card.

A payment is made only after the claim, so one of any number of a user's checkouts is paid.
"""

import re
import secrets
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from bson import ObjectId

from ximler.billing import invoices, methods, payments, redemptions, states, stripe_sales, subscriptions
from ximler.billing.account import MOST_METHODS, balance, discount, ensure, find, in_turn, lock, rebate, store
from ximler.billing.account import methods as account_methods
from ximler.billing.attempts import TooManyDeclines, refuse_declined
from ximler.billing.periods import period
from ximler.billing.plans import plan_on_offer
from ximler.billing.pricing import Charge as Priced
from ximler.billing.pricing import Quote, price
from ximler.billing.provider import Mirrors, PaymentMethod, Provider, Session
from ximler.billing.stripe_currencies import minimum, step
from ximler.billing.tax import tax_of
from ximler.core.actor import Actor
from ximler.core.business import Business
from ximler.core.errors import Conflict, Invalid, NotFound, XimlerError
from ximler.core.settings import Settings
from ximler.core.settings_values import origin_of, pattern_of
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.billing_account import BillingAccount, Terms
from ximler.schema.charge import Charge
from ximler.schema.checkout import CHECKOUTS, Checkout
from ximler.schema.trial import TRIALS, Trial, trial_id

__all__ = [
    "AlreadySubscribed",
    "Checkout",
    "add_method",
    "complete",
    "expire",
    "get",
    "of_session",
    "quote",
    "quote_of",
    "start",
]

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class AlreadySubscribed(Conflict):
    code = "ALREADY_SUBSCRIBED"


async def start(
    database: Database,
    provider: Provider,
    settings: Settings,
    actor: Actor,
    *,
    plan_id: str,
    coupon: str | None = None,
    return_url: str,
) -> Checkout:
    """Begin the purchase of a plan. Returns the checkout with the address of the payment page,
    which is valid for an hour.

    Raises NotFound, Invalid for a free plan or another site's `return_url`, AlreadySubscribed,
    TooManyDeclines, the coupon's errors, and ProviderUnavailable.
    """
    user_id = actor.require_user()
    _check_return(return_url, settings)
    plan = await plan_on_offer(database, plan_id)
    await ensure(database, user_id)
    account = await find(database, user_id)
    await _refuse_second(database, account)
    refuse_declined(account, database.clock.now())
    terms = Terms(
        plan_id=plan.id,
        plan_name=plan.name,
        price_minor=plan.price_minor,
        currency=plan.currency.upper(),
        interval=plan.interval,
    )
    if coupon:
        terms.rebate = rebate((await redemptions.reserve(database, actor, coupon, plan=plan)).discount)
    expires_at = database.clock.now() + redemptions.HOLD
    customer_id = account.customer_id or await provider.customer(user_id)
    stripe = stripe_sales.seller(provider, settings, plan)
    checkout = await database[CHECKOUTS].insert(
        Checkout(
            id=secrets.token_urlsafe(24),
            user_id=user_id,
            terms=terms,
            trial_days=0 if account.trialed_at else plan.trial_days or 0,
            return_url=return_url,
            expires_at=expires_at,
            at_stripe=stripe is not None,
        )
    )
    if stripe is not None:
        return await _opened(database, checkout, await stripe_sales.open_page(stripe, checkout, plan, customer_id))
    return await _open(database, provider, checkout, customer_id=customer_id, title=plan.name)


async def add_method(
    database: Database,
    provider: Provider,
    settings: Settings,
    actor: Actor,
    *,
    return_url: str,
    makes_default: bool = True,
) -> Checkout:
    """Begin to add a payment method to a live subscription.
    A new default is charged for an unpaid invoice at once.

    Raises NotFound without a subscription, Invalid for another site's `return_url`, Conflict for an eleventh
    method, TooManyDeclines, and ProviderUnavailable.
    """
    user_id = actor.require_user()
    _check_return(return_url, settings)
    account = await find(database, user_id)
    if account.terms is None:
        raise NotFound("You have no subscription")
    if len(account_methods(account)) >= MOST_METHODS:
        raise Conflict(f"You have {MOST_METHODS} payment methods: remove one first")
    refuse_declined(account, database.clock.now())
    checkout = await database[CHECKOUTS].insert(
        Checkout(
            id=secrets.token_urlsafe(24),
            user_id=user_id,
            kind="CARD",
            makes_default=makes_default,
            terms=account.terms,
            return_url=return_url,
            expires_at=database.clock.now() + redemptions.HOLD,
        )
    )
    customer_id = account.customer_id or await provider.customer(user_id)
    return await _open(database, provider, checkout, customer_id=customer_id, title="Payment method")


async def _open(
    database: Database, provider: Provider, checkout: Checkout, *, customer_id: str, title: str, used: str = ""
) -> Checkout:
    session = await provider.open_session(
        key=f"{checkout.id}{used}",
        customer_id=customer_id,
        title=title,
        return_url=checkout.return_url,
        expires_at=checkout.expires_at,
    )
    return await _opened(database, checkout, session)


async def _opened(database: Database, checkout: Checkout, session: Session) -> Checkout:
    values = {"sessionId": session.id, "url": session.url, "customerId": session.customer_id}
    await database[CHECKOUTS].patch({"_id": checkout.id}, {"$set": values})
    return await database[CHECKOUTS].get(checkout.id)


async def _reopen(database: Database, provider: Provider, checkout: Checkout, session: Session) -> Checkout:
    """Open another page after a decline, if the provider's page accepts one card only."""
    if checkout.status != "OPEN" or session.url or session.id != checkout.session_id:
        return checkout
    title = checkout.terms.plan_name
    return await _open(
        database, provider, checkout, customer_id=session.customer_id, title=title, used=f":{session.id}"
    )


async def get(database: Database, actor: Actor, checkout_id: str) -> Checkout:
    """The actor's checkout. Raises NotFound. One command."""
    found = await database[CHECKOUTS].find_one({"_id": checkout_id, "userId": actor.require_user()})
    if found is None:
        raise NotFound("There is no such checkout")
    return found


async def quote(database: Database, checkout: Checkout) -> Quote | None:
    """The price that is due now; None for a trial, a card, a subscription that Stripe bills,
    and a closed checkout."""
    if checkout.status != "OPEN" or checkout.trial_days or checkout.kind == "CARD" or checkout.at_stripe:
        return None
    account = await find(database, checkout.user_id)
    return quote_of(checkout.terms, account, database.clock.now(), database.business)


async def of_session(database: Database, session_id: str) -> Checkout | None:
    return await database[CHECKOUTS].find_one({"sessionId": session_id})


async def complete(database: Database, provider: Provider, checkout_id: str) -> Checkout:
    """Continue a checkout whose page may be complete. Safe to repeat and to race.
    Raises ProviderUnavailable."""
    checkout = await database[CHECKOUTS].get(checkout_id)
    if checkout.at_stripe:
        if checkout.status in ("OPEN", "EXPIRED") and checkout.session_id and isinstance(provider, Mirrors):
            await stripe_sales.adopt(database, provider, checkout)
        return await database[CHECKOUTS].get(checkout.id)
    if checkout.status == "PROCESSING":
        return await _drive(database, provider, checkout)
    if checkout.status != "OPEN" or checkout.session_id is None:
        return checkout
    session = await provider.session(checkout.session_id)
    if session.method is None:
        return checkout
    if session.method.id == checkout.tried:
        return await _reopen(database, provider, checkout, session)
    await ensure(database, checkout.user_id)
    charge = None
    try:
        if checkout.kind == "CARD":
            await methods.save(database, provider, checkout, session.method)
            return await database[CHECKOUTS].get(checkout.id)
        await _hold_coupon(database, checkout, session.method)
        charge = await _claim(database, checkout, session, session.method)
    except XimlerError as problem:
        if not isinstance(problem, Conflict | NotFound | Invalid | TooManyDeclines):
            raise
        refused = {"$set": {"status": "REFUSED", "problem": problem.message}}
        await database[CHECKOUTS].patch({"_id": checkout.id, "status": "OPEN"}, refused)
    if charge is not None:
        await payments.drive(database, provider, charge.id)
    found = await database[CHECKOUTS].get(checkout.id)
    # Another process has just claimed it: drive its payment as well,
    # so that this call returns after the payment.
    if charge is None and found.status == "PROCESSING":
        found = await _drive(database, provider, found)
    return await _reopen(database, provider, found, session)


async def expire(database: Database) -> int:
    """Close abandoned checkouts; returns how many. The coupon's reservation expires by itself."""
    now = database.clock.now()
    abandoned = {"status": "OPEN", "expiresAt": {"$lte": now}}
    return await database[CHECKOUTS].patch_many(abandoned, {"$set": {"status": "EXPIRED"}})


def quote_of(terms: Terms, account: BillingAccount, anchor: datetime, business: Business) -> Quote:
    """The price of the first period. The same quote is shown and charged."""
    first = period(anchor, terms.interval, 0)
    charge = Priced(
        plan_id=terms.plan_id,
        description=terms.plan_name,
        price_minor=terms.price_minor,
        start=first.start,
        end=first.end,
        discount=discount(terms.rebate, terms.plan_id),
    )
    held = balance(account, terms.currency)
    return price(
        terms.currency,
        charges=[charge],
        tax=tax_of(business, account),
        balance_minor=held,
        minimum_minor=minimum(terms.currency),
        step_minor=step(terms.currency),
    )


async def _hold_coupon(database: Database, checkout: Checkout, method: PaymentMethod) -> None:
    """Reserve the coupon until the payment is decided, and bind it to the payment method.
    Raises the coupon's errors."""
    if checkout.terms.rebate is None:
        return
    plan = await database.plans.get({"id": checkout.terms.plan_id})
    buyer = Actor(kind="system", via="worker", user_id=checkout.user_id)
    held = await redemptions.reserve(
        database, buyer, checkout.terms.rebate.code, plan=plan, hold=redemptions.HELD_WHILE_PAID
    )
    await redemptions.claim_fingerprint(database, held.id, held.token, method.fingerprint)


async def _claim(database: Database, checkout: Checkout, session: Session, method: PaymentMethod) -> Charge | None:
    """Claim the account for this checkout and begin its payment. None if no payment is due now."""
    subscription_id = ObjectId()

    async def write(transaction: Database) -> Charge | None:
        account = await lock(transaction, checkout.user_id)
        now = transaction.clock.now().replace(microsecond=0)
        if await transaction.users.find_one({"_id": checkout.user_id}) is None:
            raise NotFound("The account was closed")
        await _refuse_second(transaction, account)
        claimed = {"_id": checkout.id, "status": "OPEN", "tried": checkout.tried}
        if not await transaction[CHECKOUTS].patch(claimed, {"$set": {"status": "PROCESSING", "tried": method.id}}):
            return None  # another process claimed it
        account.customer_id = session.customer_id
        await methods.keep(transaction, account, method, instead_of=checkout.tried)
        terms, charge = checkout.terms, None
        if checkout.trial_days and account.trialed_at is None:
            try:
                await transaction[TRIALS].insert(Trial(id=trial_id(method.fingerprint)))
            except DocumentExists:
                raise Conflict("The free trial was used with this payment method already") from None
            account.trialed_at = transaction.clock.now()
            await subscriptions.start(
                transaction,
                account,
                subscription_id=subscription_id,
                terms=terms,
                anchor=now + timedelta(days=checkout.trial_days),
                checkout_id=checkout.id,
                trial=True,
            )
        else:
            quote = quote_of(terms, account, now, transaction.business)
            off = discount(terms.rebate, terms.plan_id)
            terms.net_minor = terms.price_minor - quote.discount_minor
            left = rebate(off.renewed(terms.price_minor)) if off else None
            invoice = await invoices.make(
                transaction,
                account,
                quote,
                key=f"{subscription_id}:{now:%Y%m%dT%H%M%S}:0",
                kind="CHECKOUT",
                status="DRAFT",
                subscription_id=subscription_id,
                plan_id=terms.plan_id,
                period=period(now, terms.interval, 0),
                checkout_id=checkout.id,
                terms=Terms(
                    plan_id=terms.plan_id,
                    plan_name=terms.plan_name,
                    price_minor=terms.price_minor,
                    currency=terms.currency,
                    interval=terms.interval,
                    net_minor=terms.net_minor,
                    rebate=left,
                ),
                anchor=now,
            )
            account.checkout_id = checkout.id
            if quote.due_minor:
                refuse_declined(account, transaction.clock.now())
                charge = await subscriptions.collect(
                    transaction, account, invoice, description=terms.plan_name, by_customer=True
                )
            else:
                await subscriptions.paid(transaction, account, invoice)
        await store(transaction, account)
        return charge

    return await in_turn(database, checkout.user_id, write)


async def _drive(database: Database, provider: Provider, checkout: Checkout) -> Checkout:
    account = await find(database, checkout.user_id)
    if account.checkout_id == checkout.id and account.charge_id is not None:
        await payments.drive(database, provider, account.charge_id)
    return await database[CHECKOUTS].get(checkout.id)


async def _refuse_second(database: Database, account: BillingAccount) -> None:
    """Raises AlreadySubscribed, also for a subscription of another application."""
    live = {"userId": account.id, "status": {"$in": list(states.LIVE)}}
    if account.subscription_id is not None or await database.subscriptions.find_one(live) is not None:
        raise AlreadySubscribed("You have a subscription already: change its plan instead")
    if account.checkout_id is not None or account.charge_id is not None:
        raise AlreadySubscribed("Another payment is under way: wait until it is decided")


def _check_return(url: str, settings: Settings) -> None:
    """Accept addresses of this site and of CORS origins;
    in development also of this machine. Raises Invalid."""
    try:
        parts = urlsplit(url)
        origin = origin_of(f"{parts.scheme}://{parts.netloc}") or ""  # `localhost:80.example` is none
    except ValueError:
        raise Invalid.field("returnUrl", "is not an address") from None
    local = settings.development and parts.hostname in _LOCAL
    listed = re.fullmatch(pattern_of(settings.cors_origins), origin) is not None
    ours = bool(origin) and (origin == settings.base_url or listed or local)
    plain = url.isprintable() and not {" ", "\\"} & set(url)  # `urlsplit` leaves out line feeds, browsers read \ as /
    if parts.scheme not in ("http", "https") or not ours or not plain or len(url) > 2000:
        raise Invalid.field("returnUrl", "must be an address of this site")
