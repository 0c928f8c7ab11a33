"""Pruning: removal of entries past their retention, so that the rest can still be verified.

Whole seals are removed from the chain's beginning, once all their entries are old enough. First a tombstone
is appended: a signed seal with the number and hash of the last removed seal. Then the entries are deleted,
then their seals. The next run completes an interrupted one.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from ximler.audit import records, seals
from ximler.audit.actions import Action
from ximler.audit.erasure import maintenance, refused
from ximler.audit.keys import SealKeys
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, Invalid, Unavailable
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.failures import translated
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.seal import SEALS, SealHead

__all__ = ["prune", "prune_expired"]

_log = structlog.get_logger("ximler.audit")
_AT_ONCE = 5_000
_CLOCKS_DIFFER = timedelta(seconds=5)


async def prune(
    database: Database,
    keys: SealKeys,
    actor: Actor,
    *,
    before: datetime,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Remove sealed entries from before `before`; returns how many. Operators only.

    Unsealed entries stay. Raises Invalid for a future time, Forbidden, NoSealKey, NotAllowed, and Conflict if
    a seal is not genuine.
    """
    actor.require_operator()
    if before > database.clock.now() + _CLOCKS_DIFFER:
        raise Invalid.field("before", "lies in the future")
    async with maintenance(database) as allowed:
        try:
            await allowed.raw[AUDIT_LOGS.name].delete_one({"_id": {"$in": []}})  # checks the permission
            await _bury(database, keys, actor, before)
            return await _remove(allowed, keys, progress)
        except OperationFailure as error:
            raise refused(error) from error
        except PyMongoError as error:
            raise translated(error, AUDIT_LOGS.name) from error


@outbox.daily("audit.prune", hour=3)
async def prune_expired(*, database: Database, settings: Settings, seal_keys: SealKeys | None) -> None:
    """Remove entries older than the retention setting. Raises Unavailable without the sealing key."""
    if settings.audit_retention_days is None:
        return
    if seal_keys is None:
        raise Unavailable("Pruning the audit log requires the key that seals it: set XIMLER_AUDIT_KEY for the worker")
    before = database.clock.now() - timedelta(days=settings.audit_retention_days)
    count = await prune(database, seal_keys, SYSTEM, before=before)
    _log.info("audit log pruned", entries=count, before=before.isoformat())


async def _bury(database: Database, keys: SealKeys, actor: Actor, before: datetime) -> None:
    """Append the tombstone, if there is something to prune."""
    through, count = None, 0
    former = await _tombstone(database, keys)
    first = 1 if former is None else (former.pruned_through or 0) + 1
    end = await seals.last(database)
    async for seal in seals.from_number(database, first):
        if end is None or seal.id >= end.id or (seal.last_at or seal.reached_at) >= before:
            break  # the last seal stays: it records how far the log is sealed
        _require_genuine(seal, keys)
        if seal.kind == "entries":
            through, count = seal, count + seal.count
        elif former is not None and seal.id == former.id:
            break  # the current tombstone stays valid until the next one
    if through is None or end is None:
        return
    total = count + (former.pruned_count or 0 if former else 0)
    for _ in range(20):
        tombstone = await seals.append(
            database,
            keys,
            end,
            kind="pruned",
            reached_at=end.reached_at,
            position=end.position,
            pruned_through=through.id,
            pruned_hash=seals.hash_of(through),
            pruned_count=total,
        )
        if tombstone is not None:
            await records.write(
                database,
                actor,
                Action.LOG_PRUNED,
                resource=AUDIT_LOGS.name,
                until=before,
                entries=count,
                through_seal=through.id,
            )
            return
        end = await seals.last(database)
        assert end is not None  # noqa: S101 (the failed append implies a seal)
    raise Conflict("The log is being sealed by others all the time: try again")


async def _remove(database: Database, keys: SealKeys, progress: Callable[[int], object]) -> int:
    """Remove what the tombstone covers."""
    tombstone = await _tombstone(database, keys)
    if tombstone is None or tombstone.pruned_through is None:
        return 0
    count = 0
    async for seal in seals.from_number(database, 1, to=tombstone.pruned_through):
        _require_genuine(seal, keys)
        ids = [ObjectId(oid) for oid, _, _ in seals.members_of(seal)]
        for start in range(0, len(ids), _AT_ONCE):
            where = {"_id": {"$in": ids[start : start + _AT_ONCE]}}
            count += (await database.raw[AUDIT_LOGS.name].delete_many(where)).deleted_count
        # After its entries, because a concurrent verification expects missing entries while their seal
        # exists.
        await database[SEALS].delete({"_id": seal.id})
        progress(count)
    return count


async def _tombstone(database: Database, keys: SealKeys) -> SealHead | None:
    found = await seals.tombstone(database)
    if found is not None:
        _require_genuine(found, keys)
    return found


def _require_genuine(seal: SealHead, keys: SealKeys) -> None:
    """Require a valid signature: a forged document must not cause removals."""
    if not seals.genuine(seal, keys):
        raise Conflict(f"Seal {seal.id} is not genuine: see what 'ximler audit verify' says before anything is removed")
