"""Steps of a quota: each is one guarded update of its document, so that any number of processes may take them
at once.

Invariant: `granted = settled + forfeited + Σ open leases`; nothing is granted past the limit. The filter of
every step names the lease and the count of its last step, so steps are idempotent and late ones have no
effect. Results are read from the document.

Reads use majority read concern: units that a failing primary has not replicated must not be spent. A newly
elected primary may return a document older than the latest step; `steps` shows it.
"""

from collections.abc import Awaitable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import structlog
from bson import ObjectId
from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern

from ximler.core.clock import to_ms
from ximler.core.errors import Unavailable, XimlerError
from ximler.database import Database, monitoring
from ximler.database.codec import codec_of
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.schema.quota import QUOTAS, Quota

__all__ = [
    "Report", "Return", "adopt", "current", "forfeit", "grant", "holder_of", "holders", "hour_key", "hour_of", "read",
    "read_many", "settle",
]  # fmt: skip

T = TypeVar("T")

_log = structlog.get_logger("ximler.metering")
_MAJORITY = ReadConcern("majority")
_NO_HISTORY = {"hours": 0, "detail": 0}
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_UNLIMITED = 2**62
_SHARE = 8
_PARTS = 200
_SHARE_OF_UNLIMITED = 1000

# `holders` as it follows from `leases`. Every step that adds or removes a lease sets it.
_HOLDERS = {
    "$setUnion": {
        "$map": {
            "input": {"$objectToArray": {"$cond": [{"$eq": [{"$type": "$leases"}, "object"]}, "$leases", {}]}},
            "in": {"$first": {"$split": ["$$this.k", "-"]}},
        }
    }
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Units that one lease handed out since its last report: by hour, and in part by key and route."""

    quota_id: str
    lease_id: str
    seq: int  # of the lease, before this
    units: int
    hours: dict[str, int]
    detail: dict[str, int]  # path below `detail` → units
    forget: Sequence[str] = ()  # hours whose detail is in the ledger


class Return(msgspec.Struct, frozen=True, kw_only=True):
    """The return of a lease whose use is reported: its open units become free."""

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
) -> Quota | None:
    """Grant units to a lease that had `grants` grants (0: a new lease). One command.

    The heartbeat of its process must be valid. Grants at least `need` units or none: an eighth of the free
    units, up to `pace` or 0.5 % of the limit, or `want` where that is more. Returns the quota without its
    hours, also if no unit was granted. Returns None when the quota or the lease does not exist, or the quota
    is closed; `read` shows which.
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
                "updatedAt": now,
            }
        },
        {"$set": {"holders": _HOLDERS, "granting": "$$REMOVE"}},
    ]
    raw = await _run(
        database[QUOTAS].raw.find_one_and_update(
            where, stages, projection=_NO_HISTORY, return_document=ReturnDocument.AFTER
        )
    )
    return None if raw is None else codec_of(Quota).decode(raw)


async def current(database: Database, user_id: ObjectId) -> tuple[Quota, bool] | None:
    """The user's open quota of API calls, without its hours, and whether it has its plan's present limit. One
    command.
    """
    now = database.clock.now()
    raw = database[QUOTAS].raw.with_options(read_concern=_MAJORITY)
    where = {
        "userId": user_id,
        "resource": "apiCalls",
        "periodStart": {"$lte": now},
        "periodEnd": {"$gt": now},
        "opened": True,
        "superseded": False,
    }
    stages: list[dict[str, Any]] = [
        {"$match": where},
        {"$sort": {"periodStart": -1}},
        {"$limit": 1},
        {"$project": _NO_HISTORY},
        {"$lookup": {"from": "plans", "localField": "planId", "foreignField": "id", "as": "plan"}},
        {"$set": {"plan": {"$first": "$plan.limits.apiCalls"}}},
    ]
    found = await _run((await _run(raw.aggregate(stages))).to_list())
    if not found:
        return None
    plan_limit = found[0].pop("plan", None)
    quota = codec_of(Quota).decode(found[0])
    copied = quota.limit if quota.limit_until is None else quota.limit_then
    return quota, not isinstance(plan_limit, int) or quota.plan_id is None or copied == plan_limit


async def read(database: Database, quota_id: str) -> Quota | None:
    """The quota without its hours, read with majority read concern."""
    found = await read_many(database, [quota_id])
    return found.get(quota_id)


async def read_many(database: Database, quota_ids: Iterable[str], *, hours: Iterable[str] = ()) -> dict[str, Quota]:
    """The quotas with the given hours, read with majority read concern. One command."""
    ids = list(quota_ids)
    if not ids:
        return {}
    shown: dict[str, int] = dict.fromkeys((n for n in Quota.__struct_encode_fields__ if n not in _NO_HISTORY), 1)
    shown |= {f"{part}.{hour}": 1 for hour in hours for part in _NO_HISTORY}
    raw = database[QUOTAS].raw.with_options(read_concern=_MAJORITY)
    found = await _run(raw.find({"_id": {"$in": ids}}, shown).to_list())
    return {quota.id: quota for quota in database[QUOTAS].readable(found)}


async def settle(database: Database, reports: Iterable[Report], returns: Iterable[Return] = ()) -> None:
    """Count reported units and end returned leases. Idempotent: a lease's `seq` shows whether its report was
    counted.

    One command.
    """
    now = database.clock.now()
    await _update(
        database, [*(_settlement(report, now) for report in reports), *(_return(ended, now) for ended in returns)]
    )


def _settlement(report: Report, now: datetime) -> UpdateOne:
    lease = f"leases.{report.lease_id}"
    counted = {"steps": 1, "settled": report.units, f"{lease}.n": -report.units, f"{lease}.seq": 1}
    counted |= {f"hours.{hour}": units for hour, units in report.hours.items()}
    counted |= {f"detail.{path}": units for path, units in report.detail.items()}
    update: dict[str, dict[str, Any]] = {"$inc": counted, "$set": {f"{lease}.at": to_ms(now), "updatedAt": now}}
    if report.forget:
        update["$unset"] = {f"detail.{hour}": "" for hour in report.forget}
    return UpdateOne({"_id": report.quota_id, f"{lease}.seq": report.seq}, update)


def _return(ended: Return, now: datetime) -> UpdateOne:
    lease = f"leases.{ended.lease_id}"
    where = {"_id": ended.quota_id, f"{lease}.seq": ended.seq, f"{lease}.grants": ended.grants}
    return UpdateOne(where, _ending([ended.lease_id], {"granted": -ended.n}, now))


async def holders(database: Database) -> set[str]:
    """The processes that hold leases, dead or alive. One command; it examines one index key per process."""
    return {process for process in await _run(database[QUOTAS].raw.distinct("holders")) if isinstance(process, str)}


def holder_of(lease_id: str) -> str:
    """The process of a lease. A lease of a release without heartbeats is its own holder."""
    return lease_id.split("-", 1)[0]


async def adopt(database: Database) -> None:
    """Record the holders of leases that releases without heartbeats have taken: those quotas have `lookAt`.
    One command.
    """
    now = database.clock.now()
    recorded = [{"$set": {"holders": _HOLDERS, "lookAt": "$$REMOVE"}}]
    await _run(database[QUOTAS].raw.update_many({"lookAt": {"$lte": now}}, recorded))


async def forfeit(database: Database, lost: Iterable[tuple[Quota, Sequence[str]]]) -> int:
    """Forfeit leases, each quota's only if none of them has moved since it was read; returns for how many
    quotas it did so.

    Their units may have been handed out, so they are not granted again; an operator may `forgive` them. One
    command.
    """
    now = database.clock.now()
    return await _update(database, [_forfeiture(quota, lease_ids, now) for quota, lease_ids in lost])


def _forfeiture(quota: Quota, lease_ids: Sequence[str], now: datetime) -> UpdateOne:
    where: dict[str, Any] = {"_id": quota.id}
    for lease_id in lease_ids:
        lease = quota.open_leases[lease_id]
        where |= {f"leases.{lease_id}.seq": lease.seq, f"leases.{lease_id}.grants": lease.grants}
    units = sum(quota.open_leases[lease_id].n for lease_id in lease_ids)
    return UpdateOne(where, _ending(lease_ids, {"forfeited": units}, now))


def _ending(lease_ids: Sequence[str], counts: dict[str, int], now: datetime) -> list[dict[str, Any]]:
    """The update that removes leases and adds to `counts`."""
    added: dict[str, Any] = {name: {"$add": [f"${name}", n]} for name, n in ({"steps": 1} | counts).items()}
    removed = {f"leases.{lease_id}": "$$REMOVE" for lease_id in lease_ids}
    return [{"$set": {**added, **removed, "updatedAt": now}}, {"$set": {"holders": _HOLDERS}}]


def hour_of(moment_ms: int) -> int:
    """Hours since 1970."""
    return moment_ms // 3_600_000


def hour_key(hour: int) -> str:
    return f"h{hour}"


async def _update(database: Database, updates: list[UpdateOne]) -> int:
    """Send guarded updates in any order, with one command; returns how many were made.

    A quota that does not take its update, because of a value of a wrong type, is logged and left out.
    """
    if not updates:
        return 0
    try:
        return (await database[QUOTAS].raw.bulk_write(updates, ordered=False)).matched_count
    except BulkWriteError as error:
        final = translated(error, QUOTAS.name)
        if not isinstance(final, XimlerError) or isinstance(final, Unavailable):
            raise final from error
        for failure in error.details["writeErrors"]:
            refused = failure["op"]["q"]["_id"]
            if monitoring.first_time(QUOTAS.name, refused):
                _log.error("quota left out", id=str(refused), reason=failure["errmsg"])
        return int(error.details["nMatched"])
    except DRIVER_ERRORS as error:
        raise translated(error, QUOTAS.name) from error


async def _run(operation: Awaitable[T]) -> T:
    try:
        return await operation
    except DRIVER_ERRORS as error:
        final = translated(error, "quotas")
        if final is error:
            raise
        raise final from error
