"""Resolvers of billing."""

from typing import Any

from ximler.billing import account as accounts
from ximler.billing import (
    attempts,
    changes,
    checkouts,
    details,
    invoices,
    methods,
    payments,
    rebates,
    redemptions,
    stripe_mirror,
    subscriptions,
    virtuals,
)
from ximler.billing.checkouts import Checkout
from ximler.billing.coupons import CouponNotApplicable, discount_of
from ximler.billing.details import Details
from ximler.billing.invoices import Invoice
from ximler.billing.methods import Method
from ximler.billing.plans import plan_on_offer
from ximler.billing.pricing import Quote
from ximler.billing.provider import Mirrors
from ximler.billing.rails import rail
from ximler.core.errors import Conflict, NotFound
from ximler.core.ids import Position, decode_cursor, object_id
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, Shared, page_size
from ximler.schema.payment import Payment
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

resolvers = Resolvers()


@resolvers.query("plans")
async def plans(ctx: Context) -> Shared:
    return Shared(await ctx.plans.on_offer())


@resolvers.query("checkout")
async def checkout(ctx: Context, id: str) -> dict[str, Any]:  # noqa: A002 (the argument's name in GraphQL)
    return _checkout(await checkouts.get(ctx.database, ctx.actor, id))


@resolvers.query("previewChange")
async def preview_change(
    ctx: Context, plan_id: str, when: changes.When | None = None, coupon: str | None = None
) -> dict[str, Any]:
    if mirrored := await _mirrored(ctx, coupon):
        change = await stripe_mirror.preview(ctx.database, *mirrored, plan_id=plan_id, when=when)
    else:
        async with attempts.guessing(ctx.database, ctx.keyring, ctx.actor, coupon):
            change = await changes.preview(ctx.database, ctx.actor, plan_id=plan_id, when=when, coupon=coupon)
    return {
        "plan_id": change.plan_id,
        "when": change.when,
        "at": change.at,
        "period_start": change.period.start,
        "period_end": change.period.end,
        "currency": change.terms.currency,
        "due_minor": change.due_minor,
        "waits": change.waits,
        "quote": _quote(change.quote),
    }


@resolvers.query("coupon")
async def coupon(ctx: Context, code: str, plan_id: str) -> dict[str, Any]:
    plan = await plan_on_offer(ctx.database, plan_id)
    offer: dict[str, Any] = {
        "code": code.strip().upper(),
        "currency": plan.currency.upper(),
        "price_minor": plan.price_minor,
        "discount_minor": 0,
    }
    try:
        async with attempts.guessing(ctx.database, ctx.keyring, ctx.actor, code):
            found = await redemptions.check(ctx.database, ctx.actor, code, plan=plan)
    except (NotFound, Conflict) as problem:
        return offer | {"valid": False, "problem": problem.message, "problem_code": problem.code}
    return offer | {
        "valid": True,
        "name": found.name,
        "description": found.description,
        "discount_minor": discount_of(found).off(plan.price_minor, plan.currency.upper()),
        "duration": found.duration or "ONCE",
        "duration_periods": found.duration_periods,
    }


@resolvers.query("invoices")
async def list_invoices(ctx: Context, first: int | None = None, after: str | None = None) -> Connection[Invoice]:
    return Connection(await invoices.page(ctx.database, ctx.actor, first=page_size(first), after=_position(after)))


@resolvers.query("invoice")
async def invoice(ctx: Context, id: str) -> Invoice:  # noqa: A002 (as above)
    return await invoices.find(ctx.database, ctx.actor, object_id(id))


@resolvers.query("upcomingInvoice")
async def upcoming_invoice(ctx: Context) -> dict[str, Any] | None:
    account = await accounts.find(ctx.database, ctx.actor.require_user())
    return upcoming_of(subscriptions.next_invoice(account, ctx.database.business))


@resolvers.query("payments")
async def list_payments(ctx: Context, first: int | None = None, after: str | None = None) -> Connection[Payment]:
    return Connection(await payments.page(ctx.database, ctx.actor, first=page_size(first), after=_position(after)))


@resolvers.query("billingDetails")
async def billing_details(ctx: Context) -> Details:
    return await details.read(ctx.database, ctx.actor)


@resolvers.mutation("updateBillingDetails")
async def update_billing_details(ctx: Context, input: dict[str, Any]) -> Details:  # noqa: A002 (GraphQL's customary name)
    return await details.update(ctx.database, ctx.actor, **input)


@resolvers.query("creditBalance")
async def credit_balance(ctx: Context) -> list[dict[str, Any]]:
    account = await accounts.find(ctx.database, ctx.actor.require_user())
    return [
        {"currency": currency, "balance_minor": minor} for currency, minor in sorted(account.balances.items()) if minor
    ]


@resolvers.mutation("startCheckout")
async def start_checkout(ctx: Context, plan_id: str, return_url: str, coupon: str | None = None) -> dict[str, Any]:
    provider = rail(ctx.database, ctx.settings)
    await attempts.open_page(ctx.database, ctx.keyring, ctx.actor)
    async with attempts.guessing(ctx.database, ctx.keyring, ctx.actor, coupon):
        begun = await checkouts.start(
            ctx.database, provider, ctx.settings, ctx.actor, plan_id=plan_id, coupon=coupon, return_url=return_url
        )
    return _checkout(begun)


@resolvers.query("paymentMethods")
async def payment_methods(ctx: Context) -> list[dict[str, Any]]:
    return methods_of(await methods.of_user(ctx.database, ctx.actor))


@resolvers.mutation("addPaymentMethod")
async def add_payment_method(ctx: Context, return_url: str, make_default: bool) -> dict[str, Any]:
    provider = rail(ctx.database, ctx.settings)
    await attempts.open_page(ctx.database, ctx.keyring, ctx.actor)
    return _checkout(
        await checkouts.add_method(
            ctx.database, provider, ctx.settings, ctx.actor, return_url=return_url, makes_default=make_default
        )
    )


@resolvers.mutation("setDefaultPaymentMethod")
async def set_default_payment_method(ctx: Context, id: str) -> list[dict[str, Any]]:  # noqa: A002 (as above)
    provider = rail(ctx.database, ctx.settings)
    return methods_of(await methods.make_default(ctx.database, provider, ctx.actor, id))


@resolvers.mutation("payInvoice")
async def pay_invoice(ctx: Context, id: str) -> Invoice:  # noqa: A002 (as above)
    return await methods.pay(ctx.database, rail(ctx.database, ctx.settings), ctx.actor, object_id(id))


@resolvers.mutation("changePlan")
async def change_plan(
    ctx: Context, plan_id: str, when: changes.When | None = None, coupon: str | None = None
) -> Subscription:
    if mirrored := await _mirrored(ctx, coupon):
        return await stripe_mirror.change(ctx.database, *mirrored, ctx.actor, plan_id=plan_id, when=when)
    provider = rail(ctx.database, ctx.settings)
    async with attempts.guessing(ctx.database, ctx.keyring, ctx.actor, coupon):
        return await changes.change(ctx.database, provider, ctx.actor, plan_id=plan_id, when=when, coupon=coupon)


@resolvers.mutation("cancelPendingChange")
async def cancel_pending_change(ctx: Context) -> Subscription:
    return await changes.clear(ctx.database, ctx.actor)


@resolvers.mutation("cancelSubscription")
async def cancel_subscription(
    ctx: Context, when: changes.When, reason: str | None = None, comment: str | None = None
) -> Subscription:
    now = when == "NOW"
    if mirrored := await _mirrored(ctx):
        return await stripe_mirror.cancel(ctx.database, *mirrored, ctx.actor, now=now, reason=reason, comment=comment)
    return await subscriptions.cancel(ctx.database, ctx.actor, now=now, reason=reason, comment=comment)


@resolvers.mutation("resumeSubscription")
async def resume_subscription(ctx: Context) -> Subscription:
    if mirrored := await _mirrored(ctx):
        return await stripe_mirror.resume(ctx.database, *mirrored, ctx.actor)
    return await subscriptions.resume(ctx.database, ctx.actor)


@resolvers.mutation("applyCoupon")
async def apply_coupon(ctx: Context, code: str) -> Subscription:
    async with attempts.guessing(ctx.database, ctx.keyring, ctx.actor, code):
        return await rebates.apply(ctx.database, ctx.actor, code)


@resolvers.mutation("removePaymentMethod")
async def remove_payment_method(ctx: Context, id: str) -> bool:  # noqa: A002 (as above)
    await methods.remove(ctx.database, ctx.actor, id)
    return True


@resolvers.field("Checkout", "quote")
async def quotes(ctx: Context, found: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    return [_quote(await checkouts.quote(ctx.database, each["checkout"])) for each in found]


@resolvers.field("Invoice", "url")
async def urls(ctx: Context, found: list[Invoice]) -> list[str]:
    return [_url(ctx, each.id) for each in found]


@resolvers.field("Invoice", "pdfUrl")
async def pdf_urls(ctx: Context, found: list[Invoice]) -> list[str]:
    return [f"{ctx.settings.base_url}/v1/invoices/{each.id}.pdf" for each in found]


@resolvers.field("Payment", "invoiceUrl")
async def invoice_urls(ctx: Context, found: list[Payment]) -> list[str | None]:
    return [
        _url(ctx, each.invoice_id)
        if each.invoice_url is None and each.invoice_id and each.paid_at
        else each.invoice_url
        for each in found
    ]


@resolvers.field("Payment", "refundedMinor")
async def refunded_of(ctx: Context, found: list[Payment]) -> list[int]:
    amounts = await payments.refunded(ctx.database, found)
    return [amounts[each.id] for each in found]


@resolvers.field("User", "subscription")
async def subscriptions_of(ctx: Context, users: list[User]) -> list[Subscription | None]:
    if (standing := await ctx.standing_of(users)) is not None:
        return [virtuals.subscription_in(ctx.database, standing[1])]
    found = await virtuals.subscription_by_user(ctx.database, (user.id for user in users))
    return [found[user.id] for user in users]


@resolvers.field("Subscription", "plan")
async def plan_of(ctx: Context, subscriptions: list[Subscription]) -> list[Plan | None]:
    found = await ctx.plans.by_id(subscription.plan_id for subscription in subscriptions)
    return [found[subscription.plan_id] for subscription in subscriptions]


async def _mirrored(ctx: Context, coupon: str | None = None) -> tuple[Mirrors, Subscription] | None:
    """Stripe, and the actor's live subscription that it bills.
    Raises CouponNotApplicable there for a coupon of ours."""
    if ctx.settings.stripe_key is None:
        return None
    provider, found = rail(ctx.database, ctx.settings), await stripe_mirror.of_user(ctx.database, ctx.actor)
    if found is None or not isinstance(provider, Mirrors):
        return None
    if coupon:
        raise CouponNotApplicable("Stripe bills this subscription: it takes no coupon with a change of plan")
    return provider, found


def _checkout(found: Checkout) -> dict[str, Any]:
    terms = found.terms
    return {
        "id": found.id,
        "kind": found.kind,
        "url": found.url,
        "status": found.status,
        "problem": found.problem,
        "plan_id": terms.plan_id,
        "plan_name": terms.plan_name,
        "price_minor": terms.price_minor,
        "currency": terms.currency,
        "interval": terms.interval,
        "coupon": terms.rebate.code if terms.rebate else None,
        "trial_days": found.trial_days,
        "checkout": found,
        "expires_at": found.expires_at,
        "created_at": found.created_at,
    }


def methods_of(found: list[Method]) -> list[dict[str, Any]]:
    return [
        {
            "id": each.id,
            "label": each.label,
            "is_default": each is found[0],
            "expires": each.expires,
            "declined": each.declined,
        }
        for each in found
    ]


def upcoming_of(found: subscriptions.Upcoming | None) -> dict[str, Any] | None:
    return found and {"at": found.period.start, "plan_id": found.terms.plan_id, "quote": _quote(found.quote)}


def _quote(quote: Quote | None) -> dict[str, Any] | None:
    if quote is None:
        return None
    return {
        "currency": quote.currency,
        "lines": quote.lines,
        "discount_minor": quote.discount_minor,
        "net_minor": quote.net_minor,
        "tax_minor": quote.tax_minor,
        "total_minor": quote.total_minor,
        "due_minor": quote.due_minor,
        "balance_after_minor": quote.balance_minor,
    }


def _url(ctx: Context, invoice_id: object) -> str:
    return f"{ctx.settings.base_url}/invoices/{invoice_id}"


def _position(after: str | None) -> Position | None:
    return None if after is None else decode_cursor(after)
