"""A coupon on a running subscription: redeemed now, and applied from the next invoice on.

A new coupon replaces the one that still applied, as at Stripe; the replaced one counts as used. The current
period and an open invoice keep their amounts.
"""

import msgspec

from ximler.audit.actions import Action
from ximler.billing import changes, redemptions, subscriptions
from ximler.billing.account import find, in_turn, live, rebate, store
from ximler.billing.coupons import CouponAlreadyUsed, CouponNotApplicable
from ximler.billing.methods import MethodNeeded
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, NotFound, XimlerError
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount
from ximler.schema.subscription import Subscription

__all__ = ["apply"]


async def apply(database: Database, actor: Actor, code: str) -> Subscription:
    """Redeem a coupon for the actor's subscription.
    It must be valid for the plan of the next period. Audited.

    Raises NotFound without a subscription, Conflict if it is about to end, MethodNeeded, and the errors of
    `redemptions.reserve`.
    """
    user_id = actor.require_user()
    account = await find(database, user_id)
    plan_id, method = _next_plan(account), account.method
    if method is None:
        raise MethodNeeded("Add a payment method first: each can use a coupon once")
    plan = await database.plans.get({"id": plan_id})
    plan = msgspec.structs.replace(plan, currency=live(account).terms.currency)  # the subscription's own
    held = await redemptions.reserve(database, actor, code, plan=plan)

    async def write(transaction: Database) -> Subscription:
        account, subscription = await subscriptions.get_live(transaction, user_id)
        if _next_plan(account) != plan_id:
            raise Conflict("The plan was changed at the same moment: enter the coupon again")
        if account.charge_id is not None:  # of a change of plan, say, whose terms take effect when it is paid
            raise Conflict("A payment is under way: enter the coupon again when it is decided")
        _, terms, _ = live(account)
        applied = account.pending_rebate or terms.rebate
        replaced = applied.code if applied else None
        terms.rebate, account.pending_rebate = rebate(held.discount), None
        await redemptions.confirm(transaction, held.id, held.token, subscription_id=subscription.id)
        await subscriptions.record(
            transaction, actor, Action.COUPON_APPLIED, account, code=held.discount.code, replaced=replaced
        )
        await store(transaction, account)
        return subscription

    try:
        if held.discount.minor is not None and held.discount.currency != plan.currency:
            raise CouponNotApplicable(f"The coupon {code} takes off {held.discount.currency}, not {plan.currency}")
        await redemptions.claim_fingerprint(database, held.id, held.token, method.fingerprint)
        return await in_turn(database, user_id, write)
    except XimlerError as problem:
        if isinstance(problem, Conflict | NotFound | CouponAlreadyUsed):
            await changes.let_go(database, user_id, held)
        raise


def _next_plan(account: BillingAccount) -> str:
    """The plan of the next period. Raises NotFound, Conflict."""
    if account.subscription_id is None:
        raise NotFound("You have no subscription")
    if account.cancels:
        raise Conflict("The subscription is about to end: resume it first")
    return (account.pending or live(account).terms).plan_id
