"""Migrations of the data: ordered, in batches, resumable, by one process at a time.

A migration brings the database from version `version - 1` to `version`. It expands: it adds data that the new
code reads, and the old code goes on working. A later migration contracts: it removes data that only the old
code needs.

Each batch is one transaction: its changes, the place where the next batch begins, and a guarded write to the
lease. So a batch is applied exactly once: a killed process leaves no part of a batch, and one frozen past its
lease cannot commit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import structlog

from ximler.database import leases
from ximler.database.connection import Database
from ximler.database.failures import DocumentExists
from ximler.schema.meta import META
from ximler.schema.migration import MIGRATIONS, MigrationState

__all__ = ["Migration", "Outcome", "Step", "migrate", "pending", "plan"]

_LEASE = "migrations"
_log = structlog.get_logger("ximler.database")


class Step(msgspec.Struct, frozen=True):
    """The result of one batch: how many documents it changed, and where the next begins (None: there is
    none).
    """

    changed: int
    place: dict[str, Any] | None


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """`count` is the number of documents that need the change: before (the plan) and after (the
    verification). `batch` changes the next ones, from a place, in the transaction that it is given. `ximler
    up` runs only `safe` migrations.
    """

    version: int
    name: str
    safe: bool
    count: Callable[[Database], Awaitable[int]]
    batch: Callable[[Database, dict[str, Any]], Awaitable[Step]]


class Outcome(msgspec.Struct, frozen=True):
    name: str
    changed: int  # by all processes together
    remaining: int


Progress = Callable[[Migration, int], None]


async def plan(database: Database, migrations: Sequence[Migration]) -> list[tuple[Migration, int]]:
    """The pending migrations in order, each with the number of documents to change. Reads only."""
    return [(each, await each.count(database)) for each in await pending(database, migrations)]


async def migrate(
    database: Database,
    migrations: Sequence[Migration],
    *,
    ttl: timedelta = leases.TTL,
    progress: Progress = lambda _migration, _changed: None,
) -> list[Outcome]:
    """Apply the pending migrations in order; returns the outcome of those that this process finished.

    Waits while another process migrates. A process that loses its lease starts over from the stored place.
    """
    done: list[Outcome] = []
    while await pending(database, migrations):
        async with leases.hold(database, _LEASE, stop=asyncio.Event(), ttl=ttl) as lease:
            if lease is None:
                break
            try:
                for each in await pending(database, migrations):
                    outcome = await _apply(database, lease, each, progress)
                    done.append(outcome)
            except leases.LeaseLost:
                _log.warning("migration continues when the lease is granted again")
    return done


async def pending(database: Database, migrations: Sequence[Migration]) -> list[Migration]:
    """The migrations not yet applied to the database, in order."""
    stamp = await database[META].find_one({"_id": "schema"})
    version = stamp.version if stamp else 0
    return sorted((each for each in migrations if each.version > version), key=lambda each: each.version)


async def _apply(database: Database, lease: leases.Lease, migration: Migration, progress: Progress) -> Outcome:
    await _begin(database, lease, migration)
    place: dict[str, Any] | None = {}
    changed = 0
    while place is not None:
        changed, place = await _batch(database, lease, migration)
        progress(migration, changed)
    remaining = await migration.count(database)
    if remaining:
        _log.warning("migration left documents unchanged", migration=migration.name, documents=remaining)

    async def finish(transaction: Database) -> None:
        await lease.guard(transaction)
        await transaction[META].patch(
            {"_id": "schema", "version": migration.version - 1}, {"$set": {"version": migration.version}}
        )

    await database.transaction(finish)
    _log.info("migration finished", migration=migration.name, documents=changed)
    return Outcome(migration.name, changed, remaining)


async def _begin(database: Database, lease: leases.Lease, migration: Migration) -> None:
    try:
        await database[MIGRATIONS].insert(MigrationState(id=migration.name, fence=lease.fence))
    except DocumentExists:
        _log.info("migration resumes", migration=migration.name)


async def _batch(database: Database, lease: leases.Lease, migration: Migration) -> tuple[int, dict[str, Any] | None]:
    """Apply the next batch; returns how many documents were changed so far, and the next place. Raises
    LeaseLost.
    """

    async def work(transaction: Database) -> tuple[int, dict[str, Any] | None]:
        mine = {"_id": migration.name, "fence": {"$lte": lease.fence}}
        state = await transaction[MIGRATIONS].find_one(mine)
        if state is None:
            raise leases.LeaseLost(f"Another process has continued the migration {migration.name}")
        if state.finished_at is not None:
            return state.changed, None
        step = await migration.batch(transaction, state.place)
        ended: dict[str, Any] = {"place": step.place} if step.place else {"finishedAt": database.clock.now()}
        await transaction[MIGRATIONS].patch(
            mine, {"$set": {"fence": lease.fence, **ended}, "$inc": {"changed": step.changed}}
        )
        await lease.guard(transaction)  # last: until it commits, no process can take the lease
        return state.changed + step.changed, step.place

    return await database.transaction(work)
