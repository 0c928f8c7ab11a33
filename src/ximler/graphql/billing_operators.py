"""Resolvers of billing for operators: any user's billing, refunds, credit, plans and coupons."""

from typing import Any

from ximler.billing import catalogue, coupons, operations, refunds, statement
from ximler.billing.operations import Repriced
from ximler.billing.rails import rail
from ximler.billing.refunds import Refund
from ximler.core.errors import Invalid
from ximler.core.ids import decode_cursor, object_id
from ximler.core.money import Money
from ximler.graphql.billing import methods_of, upcoming_of
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.schema.coupon import Coupon
from ximler.schema.payment import Payment
from ximler.schema.plan import Plan
from ximler.schema.subscription import Subscription

resolvers = Resolvers()

# Fields that an edit may leave out, but not set to null.
_COUPON = {
    "name": "name", "type": "type", "value": "value", "currency": "currency", "valid_from": "validFrom",
    "valid_until": "validUntil",
}  # fmt: skip
_PLAN = {"name": "name", "price": "price", "features": "features", "limits": "limits", "active": "active"}


@resolvers.query("userBilling")
async def user_billing(ctx: Context, user_id: str) -> dict[str, Any]:
    found = await statement.read(ctx.database, ctx.actor, object_id(user_id, "userId"))
    return {
        "user_id": found.user_id,
        "subscription": found.subscription,
        "next_at": found.next_at,
        "upcoming_invoice": upcoming_of(found.upcoming),
        "credit_balance": [
            {"currency": currency, "balance_minor": minor} for currency, minor in sorted(found.balances.items())
        ],
        "billing_details": found.details,
        "payment_methods": methods_of(found.methods),
        "invoices": found.invoices,
        "payments": found.payments,
        "refunds": found.refunds,
        "redemptions": found.redemptions,
    }


@resolvers.query("coupons")
async def list_coupons(
    ctx: Context, active: bool | None = None, first: int | None = None, after: str | None = None
) -> Connection[Coupon]:
    position = None if after is None else decode_cursor(after)
    return Connection(
        await coupons.page(ctx.database, ctx.actor, active=active, first=page_size(first), after=position)
    )


@resolvers.mutation("refundPayment")
async def refund_payment(ctx: Context, input: dict[str, Any]) -> Refund:  # noqa: A002 (GraphQL's customary name)
    ctx.actor.require_operator()
    return await refunds.refund(
        ctx.database,
        rail(ctx.database, ctx.settings),
        ctx.actor,
        user_id=object_id(input["user_id"], "userId"),
        payment_id=object_id(input["payment_id"], "paymentId"),
        amount_minor=input.get("amount_minor"),
        to=input["to"],
        reason=input["reason"],
        key=input.get("key"),
    )


@resolvers.mutation("grantCredit")
async def grant_credit(ctx: Context, input: dict[str, Any]) -> dict[str, Any]:  # noqa: A002 (as above)
    amount = Money(input["amount_minor"], input["currency"].strip().upper())
    balance = await statement.grant(
        ctx.database,
        ctx.actor,
        user_id=object_id(input["user_id"], "userId"),
        amount=amount,
        reason=input["reason"],
        key=input.get("key"),
    )
    return {"currency": amount.currency, "balance_minor": balance}


@resolvers.mutation("extendSubscription")
async def extend_subscription(ctx: Context, input: dict[str, Any]) -> Subscription:  # noqa: A002 (as above)
    user_id = object_id(input["user_id"], "userId")
    return await operations.extend(
        ctx.database, ctx.actor, user_id=user_id, until=input["until"], reason=input["reason"]
    )


@resolvers.mutation("markInvoicePaid")
async def mark_invoice_paid(ctx: Context, input: dict[str, Any]) -> Payment:  # noqa: A002 (as above)
    return await operations.mark_paid(
        ctx.database,
        ctx.actor,
        user_id=object_id(input["user_id"], "userId"),
        invoice_id=object_id(input["invoice_id"], "invoiceId"),
        method=input["method"],
        reason=input["reason"],
    )


@resolvers.mutation("repricePlan")
async def reprice_plan(ctx: Context, id: str, *, dry_run: bool) -> Repriced:  # noqa: A002 (as above)
    return await operations.reprice(ctx.database, ctx.actor, plan_id=id, dry_run=dry_run)


@resolvers.query("planCatalogue")
async def plan_catalogue(ctx: Context) -> list[Plan]:
    return await catalogue.every(ctx.database, ctx.actor)


@resolvers.mutation("createPlan")
async def create_plan(ctx: Context, input: dict[str, Any]) -> Plan:  # noqa: A002 (as above)
    return await catalogue.create(ctx.database, ctx.actor, **input)


@resolvers.mutation("editPlan")
async def edit_plan(ctx: Context, id: str, input: dict[str, Any]) -> Plan:  # noqa: A002 (as above)
    _refuse_null(input, _PLAN)
    return await catalogue.edit(ctx.database, ctx.actor, id, **input)


@resolvers.mutation("retirePlan")
async def retire_plan(ctx: Context, id: str) -> Plan:  # noqa: A002 (as above)
    return await catalogue.retire(ctx.database, ctx.actor, id)


@resolvers.mutation("createCoupon")
async def create_coupon(ctx: Context, input: dict[str, Any]) -> Coupon:  # noqa: A002 (as above)
    given = {name: value for name, value in input.items() if value is not None}
    return await coupons.create(ctx.database, ctx.actor, **{"name": input["code"].strip().upper()} | given)


@resolvers.mutation("editCoupon")
async def edit_coupon(ctx: Context, code: str, input: dict[str, Any]) -> Coupon:  # noqa: A002 (as above)
    _refuse_null(input, _COUPON)
    changes = input | ({"applicable_plans": []} if input.get("applicable_plans", ...) is None else {})
    return await coupons.edit(ctx.database, ctx.actor, code, **changes)


@resolvers.mutation("endCoupon")
async def end_coupon(ctx: Context, code: str) -> Coupon:
    return await coupons.end(ctx.database, ctx.actor, code)


@resolvers.field("Coupon", "duration")
async def duration(_: Context, found: list[Coupon]) -> list[str]:
    return [each.duration or "ONCE" for each in found]


def _refuse_null(input: dict[str, Any], fields: dict[str, str]) -> None:  # noqa: A002 (as above)
    for name, field in fields.items():
        if input.get(name, ...) is None:
            raise Invalid.field(field, "is required")
