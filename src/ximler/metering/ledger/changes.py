"""Changes of gauges reach the ledger: projects and bytes that were added and removed, each in its hour.

A gauge keeps the changes that the ledger may lack, by the hour, in the update that makes them (`metering.quota.gauges`).
Settling derives the rows from them and then removes them from the gauge, unless it has changed meanwhile.

A reading of a gauge has a version, `number + steps + 1`: each change moves `steps`, and removing the hours moves `number` up
to the version that the rows have. A row keeps the units of the latest version. Where its version is above the gauge's
`number`, its units are an earlier reading of the same hours and are replaced; otherwise they are done with, and the new ones
are added to them. So any process may settle at any time, late or again, and be killed anywhere: each change counts once.
"""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import structlog
from bson import ObjectId

from ximler.core.clock import EPOCH
from ximler.core.errors import Unavailable
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.metering.ledger import rows
from ximler.runtime import Part, background
from ximler.schema.gauge import GAUGES, Gauge

__all__ = ["RESOURCES", "keep_settling", "pending", "settle"]

RESOURCES: tuple[Literal["projects", "storage"], ...] = ("projects", "storage")
_AT_ONCE = 1000
_LOOK_EVERY_S = 1.0
_log = structlog.get_logger("ximler.metering")


@background
def _changes(*, database: Database) -> Part:
    return Part("metering.changes", partial(keep_settling, database), lease=True)


async def keep_settling(database: Database, stop: asyncio.Event) -> None:
    """Settle once a second until stopped. Run it in at least one process."""
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
    """Bring all changes so far into the ledger, of one user or of everybody; returns the number of users.

    One command where there is nothing to do, two more for up to 1,000 users. Safe to race, and to be killed at any moment.
    """
    count = 0
    while found := await _due(database, user_id):
        await _add(database, found)
        await _remove(database, found)
        count += len(found)
        if len(found) < _AT_ONCE and not any(gauge.sent for gauge in found):
            break
    return count


def pending(gauge: Gauge) -> Iterator[tuple[Literal["projects", "storage"], int, int]]:
    """Resource, hour and units of changes that the ledger may lack. Other values than these are logged and left out."""
    for key, change in (gauge.sent or gauge.hours).items():
        hour = rows.hour_of_key(key)
        for resource in RESOURCES:
            units = change.get(resource, 0) if isinstance(change, dict) else None
            if hour is None or not isinstance(units, int | float):
                _log.warning("change left out", id=str(gauge.id), field=f"hours.{key}")
                break
            if resource in change:
                yield resource, hour, rows.whole(units)


async def _due(database: Database, user_id: ObjectId | None) -> list[Gauge]:
    where: dict[str, Any] = {"due": {"$gt": EPOCH}} | ({} if user_id is None else {"_id": user_id})
    # A row that was derived from a change that a failover rolls back would keep it.
    return await database[GAUGES].committed.find(where, sort=[("due", 1)], limit=_AT_ONCE)


async def _add(database: Database, gauges: list[Gauge]) -> None:
    changes = [_change(database, gauge, *change) for gauge in gauges for change in pending(gauge)]
    await rows.apply(database, changes)


def _change(
    database: Database, gauge: Gauge, resource: Literal["projects", "storage"], hour: int, units: int
) -> rows.Change:
    version, base = gauge.number + gauge.steps + 1, gauge.number
    if gauge.sent:  # numbered by an earlier version of Ximler: the rows that have it are at its number
        version, base = gauge.number, gauge.number - 1
    part = "$metadata.changed"
    replaced = {"$cond": [{"$gt": [f"{part}.through", base]}, {"$ifNull": [f"{part}.units", 0]}, 0]}
    return rows.change(
        database,
        gauge.id,
        resource,
        hour,
        "changed",
        gained={"$subtract": [units, replaced]},
        values={"through": version, "units": units},
        unless_through={"$gte" if gauge.sent else "$gt": version},
    )


async def _remove(database: Database, gauges: list[Gauge]) -> None:
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for gauge in gauges:
        same = {"_id": gauge.id, "number": gauge.number}
        if gauge.sent:
            changes.append(({**same, "sent": gauge.sent}, {"$set": {"sent": {}}}))
        else:
            # The hours, too: a process of an earlier version does not count its steps.
            same |= {"steps": gauge.steps or {"$in": [0, None]}, "hours": gauge.hours or {"$in": [{}, None]}}
            number = gauge.number + gauge.steps + 1
            changes.append((same, {"$set": {"hours": {}, "steps": 0, "number": number, "due": None}}))
    await database[GAUGES].patch_each(changes)
