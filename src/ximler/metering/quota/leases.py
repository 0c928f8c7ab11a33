"""Steps of a quota: each is one guarded update of its document, so that any number of processes may take them at once.

Invariant: `granted = settled + forfeited + Σ open leases`; nothing is granted past the limit. Every step names the lease and
the count it was seen with, so one that is sent twice, or overtaken, counts once. What a step did is read from the document.

Reads are majority reads: what a primary that is about to be replaced has not replicated must not be spent. A new primary may
answer one with what was so before our latest step: `steps` tells.
"""

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.read_concern import ReadConcern

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.schema.quota import QUOTAS, Quota

__all__ = [
    "SILENT", "Report", "Return", "current", "forfeit", "grant", "hour_key", "hour_of", "read", "read_many", "settle", "silent",
]  # fmt: skip

T = TypeVar("T")

SILENT = timedelta(seconds=30)  # after this, a lease is looked at
_MAJORITY = ReadConcern("majority")
_NO_HISTORY = {"hours": 0, "detail": 0}
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_UNLIMITED = 2**62
_SHARE = 8
_PARTS = 200
_SHARE_OF_UNLIMITED = 1000


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one lease has handed out since it last said so: units by hour, and some of them by key and route."""

    quota_id: str
    lease_id: str
    seq: int  # of the lease, before this
    units: int
    hours: dict[str, int]
    detail: dict[str, int]  # path below `detail` → units
    forget: Sequence[str] = ()  # hours whose detail is in the ledger


class Return(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that its holder ends, having reported all that it handed out."""

    quota_id: str
    lease_id: str
    seq: int
    grants: int
    n: int


async def grant(
    database: Database,
    quota_id: str,
    lease_id: str,
    *,
    grants: int,
    need: int,
    want: int,
    pace: int,
    silent_after: timedelta = SILENT,
) -> Quota | None:
    """Take units for a lease that has had `grants` grants (0: there is none yet). One command.

    At least `need`, or nothing; otherwise an eighth of what is free, up to `pace` or 0.5 % of the limit, but `want` if it can
    be had. Returns the quota without its hours, whatever was granted; None when there is no such quota or lease, or nothing is
    granted by it any more: `read` tells.
    """
    now = database.clock.now()
    lease = f"leases.{lease_id}"
    where: dict[str, Any] = {"_id": quota_id, "opened": True, "superseded": False}
    where[f"{lease}.grants" if grants else lease] = grants or {"$exists": False}
    limit = {
        "$cond": [{"$lte": [{"$ifNull": ["$limitUntil", _NEVER]}, now]}, {"$ifNull": ["$limitThen", -1]}, "$limit"]
    }
    part = {"$cond": [{"$lt": ["$$limit", 0]}, _SHARE_OF_UNLIMITED, {"$floor": {"$divide": ["$$limit", _PARTS]}}]}
    cap = {"$max": [part, pace, 1]}
    share = {"$min": [{"$floor": {"$divide": ["$$free", _SHARE]}}, cap]}
    units = {"$toLong": {"$min": ["$$free", {"$max": [share, want, need]}]}}
    free = {
        "$cond": [
            {"$lt": ["$$limit", 0]},
            _UNLIMITED,
            {"$subtract": ["$$limit", {"$add": ["$granted", "$ingested", "$foreign"]}]},
        ]
    }
    granting = {
        "$let": {
            "vars": {"limit": limit},
            "in": {
                "$let": {"vars": {"free": free}, "in": {"$cond": [{"$lt": ["$$free", max(need, 1)]}, 0, units]}},
            },
        }
    }
    granted = {
        "n": {"$add": [{"$ifNull": [f"${lease}.n", 0]}, "$granting"]},
        "seq": {"$ifNull": [f"${lease}.seq", 0]},
        "grants": grants + 1,
        "at": to_ms(now),
    }
    stages: list[dict[str, Any]] = [
        {"$set": {"granting": granting}},
        {
            "$set": {
                "granted": {"$add": ["$granted", "$granting"]},
                "steps": {"$add": ["$steps", 1]},
                lease: {"$cond": [{"$gt": ["$granting", 0]}, granted, f"${lease}" if grants else "$$REMOVE"]},
                "lookAt": {
                    "$cond": [{"$gt": ["$granting", 0]}, {"$ifNull": ["$lookAt", now + silent_after]}, "$lookAt"]
                },
                "updatedAt": now,
            }
        },
        {"$unset": "granting"},
    ]
    raw = await _run(
        database[QUOTAS].raw.find_one_and_update(
            where, stages, projection=_NO_HISTORY, return_document=ReturnDocument.AFTER
        )
    )
    return None if raw is None else codec_of(Quota).decode(raw)


async def current(database: Database, user_id: ObjectId) -> Quota | None:
    """The user's open quota of API calls, without its hours. One command."""
    now = database.clock.now()
    raw = database[QUOTAS].raw.with_options(read_concern=_MAJORITY)
    found = await _run(
        raw.find(
            {
                "userId": user_id,
                "resource": "apiCalls",
                "periodStart": {"$lte": now},
                "periodEnd": {"$gt": now},
                "opened": True,
                "superseded": False,
            },
            _NO_HISTORY,
        )
        .sort("periodStart", -1)
        .limit(1)
        .to_list()
    )
    return codec_of(Quota).decode(found[0]) if found else None


async def read(database: Database, quota_id: str) -> Quota | None:
    """The quota as a majority knows it, without its hours."""
    found = await read_many(database, [quota_id])
    return found.get(quota_id)


async def read_many(database: Database, quota_ids: Iterable[str], *, hours: Iterable[str] = ()) -> dict[str, Quota]:
    """The quotas as a majority knows them, with these of their hours. One command."""
    ids = list(quota_ids)
    if not ids:
        return {}
    shown: dict[str, int] = dict.fromkeys((n for n in Quota.__struct_encode_fields__ if n not in _NO_HISTORY), 1)
    shown |= {f"{part}.{hour}": 1 for hour in hours for part in _NO_HISTORY}
    raw = database[QUOTAS].raw.with_options(read_concern=_MAJORITY)
    found = await _run(raw.find({"_id": {"$in": ids}}, shown).to_list())
    return {quota.id: quota for quota in database[QUOTAS].readable(found)}


async def settle(database: Database, reports: Iterable[Report], returns: Iterable[Return] = ()) -> None:
    """Count what leases have handed out, each report once however often it is sent, and end others. One command.

    Whether a report was taken is seen from its lease's `seq`.
    """
    now = to_ms(database.clock.now())
    changes = [_settlement(report, now) for report in reports] + [_return(ended) for ended in returns]
    await database[QUOTAS].patch_each(changes)


def _settlement(report: Report, now: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    lease = f"leases.{report.lease_id}"
    counted = {"steps": 1, "settled": report.units, f"{lease}.n": -report.units, f"{lease}.seq": 1}
    counted |= {f"hours.{hour}": units for hour, units in report.hours.items()}
    counted |= {f"detail.{path}": units for path, units in report.detail.items()}
    update: dict[str, dict[str, Any]] = {"$inc": counted, "$set": {f"{lease}.at": now}}
    if report.forget:
        update["$unset"] = {f"detail.{hour}": "" for hour in report.forget}
    return {"_id": report.quota_id, f"{lease}.seq": report.seq}, update


def _return(ended: Return) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    lease = f"leases.{ended.lease_id}"
    where = {"_id": ended.quota_id, f"{lease}.seq": ended.seq, f"{lease}.grants": ended.grants}
    return where, {"$inc": {"steps": 1, "granted": -ended.n}, "$unset": {lease: ""}}


async def silent(database: Database, *, limit: int = 100) -> list[Quota]:
    """Quotas that may have a lease whose process is gone, hours and all, the oldest first."""
    return await database[QUOTAS].find({"lookAt": {"$lte": database.clock.now()}}, sort=[("lookAt", 1)], limit=limit)


async def forfeit(
    database: Database, quota: Quota, lease_ids: Iterable[str], *, silent_after: timedelta = SILENT
) -> bool:
    """Write off these leases, exactly as seen in `quota`, and say when to look again. False when one has moved since.

    What they held may have been handed out, so it is not granted again; an operator may `forgive` it. One command.
    """
    lost = {lease_id: lease for lease_id in lease_ids if (lease := quota.lease(lease_id))}
    kept = [lease for key in quota.leases if key not in lost and (lease := quota.lease(key))]
    where: dict[str, Any] = {"_id": quota.id}
    for lease_id, lease in lost.items():
        where |= {f"leases.{lease_id}.seq": lease.seq, f"leases.{lease_id}.grants": lease.grants}
    look = None
    if kept:
        look = max(from_ms(min(lease.at for lease in kept)) + silent_after, database.clock.now() + silent_after / 6)
    else:
        where["steps"] = quota.steps  # or a lease that was taken meanwhile would never be looked at
    update: dict[str, Mapping[str, Any]] = {"$set": {"lookAt": look}}
    if lost:
        update["$inc"] = {"steps": 1, "forfeited": sum(lease.n for lease in lost.values())}
        update["$unset"] = {f"leases.{lease_id}": "" for lease_id in lost}
    return await database[QUOTAS].patch(where, update)


def hour_of(moment_ms: int) -> int:
    """Hours since 1970."""
    return moment_ms // 3_600_000


def hour_key(hour: int) -> str:
    return f"h{hour}"


async def _run(operation: Awaitable[T]) -> T:
    try:
        return await operation
    except DRIVER_ERRORS as error:
        final = translated(error, "quotas")
        if final is error:
            raise
        raise final from error
