"""Uses of a coupon: reserved by a checkout, confirmed by its payment, else given back. Owns `redemptions`.

Exactly `maxUses`, under any number of racing buyers, and once per user. Reserving takes three commands and no
transaction, so that buyers who want the same coupon do not abort each other:

1. insert the redemption: its `_id` is coupon and user, so a user has one;
2. count it: one guarded `$inc` of `usedCount`, which also leaves the
   attempt's token in the coupon's `pending`;
3. mark the redemption as counted.

Buyers who wait in one process share these commands (`billing.counting`).

The token makes every crash recoverable. A process that dies between 2 and 3 leaves a token in `pending` whose
redemption is not counted: that use is given back, by an update that requires the token, so it is given back
once. A reservation that was marked is released in a transaction. Tokens of marked redemptions are removed
from `pending` a few dozen at a time.
"""

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog
from bson import ObjectId

from ximler.billing import counting
from ximler.billing.coupons import (
    CouponAlreadyUsed,
    CouponNotFound,
    discount_of,
    normalised,
    refusal,
)
from ximler.billing.pricing import Discount
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, Unavailable, XimlerError
from ximler.core.together import Together
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.failures import DocumentExists
from ximler.database.updates import Update
from ximler.schema.coupon import Coupon
from ximler.schema.plan import Plan
from ximler.schema.redemption import REDEMPTIONS, Redemption, RedemptionStatus, redemption_id

__all__ = [
    "HELD_WHILE_PAID",
    "HOLD",
    "Reservation",
    "ReservationLapsed",
    "check",
    "claim_fingerprint",
    "confirm",
    "hold",
    "release",
    "reserve",
    "sweep",
    "undo",
    "used",
]

_log = structlog.get_logger("ximler.billing")
HOLD = timedelta(hours=1)  # of a reservation that is not confirmed
HELD_WHILE_PAID = timedelta(days=30)  # while its payment is under way
_GRACE = timedelta(seconds=60)  # for the steps of one attempt, after which it is taken for dead
_TAKE_OVER = timedelta(seconds=5)  # the same, where the user waits for it
_LOOK_AGAIN_S = 0.02
_MANY_PENDING = 32
_ROUNDS = 500


class ReservationLapsed(Conflict):
    """It was not confirmed in time, and its use was given back: reserve again."""

    code = "RESERVATION_LAPSED"


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A use of a coupon that is held until `expires_at`.
    `id` and `token` name it to `confirm` and `release`."""

    id: str
    token: str
    discount: Discount
    expires_at: datetime


async def reserve(database: Database, actor: Actor, code: str, *, plan: Plan, hold: timedelta = HOLD) -> Reservation:
    """Hold one use of the coupon for the actor, who is about to subscribe to the plan.
    Three commands; not in a transaction.

    A user has one reservation per coupon: reserving again, also at the same moment, returns the same one for
    longer. Raises CouponNotFound, CouponExpired, CouponNotApplicable, CouponExhausted, CouponAlreadyUsed.
    """
    user_id, code = actor.require_user(), normalised(code)
    for _ in range(_ROUNDS):
        token = str(ObjectId())
        redemption = Redemption(
            id=redemption_id(code, user_id),
            code=code,
            user_id=user_id,
            plan_id=plan.id,
            token=token,
            expires_at=database.clock.now() + _GRACE,
        )
        if not await counting.insert(database, redemption):
            held = await _held(database, user_id, code, plan, hold)
            if held is not None:
                return held
            continue
        coupon = await counting.count(database, code, plan, user_id=user_id, token=token, hold=hold)
        if coupon is None:
            if (problem := await _refusing((id(database), code, plan.id), (database, code, plan))) is not None:
                raise problem
            continue  # there is room after all
        if len(coupon.pending) > _MANY_PENDING:
            await _tidying((id(database), code), (database, coupon))
        reservation_id = redemption_id(code, user_id)
        try:
            discount = discount_of(coupon)
        except Invalid:  # an amount that its currency does not have, stored by another application
            await release(database, reservation_id, token)
            raise
        return Reservation(id=reservation_id, token=token, discount=discount, expires_at=database.clock.now() + hold)
    raise Unavailable(f"The coupon {code} is in great demand: try again in a moment")


async def check(database: Database, actor: Actor, code: str, *, plan: Plan, fingerprint: str | None = None) -> Coupon:
    """The coupon, if the actor could reserve it for the plan now. Holds nothing;
    raises the errors of `reserve`.

    With `fingerprint`, also if that payment method used it. One command.
    """
    user_id, code = actor.require_user(), normalised(code)
    own = {"_id": redemption_id(code, user_id)}
    where = own if fingerprint is None else {"$or": [own, {"code": code, "fingerprint": fingerprint}]}
    both = {"$unionWith": {"coll": REDEMPTIONS.name, "pipeline": [{"$match": where}]}}
    rows = await database.coupons.aggregate([{"$match": {"code": code}}, both])
    found = [codec_of(Redemption).decode(row) for row in rows if "token" in row]
    held = next((each for each in found if each.user_id == user_id), None)
    if held is not None and held.status == "CONFIRMED":
        raise _already_used(code)
    if len(found) > (held is not None):
        raise _used_by_method()
    coupon = next((codec_of(Coupon).decode(row) for row in rows if "token" not in row), None)
    if coupon is None:
        raise CouponNotFound(f"There is no coupon {code}")
    if held is not None and held.counted:
        coupon = msgspec.structs.replace(coupon, max_uses=None)  # a use of it is held already
    if (problem := refusal(coupon, plan, database.clock.now())) is not None:
        if problem.code != "COUPON_EXHAUSTED":
            raise problem
        if (problem := await _refusal(database, code, plan)) is not None:  # unless unused reservations have expired
            raise problem
    return coupon


def _already_used(code: str) -> CouponAlreadyUsed:
    return CouponAlreadyUsed(f"The coupon {code} was used already: it can be used once")


def _used_by_method() -> CouponAlreadyUsed:
    return CouponAlreadyUsed("This coupon was used with this payment method already")


async def used(database: Database, user_id: ObjectId, code: str) -> bool:
    """Whether the user's use of the coupon is confirmed. One command."""
    own = {"_id": redemption_id(normalised(code), user_id), "status": "CONFIRMED"}
    return await database[REDEMPTIONS].find_one(own) is not None


async def hold(transaction: Database, reservation_id: str, token: str, until: datetime) -> None:
    """Keep a reservation while a payment decides it. One command. Raises ReservationLapsed."""
    held = {"_id": reservation_id, "token": token, "status": "RESERVED", "counted": True}
    if not await transaction[REDEMPTIONS].patch(held, {"$max": {"expiresAt": until}}):
        raise ReservationLapsed("The coupon was reserved too long ago: enter it again")


async def undo(transaction: Database, code: str, user_id: ObjectId, status: RedemptionStatus) -> None:
    """Give back the user's use of the coupon if it has that status:
    the change that it was for does not happen."""
    own = {"_id": redemption_id(code, user_id), "status": status, "counted": True}
    found = await transaction[REDEMPTIONS].find_one(own)
    if found is not None:
        await _release(transaction, {**own, "token": found.token})


async def confirm(transaction: Database, reservation_id: str, token: str, *, subscription_id: ObjectId) -> None:
    """The use is final, in the transaction that makes the subscription. One command;
    confirming twice counts once.

    Raises ReservationLapsed.
    """
    confirmed = await transaction[REDEMPTIONS].patch(
        {"_id": reservation_id, "token": token, "counted": True},
        {
            "$set": {
                "status": "CONFIRMED",
                "confirmedAt": transaction.clock.now(),
                "subscriptionId": subscription_id,
            },
            "$unset": {"expiresAt": ""},
        },
    )
    if not confirmed:
        raise ReservationLapsed("The coupon was reserved too long ago: enter it again")


async def claim_fingerprint(database: Database, reservation_id: str, token: str, fingerprint: str) -> None:
    """Bind the use to a payment method, which can use a coupon once, under any e-mail address.

    Call it before the payment, outside of a transaction. Raises CouponAlreadyUsed, ReservationLapsed.
    """
    try:
        claimed = await database[REDEMPTIONS].patch(
            {"_id": reservation_id, "token": token}, {"$set": {"fingerprint": fingerprint}}
        )
    except DocumentExists:
        raise _used_by_method() from None
    if not claimed:
        raise ReservationLapsed("The coupon was reserved too long ago: enter it again")


async def release(database: Database, reservation_id: str, token: str) -> bool:
    """Give an unconfirmed use back. Idempotent and safe to race. False when there is nothing to give back."""

    return await _release(database, {"_id": reservation_id, "token": token})


async def _release(database: Database, which: dict[str, Any]) -> bool:
    token, code = which["token"], which["_id"].rpartition(":")[0]

    async def write(transaction: Database) -> bool:
        where = {"status": "RESERVED", "counted": True, **which}
        if not await transaction[REDEMPTIONS].delete(where):
            return False
        await transaction.coupons.patch({"code": code}, {"$inc": {"usedCount": -1}, "$unset": {f"pending.{token}": ""}})
        return True

    return await database.transaction(write)


async def sweep(database: Database) -> int:
    """Give back uses that abandoned checkouts and dead processes hold; returns how many.
    Safe to repeat and to race."""
    count = 0
    expired = {"status": "RESERVED", "expiresAt": {"$lte": database.clock.now()}}
    async for redemption in database[REDEMPTIONS].stream(expired):
        count += await _apart(_abandon(database, redemption), redemption.code)
    async for coupon in database.coupons.stream({"_id": {"$gt": ObjectId(bytes(12))}}):
        if coupon.pending:
            count += await _apart(_tidy(database, coupon), coupon.code)
    return count


async def _apart(step: Awaitable[int], code: str) -> int:
    """A step of the sweep, whose failure does not hold up the others. Raises Unavailable."""
    try:
        return await step
    except Unavailable:
        raise
    except Exception as problem:
        _log.error("coupon not swept", code=code, reason=f"{type(problem).__name__}: {problem}")
        return 0


async def _held(database: Database, user_id: ObjectId, code: str, plan: Plan, hold: timedelta) -> Reservation | None:
    """The reservation that the user has already; None when it is time to try again.
    Raises CouponAlreadyUsed."""
    found = await database[REDEMPTIONS].find_one({"_id": redemption_id(code, user_id)})
    if found is None:
        return None
    if found.status == "CONFIRMED":
        raise _already_used(code)
    now = database.clock.now()
    if not found.counted:  # by another request of theirs, this very moment or until it died
        if found.created_at + _TAKE_OVER < now:
            await _abandon(database, found)
        else:
            await asyncio.sleep(_LOOK_AGAIN_S)
        return None
    coupon = await database.coupons.find_one({"code": code})
    if coupon is None:
        raise CouponNotFound(f"There is no coupon {code}")
    spare = msgspec.structs.replace(coupon, max_uses=None)  # a use of it is held already
    if (problem := refusal(spare, plan, now)) is not None:
        raise problem
    where = {"_id": found.id, "token": found.token, "status": "RESERVED", "counted": True}
    update: Update = {"$set": {"planId": plan.id}, "$max": {"expiresAt": now + hold}}
    if not await database[REDEMPTIONS].patch(where, update):
        return None
    return Reservation(id=found.id, token=found.token, discount=discount_of(coupon), expires_at=now + hold)


async def _refusal(database: Database, code: str, plan: Plan) -> XimlerError | None:
    """Why the coupon was not counted; None if it can be now:
    uses of expired reservations are given back first."""
    coupon = await database.coupons.find_one({"code": code})
    if coupon is None:
        return CouponNotFound(f"There is no coupon {code}")
    problem = refusal(coupon, plan, database.clock.now())
    if problem is None:
        return None
    if problem.code == "COUPON_EXHAUSTED":
        expired = {"code": code, "status": "RESERVED", "expiresAt": {"$lte": database.clock.now()}}
        given_back = [await _abandon(database, each) for each in await database[REDEMPTIONS].find(expired)]
        if any(given_back):
            return None
        dead = database.clock.now() - _GRACE
        if any(at <= dead for _, at in _pending(coupon).values()) and await _tidy(database, coupon):
            return None
    return problem


async def _refuse(_: tuple[int, str, str], waiting: list[tuple[Database, str, Plan]]) -> list[XimlerError | None]:
    return [await _refusal(*waiting[0])] * len(waiting)


_refusing = Together(_refuse)


async def _abandon(database: Database, redemption: Redemption) -> bool:
    """Give back the use that an expired reservation or a dead attempt holds. True if there was one."""
    if redemption.counted:
        unchanged = {"_id": redemption.id, "token": redemption.token, "expiresAt": redemption.expires_at}
        return await _release(database, unchanged)
    attempt = counting.attempt(redemption.code, redemption.user_id, redemption.token)
    if not await database[REDEMPTIONS].delete(attempt):
        return False  # it went on meanwhile
    return await counting.give_back(database, redemption.code, redemption.token)


async def _tidy(database: Database, coupon: Coupon) -> int:
    """Remove tokens of marked redemptions from the coupon, and undo those of dead attempts;
    returns how many were undone."""
    undone = 0
    pending = _pending(coupon)
    ids = [redemption_id(coupon.code, user_id) for user_id, _ in pending.values()]
    rows = {row.token: row for row in await database[REDEMPTIONS].find({"_id": {"$in": ids}})}
    marked = [token for token in pending if token in rows and rows[token].counted]
    if marked:
        await database.coupons.patch({"_id": coupon.id}, {"$unset": {f"pending.{token}": "" for token in marked}})
    dead = database.clock.now() - _GRACE
    for token, (user_id, at) in pending.items():
        if token in marked or at > dead:
            continue
        attempt = counting.attempt(coupon.code, user_id, token)
        await database[REDEMPTIONS].delete(attempt)
        row = await database[REDEMPTIONS].find_one({"_id": attempt["_id"]})
        if row is None or row.token != token:  # not marked since
            undone += await counting.give_back(database, coupon.code, token)
    return undone


async def _tidy_together(_: tuple[int, str], waiting: list[tuple[Database, Coupon]]) -> list[int]:
    """Buyers who were counted by one command have the same coupon in hand."""
    return [await _tidy(*waiting[-1])] * len(waiting)


_tidying = Together(_tidy_together)


def _pending(coupon: Coupon) -> dict[str, tuple[ObjectId, datetime]]:
    return {token: (each["userId"], each["at"]) for token, each in coupon.pending.items()}
