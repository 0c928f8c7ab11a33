"""Compares the ledger of movements with the subscriptions.
It finds those that other applications wrote, and lost rows."""

import msgspec
import structlog
from bson import ObjectId

from ximler.billing import movements, states
from ximler.billing.account import recurring
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.movement import Movement

__all__ = ["Drift", "check"]

_USERS = 500
_log = structlog.get_logger("ximler.billing")


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription that the ledger disagrees with. Minor units a year."""

    user_id: ObjectId
    subscription_id: ObjectId
    currency: str
    recorded_minor: int
    actual_minor: int


async def check(database: Database, *, repair: bool = False) -> list[Drift]:
    """Every subscription that the ledger disagrees with; `repair` adds the missing row, as of now.

    Safe to race and to repeat. Subscriptions of a plan that does not exist are logged,
    and left as they are recorded.
    """
    drifts: list[Drift] = []
    batch: list[ObjectId] = []
    async for user in database.users.stream({}, deleted=True):
        batch.append(user.id)
        if len(batch) == _USERS:
            drifts += await _of(database, batch, repair=repair)
            batch = []
    return drifts + (await _of(database, batch, repair=repair) if batch else [])


async def _of(database: Database, user_ids: list[ObjectId], *, repair: bool) -> list[Drift]:
    # One snapshot: a step between two readings would look like a drift.
    return await database.transaction(lambda transaction: _compare(transaction, user_ids, repair=repair))


async def _compare(database: Database, user_ids: list[ObjectId], *, repair: bool) -> list[Drift]:
    users, now = {"$in": user_ids}, database.clock.now()
    intervals = {plan.id: plan.interval for plan in await database.plans.find({"id": {"$gt": ""}})}
    live = await database.subscriptions.find({"userId": users, "status": {"$in": list(states.LIVE)}})
    accounts = await database[BILLING_ACCOUNTS].find({"_id": users, "subscriptionId": {"$type": "objectId"}})
    billed = {account.subscription_id: account for account in accounts}
    latest: dict[ObjectId, Movement] = {}
    for rows in (await movements.of_users(database, user_ids)).values():
        latest |= {row.subscription_id: row for row in rows}
    owners = {row.subscription_id: row.user_id for row in latest.values()} | {each.id: each.user_id for each in live}
    actual = dict.fromkeys(owners)
    for each in live:
        if each.id in billed:
            try:
                actual[each.id] = recurring(billed[each.id], database.business)
            except Invalid as problem:  # of this account only
                _log.error("recurring revenue unknown", subscription=str(each.id), reason=problem.message)
                actual[each.id] = movements.recorded(latest.get(each.id))
        elif each.plan_id in intervals:
            actual[each.id] = movements.of_subscription(each, intervals[each.plan_id], now)
        else:
            _log.warning("subscription of an unknown plan", subscription=str(each.id), plan=each.plan_id)
            actual[each.id] = movements.recorded(latest.get(each.id))
    gone = [each for each, now in actual.items() if now is None and movements.recorded(latest.get(each)) is not None]
    lives = {"$match": {"_id": {"$in": gone}, "status": {"$in": list(states.LIVE)}}}
    for row in await database.subscriptions.aggregate([lives, {"$project": {"_id": 1}}]):  # live, and cannot be read
        _log.warning("subscription cannot be read", subscription=str(row["_id"]))
        actual[row["_id"]] = movements.recorded(latest.get(row["_id"]))
    drifts = []
    for subscription_id, user_id in owners.items():
        is_now, was = actual[subscription_id], movements.recorded(latest.get(subscription_id))
        known = is_now or was
        if is_now == was or known is None:
            continue
        drifts.append(
            Drift(
                user_id=user_id,
                subscription_id=subscription_id,
                currency=known.currency,
                recorded_minor=was.annual_minor if was else 0,
                actual_minor=is_now.annual_minor if is_now else 0,
            )
        )
        if repair:
            await movements.correct(database, user_id, is_now, latest.get(subscription_id))
    return drifts
