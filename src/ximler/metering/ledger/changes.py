"""Settlement of gauges: added and removed projects and bytes reach the ledger, each in its hour.

A gauge records the changes that the ledger may lack, by hour, in the update that makes them
(`metering.quota.gauges`). Settling derives the rows from them, then removes them from the gauge unless it has
changed meanwhile.

A reading of a gauge has a version, `number + steps + 1`: each change increments `steps`, and removing the
hours moves `number` up to the version in the rows. A row stores the units of the latest version. If its
version is above the gauge's `number`, its units are an earlier reading of the same hours and are replaced;
otherwise they are final, and the new units are added. So settling is idempotent and safe to race, to delay
and to kill: each change counts once.
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
    """Settle once a second until stopped. At least one process must run it."""
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
    """Settle all changes so far, of one user or of all; returns the number of users.

    One command if there are none, two more for up to 1,000 users. Safe to race and to kill.
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
    """Resource, hour and units of changes that the ledger may lack. Other values are logged and skipped."""
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
    # Committed, because rows would keep a change that a failover rolls back.
    return await database[GAUGES].committed.find(where, sort=[("due", 1)], limit=_AT_ONCE)


async def _add(database: Database, gauges: list[Gauge]) -> None:
    changes = [_change(database, gauge, *change) for gauge in gauges for change in pending(gauge)]
    await rows.apply(database, changes)


def _change(
    database: Database, gauge: Gauge, resource: Literal["projects", "storage"], hour: int, units: int
) -> rows.Change:
    version, base = gauge.number + gauge.steps + 1, gauge.number
    if gauge.sent:  # numbered by an earlier version of Ximler: rows that include it have its number
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
            # The hours too, because processes of an earlier version do not count steps.
            same |= {"steps": gauge.steps or {"$in": [0, None]}, "hours": gauge.hours or {"$in": [{}, None]}}
            number = gauge.number + gauge.steps + 1
            changes.append((same, {"$set": {"hours": {}, "steps": 0, "number": number, "due": None}}))
    await database[GAUGES].patch_each(changes)
