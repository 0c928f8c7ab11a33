"""Counting uses of a coupon for all buyers who wait for one in this process, with two commands for as many as there are.

A coupon is one document, which every redemption changes. So waiting redemptions are counted together: one guarded update adds
as many uses as fit under `maxUses`, and a second command marks the redemptions that it counted. A buyer who is alone waits
for nobody.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from bson import ObjectId

from ximler.billing.coupons import usable_at
from ximler.database import Database
from ximler.schema.coupon import Coupon
from ximler.schema.plan import Plan
from ximler.schema.redemption import REDEMPTIONS, redemption_id

__all__ = ["attempt", "count", "give_back"]

_TOGETHER = 64

Key = tuple[str, str]


class _Waiting(msgspec.Struct, frozen=True):
    user_id: ObjectId
    token: str
    hold: timedelta
    counted: "asyncio.Future[Coupon | None]"


_queues: "WeakKeyDictionary[Database, dict[Key, list[_Waiting]]]" = WeakKeyDictionary()
_tasks: set[asyncio.Task[None]] = set()  # kept from being collected while they run


async def count(
    database: Database, code: str, plan: Plan, *, user_id: ObjectId, token: str, hold: timedelta
) -> Coupon | None:
    """Count a use for an attempt that was inserted, and mark its redemption, reserved for `hold`. Two commands.

    Returns the coupon, or None where there is none to use, no use is left, or the attempt was taken for dead: then nothing
    is counted.
    """
    waiting = _Waiting(user_id, token, hold, asyncio.get_running_loop().create_future())
    queues = _queues.setdefault(database, {})
    key = (code, plan.id)
    if (queue := queues.get(key)) is not None:
        queue.append(waiting)
    else:
        queues[key] = [waiting]
        # A task of its own: a buyer who gives up does not take the others along.
        task = asyncio.create_task(_run(database, queues, key, plan))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    return await waiting.counted


async def give_back(database: Database, code: str, token: str) -> bool:
    """Undo the counting, once. Only for a token that no redemption will be marked with any more."""
    return await database.coupons.patch(
        {"code": code, f"pending.{token}": {"$exists": True}},
        {"$inc": {"usedCount": -1}, "$unset": {f"pending.{token}": ""}},
    )


def attempt(code: str, user_id: ObjectId, token: str) -> dict[str, Any]:
    """The filter of an attempt that is not marked yet: with it, either it is marked or it is taken for dead."""
    return {"_id": redemption_id(code, user_id), "token": token, "status": "RESERVED", "counted": False}


async def _run(database: Database, queues: dict[Key, list[_Waiting]], key: Key, plan: Plan) -> None:
    while batch := queues[key][:_TOGETHER]:
        del queues[key][:_TOGETHER]
        try:
            coupon, counted = await _count(database, key[0], plan, batch)
            marked = await _mark(database, key[0], counted)
        except BaseException as error:
            _settle(batch, lambda waiting, error=error: waiting.counted.set_exception(error))  # type: ignore[misc]
            if not isinstance(error, Exception):
                _settle(queues.pop(key), lambda waiting: waiting.counted.cancel())
                raise
            continue
        _settle(
            batch,
            lambda waiting, coupon=coupon, marked=marked: waiting.counted.set_result(  # type: ignore[misc]
                coupon if waiting.token in marked else None
            ),
        )
    del queues[key]


def _settle(batch: list[_Waiting], settle: Callable[[_Waiting], object]) -> None:
    for waiting in batch:
        if not waiting.counted.done():  # else its caller was cancelled
            settle(waiting)


async def _count(
    database: Database, code: str, plan: Plan, batch: list[_Waiting]
) -> tuple[Coupon | None, list[_Waiting]]:
    """Count as many of the batch as there is room for, first come first served; the coupon afterwards, and who was counted."""
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
    """Mark the counted redemptions; returns their tokens. The use of an attempt that was taken for dead is given back."""
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
