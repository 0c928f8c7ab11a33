"""Old entries go, and what is left still can be verified."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.audit.conftest import Written

from ximler.audit import pruning, seals
from ximler.audit.actions import Action
from ximler.audit.keys import SealKeys, new_key
from ximler.audit.pruning import prune
from ximler.audit.sealing import Sealer
from ximler.audit.verification import verify
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Conflict, Forbidden, Invalid
from ximler.database import Database

DAY_MS = 24 * 3_600_000


@pytest.fixture
async def days(database: Database, sealer: Sealer, write: Written) -> list[list[ObjectId]]:
    """Three days of five entries each, sealed a day at a time; the last is today."""
    written = []
    for ago in (2, 1, 0):
        database.clock.offset_ms = -ago * DAY_MS
        written.append(await write(5))
        await sealer.seal()
    return written


async def there(database: Database) -> set[ObjectId]:
    return {
        raw["_id"] async for raw in database.raw["auditlogs"].find({"action": {"$ne": Action.LOG_PRUNED}}, {"_id": 1})
    }


def backdated(report: Any) -> bool:
    """The test moves the writer's clock, not the server's, which verification reports."""
    return {problem.why for problem in report.problems} <= {"has a time that differs from its commit"}


async def test_old_entries_are_pruned_and_the_rest_still_verifies(
    database: Database, keys: SealKeys, sealer: Sealer, days: list[list[ObjectId]]
) -> None:
    head = await seals.head(database)
    assert await prune(database, keys, SYSTEM, before=database.clock.now() - timedelta(hours=36)) == 5
    assert await there(database) == {*days[1], *days[2]}
    report = await verify(database, keys, head=head)
    assert backdated(report), report.problems
    assert (report.pruned, report.entries, report.waiting) == (5, 10, 1)
    assert await prune(database, keys, SYSTEM, before=database.clock.now() - timedelta(hours=36)) == 0
    assert await prune(database, keys, SYSTEM, before=database.clock.now() - timedelta(hours=12)) == 5
    await sealer.seal()
    report = await verify(database, keys, head=head)
    assert backdated(report), report.problems
    assert (report.pruned, report.entries) == (10, 7)
    await database.raw["auditlogs"].delete_one({"_id": days[2][2]})
    assert [p.entry for p in (await verify(database, keys)).problems if p.what == "missing"] == [str(days[2][2])]


async def test_a_run_that_was_interrupted_raises_no_alarm_and_is_finished_by_the_next(
    database: Database, keys: SealKeys, days: list[list[ObjectId]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*args: Any) -> int:
        raise RuntimeError

    before = database.clock.now() - timedelta(hours=12)
    with monkeypatch.context() as patched:
        patched.setattr(pruning, "_remove", killed)
        with pytest.raises(RuntimeError):
            await prune(database, keys, SYSTEM, before=before)
    assert backdated(await verify(database, keys))
    await database.raw["auditlogs"].delete_many({"_id": {"$in": days[0][:3]}})
    assert backdated(await verify(database, keys))
    assert await prune(database, keys, SYSTEM, before=before) == 7
    assert backdated(await verify(database, keys))


async def test_pruning_is_for_operators_and_of_the_past(database: Database, keys: SealKeys, ada: Actor) -> None:
    with pytest.raises(Forbidden):
        await prune(database, keys, ada, before=database.clock.now())
    with pytest.raises(Invalid):
        await prune(database, keys, SYSTEM, before=database.clock.now() + timedelta(minutes=1))


async def test_sealing_goes_on_after_a_tombstone(
    database: Database, keys: SealKeys, sealer: Sealer, days: list[list[ObjectId]], write: Written
) -> None:
    await prune(database, keys, SYSTEM, before=database.clock.now() - timedelta(hours=12))
    more = await write(3)
    assert await sealer.seal() == 4  # with the entry that tells of the pruning
    assert await sealer.seal() == 0
    report = await verify(database, keys)
    assert backdated(report)
    assert report.entries == 9
    assert set(more) <= await there(database)


async def test_a_forged_tombstone_or_seal_removes_nothing(
    database: Database, keys: SealKeys, days: list[list[ObjectId]]
) -> None:
    end = await seals.last(database)
    assert end is not None
    forged = await seals.append(database, SealKeys.parse(new_key()), end, kind="pruned", pruned_through=end.id,
                                pruned_hash=seals.hash_of(end), pruned_count=0, reached_at=end.reached_at)  # fmt: skip
    assert forged is not None
    before = database.clock.now() - timedelta(days=900)
    with pytest.raises(Conflict, match="not genuine"):
        await prune(database, keys, SYSTEM, before=before)
    await database.raw["auditseals"].delete_one({"_id": forged.id})
    await database.raw["auditseals"].update_one({"_id": 1}, {"$set": {"lastAt": before - timedelta(days=1)}})
    with pytest.raises(Conflict, match="not genuine"):
        await prune(database, keys, SYSTEM, before=before)
    assert len(await there(database)) == 15
