"""Changes of gauges on their way into the ledger: what was added and removed of projects and bytes, in its hour.

A gauge notes each change in the update that makes it (`metering.quota.gauges`). Settling moves what is noted aside under the
gauge's next number, adds it to the rows that do not have that number yet, and forgets it. Whoever finds something moved aside
finishes it, so it does not matter who dies when, or who comes late.

What a transaction holds that was never ended cannot be settled, nor what comes after it, until the server gives that up: a
minute at most.
"""

import asyncio
from functools import partial
from typing import Any, Literal

import structlog
from bson import ObjectId
from pymongo.read_concern import ReadConcern

from ximler.core.clock import EPOCH, to_ms
from ximler.core.errors import Unavailable
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.metering.ledger import rows
from ximler.metering.ledger.rows import Addition
from ximler.runtime import Part, background
from ximler.schema.gauge import GAUGES, Gauge

__all__ = ["RESOURCES", "keep_settling", "noted", "settle"]

RESOURCES: tuple[Literal["projects", "storage"], ...] = ("projects", "storage")
_AT_ONCE = 1000
_LOOK_EVERY_S = 1.0
_MAJORITY = ReadConcern("majority")
_log = structlog.get_logger("ximler.metering")


@background
def _changes(*, database: Database) -> Part:
    return Part("metering.changes", partial(keep_settling, database), lease=True)


async def keep_settling(database: Database, stop: asyncio.Event) -> None:
    """Settle, once a second, until stopped. Run it in at least one process."""
    unreachable = False
    while not await pause(stop, _LOOK_EVERY_S):
        try:
            await settle(database)
        except Unavailable as error:
            if not unreachable:
                _log.warning("changes wait for the ledger", reason=error.message)
            unreachable = True
        else:
            unreachable = False


async def settle(database: Database, *, user_id: ObjectId | None = None) -> int:
    """Bring what was changed by now into the ledger, of one user or of everybody; returns of how many users.

    One command where there is nothing to do, four more for up to 1,000 users. Safe to race, and to be killed at any moment.
    """
    count = 0
    where: dict[str, Any] = {"due": {"$gt": EPOCH}} | ({} if user_id is None else {"_id": user_id})
    while found := await database[GAUGES].find(where, sort=[("due", 1)], limit=_AT_ONCE):
        fresh = await _move_aside(database, [gauge.id for gauge in found])
        moved = await _moved(database, [gauge.id for gauge in found])
        await rows.add(database, "changed", [addition for gauge in moved for addition in _additions(gauge)])
        await _forget(database, moved)
        count += len(found)
        if len(found) < _AT_ONCE and fresh == len(found):
            break  # else somebody had moved something aside before, and what came after it is next
    return count


def noted(gauge: Gauge, resource: Literal["projects", "storage"]) -> int:
    """What the gauge has noted of a resource and not moved aside."""
    return sum(int(change.get(resource) or 0) for change in gauge.hours.values())


async def _move_aside(database: Database, user_ids: list[ObjectId]) -> int:
    """Of how many gauges. Where something is aside already, that comes first."""
    aside = {
        "sent": "$hours",
        "hours": {"$literal": {}},
        # Larger than that of any gauge that was there before this one: the rows may remember that one's.
        "number": {"$max": [{"$add": [{"$ifNull": ["$number", 0]}, 1]}, to_ms(database.clock.now())]},
    }
    nothing = {"sent": {"$in": [None, {}]}, "due": {"$gt": EPOCH}}
    return await database[GAUGES].recompute_each(
        ({"_id": user_id, **nothing}, [{"$set": aside}]) for user_id in user_ids
    )


async def _moved(database: Database, user_ids: list[ObjectId]) -> list[Gauge]:
    """As a majority knows it: what a primary that is about to be replaced has moved aside would be moved again, as another
    number."""
    raw = database[GAUGES].raw.with_options(read_concern=_MAJORITY)
    try:
        found = await raw.find({"_id": {"$in": user_ids}}).to_list()
    except DRIVER_ERRORS as error:
        raise translated(error, GAUGES.name) from error
    return list(map(codec_of(Gauge).decode, found))


def _additions(gauge: Gauge) -> list[Addition]:
    return [
        Addition(user_id=gauge.id, resource=resource, hour=int(key[1:]), number=gauge.number, amount=int(amount))
        for key, change in gauge.sent.items()
        for resource in RESOURCES
        if (amount := change.get(resource))
    ]


async def _forget(database: Database, moved: list[Gauge]) -> None:
    settled: dict[str, Any] = {"sent": {}}
    changes: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]] = []
    for gauge in moved:
        this = {"_id": gauge.id, "number": gauge.number}
        changes.append(({**this, "hours": {}}, {"$set": {**settled, "due": None}}))
        changes.append(({**this, "hours": {"$ne": {}}}, {"$set": settled}))  # changed again meanwhile
    await database[GAUGES].patch_each(changes)
