"""The ledger of recurring revenue: a row for every change of what a subscription
brings in a year. Owns `movements`.

Rows are written in the transaction of the step that causes them, at most one command a step, and are never
changed. `analytics` computes its reports from them. Trials, free plans and tax do not count; a coupon counts
if it holds for ever.
"""

from collections.abc import Iterable
from datetime import datetime

import msgspec
from bson import ObjectId

from ximler.billing import states
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount, Recurring
from ximler.schema.movement import MOVEMENTS, Movement, Step
from ximler.schema.plan import Interval
from ximler.schema.subscription import Subscription

__all__ = [
    "YEARLY",
    "Movement",
    "Step",
    "correct",
    "follow",
    "mirror",
    "of_subscription",
    "of_users",
    "pending",
    "recorded",
    "rolled",
    "steps_of",
    "users",
]

_LATEST = [("at", -1), ("number", -1)]
_IN_ORDER = [("userId", 1), ("at", 1), ("number", 1)]
YEARLY: dict[Interval, int] = {"MONTH": 12, "YEAR": 1}


async def follow(transaction: Database, account: BillingAccount, now: Recurring | None) -> None:
    """Record the locked account's recurring revenue if it has changed.
    No command if it has not, otherwise one."""
    before = account.recurring
    if now == before:
        return
    rows, at = _following(before, now), transaction.clock.now()
    numbered = enumerate(rows, account.movements + 1)
    await transaction[MOVEMENTS].insert_many([_movement(account.id, row, number, at) for number, row in numbered])
    account.recurring, account.movements = now, account.movements + len(rows)


async def mirror(transaction: Database, subscription: Subscription, interval: Interval | None) -> None:
    """Record the recurring revenue of a subscription that Ximler does not bill,
    if it has changed. Two commands at most."""
    latest = await transaction[MOVEMENTS].find_one({"subscriptionId": subscription.id}, sort=_LATEST)
    now = of_subscription(subscription, interval, transaction.clock.now())
    if now != recorded(latest):
        first = latest.number + 1 if latest else 1
        rows = enumerate(_following(recorded(latest), now), first)
        await transaction[MOVEMENTS].insert_many(
            [_movement(subscription.user_id, row, number, transaction.clock.now()) for number, row in rows]
        )


async def correct(database: Database, user_id: ObjectId, now: Recurring | None, latest: Movement | None) -> None:
    """Add what follows `latest` and no step has written. The rows' ids never meet those of a step's rows."""
    at = database.clock.now()
    rows = [
        _movement(user_id, row, number, at)
        for number, row in enumerate(_following(recorded(latest), now), latest.number if latest else 0)
    ]
    for row in rows:
        row.id = f"{row.id}:{at:%Y%m%dT%H%M%S.%f}"
    await database[MOVEMENTS].insert_many(rows)


async def pending(database: Database, limit: int) -> list[ObjectId]:
    """Users with movements that are not in the rollups yet: those of `limit` movements."""
    return list({row.user_id for row in await database[MOVEMENTS].find({"pending": True}, limit=limit)})


async def of_users(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, list[Movement]]:
    """All movements of each user, in order."""
    return await database[MOVEMENTS].find_by("userId", user_ids, sort=_IN_ORDER)


async def steps_of(database: Database, user_ids: Iterable[ObjectId]) -> dict[ObjectId, list[Step]]:
    """The same, with only the fields of each movement that reports are computed from."""
    found: dict[ObjectId, list[Step]] = {user_id: [] for user_id in user_ids}
    rows = {user_id.binary: rows for user_id, rows in found.items()}  # bytes hash faster
    for row in await database[MOVEMENTS].find({"userId": {"$in": list(found)}}, into=Step, sort=_IN_ORDER):
        rows[row.user_id.binary].append(row)
    return found


async def users(database: Database) -> list[ObjectId]:
    """Every user with a movement."""
    rows = await database[MOVEMENTS].aggregate([{"$sort": {"userId": 1}}, {"$group": {"_id": "$userId"}}])
    return [row["_id"] for row in rows]


async def rolled(transaction: Database, rows: Iterable[Step]) -> None:
    """Mark movements as being in the rollups."""
    ids = [row.id for row in rows if row.pending]
    if ids:
        await transaction[MOVEMENTS].patch_many({"_id": {"$in": ids}}, {"$unset": {"pending": ""}})


def _movement(user_id: ObjectId, row: Recurring, number: int, at: datetime) -> Movement:
    return Movement(
        id=f"{row.subscription_id}:{number}",
        user_id=user_id,
        subscription_id=row.subscription_id,
        number=number,
        at=at,
        plan_id=row.plan_id,
        currency=row.currency,
        annual_minor=row.annual_minor,
        committed_minor=row.committed_minor,
        at_risk_minor=row.at_risk_minor,
        pending=True,
    )


def recorded(row: Movement | None) -> Recurring | None:
    """A subscription's recurring revenue by its latest movement; None if it has none."""
    if row is None or not row.annual_minor:
        return None
    return Recurring(**{name: getattr(row, name) for name in Recurring.__struct_fields__})


def _following(before: Recurring | None, now: Recurring | None) -> list[Recurring]:
    """The movements of a change: a subscription that ends, or has another currency now,
    brings 0 in the old one."""
    rows = [now] if now is not None else []
    if before is not None and (now is None or _place(now) != _place(before)):
        rows.insert(0, _nothing(before))
    return rows


def _place(row: Recurring) -> tuple[ObjectId, str]:
    return row.subscription_id, row.currency


def _nothing(row: Recurring) -> Recurring:
    return msgspec.structs.replace(row, annual_minor=0, committed_minor=0, at_risk_minor=0)


def of_subscription(subscription: Subscription, interval: Interval | None, at: datetime) -> Recurring | None:
    """By its own fields, as another application or Stripe keeps them."""
    if interval is None or subscription.status not in states.LIVE:
        return None
    if subscription.trial_end is not None and subscription.trial_end > at:
        return None
    try:
        annual = subscription.price_minor * YEARLY[interval]
    except Invalid:  # a price that its currency cannot express
        return None
    if annual <= 0:
        return None
    return Recurring(
        subscription_id=subscription.id,
        plan_id=subscription.plan_id,
        currency=subscription.currency.upper(),
        annual_minor=annual,
        committed_minor=annual if subscription.auto_renew else 0,
        at_risk_minor=annual if subscription.status == "PAST_DUE" else 0,
    )
