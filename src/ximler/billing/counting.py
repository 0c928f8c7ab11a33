"""Reservations of coupons, for all buyers of a process who wait at the same time:
three commands for up to 64 of them.

A coupon is one document, which every redemption changes. One command inserts the redemptions of the buyers
who wait, one guarded update counts as many uses as fit under `maxUses`, and one command marks the redemptions
that it counted.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from bson import ObjectId

from ximler.billing.coupons import usable_at
from ximler.core.together import Together
from ximler.database import Database
from ximler.schema.coupon import Coupon
from ximler.schema.plan import Plan
from ximler.schema.redemption import REDEMPTIONS, Redemption, redemption_id

__all__ = ["attempt", "count", "give_back", "insert"]


class _Waiting(msgspec.Struct, frozen=True):
    database: Database
    user_id: ObjectId
    token: str
    hold: timedelta
    plan: Plan


async def insert(database: Database, redemption: Redemption) -> bool:
    """Insert the redemption of an attempt; False where the user has one of this coupon. One command."""
    return await _inserting(id(database), (database, redemption))


async def count(
    database: Database, code: str, plan: Plan, *, user_id: ObjectId, token: str, hold: timedelta
) -> Coupon | None:
    """Count a use for an attempt that was inserted, and mark its redemption,
    reserved for `hold`. Two commands.

    Returns the coupon; or None, with nothing counted and the attempt deleted, if there is no usable coupon,
    no use is left, or the attempt was taken for dead.
    """
    return await _counting((id(database), code, plan.id), _Waiting(database, user_id, token, hold, plan))


async def give_back(database: Database, code: str, token: str) -> bool:
    """Undo the counting, once. Only for a token that no redemption will be marked with any more."""
    return await database.coupons.patch(
        {"code": code, f"pending.{token}": {"$exists": True}},
        {"$inc": {"usedCount": -1}, "$unset": {f"pending.{token}": ""}},
    )


def attempt(code: str, user_id: ObjectId, token: str) -> dict[str, Any]:
    """The filter of an unmarked attempt. Marking and giving up use it, so only one of them takes effect."""
    return {"_id": redemption_id(code, user_id), "token": token, "status": "RESERVED", "counted": False}


async def _insert(_: int, waiting: list[tuple[Database, Redemption]]) -> list[bool]:
    database, _first = waiting[0]
    return await database[REDEMPTIONS].insert_each([redemption for _, redemption in waiting])


async def _reserve(key: tuple[int, str, str], waiting: list[_Waiting]) -> list[Coupon | None]:
    (_, code, _plan_id), database = key, waiting[0].database
    coupon, counted = await _count(database, code, waiting[0].plan, waiting)
    marked = await _mark(database, code, counted)
    if rest := [each for each in waiting if each.token not in marked]:
        attempts = [attempt(code, each.user_id, each.token) for each in rest]
        merged = {name: {"$in": [each[name] for each in attempts]} for name in ("_id", "token")}
        await database[REDEMPTIONS].delete_many(attempts[0] | merged)
    return [coupon if each.token in marked else None for each in waiting]


_inserting = Together(_insert)
_counting = Together(_reserve)


async def _count(
    database: Database, code: str, plan: Plan, batch: list[_Waiting]
) -> tuple[Coupon | None, list[_Waiting]]:
    """Count as many of the batch as fit, first come first served.
    Returns the coupon afterwards, and the counted buyers."""
    room = len(batch)
    while room > 0:
        some, now = batch[:room], database.clock.now()
        pending = {f"pending.{each.token}": {"userId": each.user_id, "at": now} for each in some}
        coupon = await database.coupons.find_and_patch(
            usable_at(code, plan, now, uses=room), {"$inc": {"usedCount": room}, "$set": pending}
        )
        if coupon is not None:
            return coupon, some
        if room == 1:
            break
        found = await database.coupons.find_one({"code": code})
        if found is None or found.max_uses is None:
            break
        room = min(found.max_uses - found.used_count, room - 1)
    return None, []


async def _mark(database: Database, code: str, counted: list[_Waiting]) -> set[str]:
    """Mark the counted redemptions; returns their tokens.
    The use of an attempt that was taken for dead is given back."""
    tokens = {each.token for each in counted}
    if not counted:
        return tokens
    now = database.clock.now()
    changes = [(attempt(code, each.user_id, each.token), _reserved(now + each.hold)) for each in counted]
    if await database[REDEMPTIONS].patch_each(changes) == len(counted):
        return tokens
    ids = [redemption_id(code, each.user_id) for each in counted]
    rows = await database[REDEMPTIONS].find({"_id": {"$in": ids}})
    marked = {row.token for row in rows if row.counted} & tokens
    for token in tokens - marked:
        await give_back(database, code, token)
    return marked


def _reserved(expires_at: datetime) -> dict[str, dict[str, Any]]:
    return {"$set": {"counted": True, "expiresAt": expires_at}}
