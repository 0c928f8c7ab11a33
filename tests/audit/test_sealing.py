"""The chain of seals: complete, in the order of commits, and the same whoever seals and however often."""

import asyncio
import sys
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure
from tests.audit.conftest import Written

from ximler.audit import records, sealing, seals
from ximler.audit.keys import NoSealKey, SealKeys, new_key
from ximler.audit.sealing import Sealer
from ximler.audit.seals import BACKDATED, FORGED, FOUND, OTHERS
from ximler.audit.verification import verify
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.seal import SEALS, Seal


async def chain(database: Database) -> list[Seal]:
    found = [seal async for seal in seals.from_number(database, 1)]
    assert [seal.id for seal in found] == list(range(1, len(found) + 1))
    previous = seals.START
    for seal in found:
        assert seal.previous == previous
        previous = seals.hash_of(seal)
    return found


async def sealed(database: Database) -> list[tuple[ObjectId, int]]:
    """(id, what was odd) of every entry in the chain, in its order."""
    found = await chain(database)
    return [(ObjectId(oid), odd) for seal in found for oid, _, odd in seals.members_of(seal)]


async def test_entries_are_sealed_once_in_commit_order(database: Database, sealer: Sealer, write: Written) -> None:
    first = await write(3)
    assert await sealer.seal() == 3
    second = await write(2)
    assert await sealer.seal() == 2
    assert await sealer.seal() == 0
    assert await sealed(database) == [(oid, FOUND) for oid in first] + [(oid, 0) for oid in second]


@pytest.mark.parametrize("count", [0, 1, 20, 64])
async def test_a_backlog_is_sealed_in_order_while_the_next_part_of_it_is_read(
    count: int, database: Database, sealer: Sealer, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_MEMBERS", 20)
    monkeypatch.setattr(sealing, "_MANY", 7)
    await sealer.seal()
    written: list[tuple[ObjectId, int]] = []
    now = database.clock.now()
    for number in range(count):
        if number % 3:
            others = {"_id": ObjectId(), "action": f"a{number}", "resource": "r", "createdAt": now}
            await database.raw["auditlogs"].insert_one(others)
            written.append((others["_id"], OTHERS))
        else:
            written.append(((await write())[0], 0))
    assert await sealer.seal() == count
    assert await sealed(database) == written
    assert await sealer.seal() == 0
    report = await verify(database, sealer._keys, others=True)
    assert (report.sound, report.entries, report.others) == (True, count, count - len(range(0, count, 3)))


async def test_the_sealer_does_not_wait_at_the_end_of_the_stream(
    database: Database, sealer: Sealer, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_AWAIT_MS", 60_000)
    monkeypatch.setattr(seals, "MAX_MEMBERS", 2)
    await sealer.seal()
    await write(2)
    await database.raw["users"].insert_one({"email": "ada@example.com"}, bypass_document_validation=True)
    async with asyncio.timeout(30):
        assert await sealer.seal() == 2
        assert await sealer.seal() == 0


async def test_a_seal_is_signed_and_any_change_of_it_shows(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await write()
    await sealer.seal()
    seal = (await chain(database))[-1]
    digest = seals.hash_of(seal)
    assert keys.verifies(seal.key_id, digest, seal.signature)
    others: dict[type, Any] = {
        int: 99,
        bytes: b"x",
        str: "pruned",
        type(None): 5,
        datetime: seal.sealed_at + timedelta(1),
    }
    for name in seal.__struct_fields__:
        if name not in ("signature", "members", "created_at"):  # the members enter by their hash
            altered = msgspec.structs.replace(seal, **{name: others[type(getattr(seal, name))]})
            assert seals.hash_of(altered) != digest, name


@pytest.mark.slow
async def test_sealers_that_race_make_one_chain_with_every_entry_once(
    database: Database, keys: SealKeys, write: Written
) -> None:
    sealers = [Sealer(database, keys) for _ in range(4)]
    await sealers[0].seal()
    written: list[ObjectId] = []
    for _ in range(5):
        ids, *_ = await asyncio.gather(write(10), *(sealer.seal() for sealer in sealers))
        written += ids
    assert sum([await sealer.seal() for sealer in sealers]) >= 0
    assert [oid for oid, _ in await sealed(database)] == written


async def test_the_first_sealers_of_a_log_that_has_entries_already_race_too(
    database: Database, keys: SealKeys, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_MEMBERS", 7)
    written = await write(40)
    await asyncio.gather(*(Sealer(database, keys).seal() for _ in range(4)))
    assert {oid for oid, _ in await sealed(database)} == set(written)
    assert len(await sealed(database)) == 40


async def test_entries_are_listed_as_they_were_committed_even_after_30_seconds_in_a_transaction(
    database: Database, sealer: Sealer, ada: Actor, write: Written
) -> None:
    await sealer.seal()
    slow = asyncio.Event()

    async def body(transaction: Database) -> None:
        await records.write(transaction, ada, "accounts.profile.changed", resource="users")
        slow.set()
        await finish.wait()

    finish = asyncio.Event()
    database.clock.offset_ms = -30_000
    running = asyncio.create_task(database.transaction(body))
    await slow.wait()
    database.clock.offset_ms = 0
    fast = await write(2)
    await sealer.seal()
    finish.set()
    await running
    await sealer.seal()
    late = await database.raw["auditlogs"].find_one({"action": "accounts.profile.changed"})
    assert late is not None
    assert await sealed(database) == [(fast[0], 0), (fast[1], 0), (late["_id"], 0)]


async def test_an_entry_that_is_removed_before_it_was_sealed_leaves_its_trace(
    database: Database, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    (oid,) = await write()
    await database.raw["auditlogs"].delete_one({"_id": oid})
    assert await sealer.seal() == 1
    assert await sealed(database) == [(oid, 0)]


async def test_anomalies_of_an_entry_are_recorded_in_its_seal(
    database: Database, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    (ours,) = await write()
    raw = await database.raw["auditlogs"].find_one({"_id": ours})
    assert raw is not None
    others, forged, backdated = ObjectId(), ObjectId(), ObjectId()
    now = database.clock.now()
    await database.raw["auditlogs"].insert_one({"_id": others, "action": "a", "resource": "r", "createdAt": now})
    await database.raw["auditlogs"].insert_one({**raw, "_id": forged})
    await database.raw["auditlogs"].insert_one(
        {"_id": backdated, "action": "a", "resource": "r", "createdAt": now - timedelta(hours=1)}
    )
    await sealer.seal()
    # The mark is not made for another id, but that shows only when the entry itself is looked at.
    assert await sealed(database) == [(ours, 0), (others, OTHERS), (forged, 0), (backdated, OTHERS | BACKDATED)]
    mark = raw["metadata"]["_audit"]
    await database.raw["auditlogs"].insert_one(
        {**raw, "_id": forged, "metadata": {"_audit": {**mark, "mac": b"x" * 16}}} | {"_id": ObjectId()}
    )
    await sealer.seal()
    assert (await sealed(database))[-1][1] == FORGED


async def test_when_the_streams_history_is_lost_the_collection_is_looked_through(
    database: Database, keys: SealKeys, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await write(3)
    await Sealer(database, keys).seal()
    second = await write(2)
    events = Sealer._events

    def lost(self: Sealer, session: Any, start: Any) -> Any:  # a server's log would have to be filled for it: gigabytes
        if "resumeAfter" in start:
            raise OperationFailure("history lost", 286)
        return events(self, session, start)

    with monkeypatch.context() as patched:
        patched.setattr(Sealer, "_events", lost)
        assert await Sealer(database, keys).seal() == 2
    third = await write(1)
    assert await Sealer(database, keys).seal() == 1
    assert await sealed(database) == [(oid, FOUND) for oid in first + second] + [(third[0], 0)]


async def test_an_interrupted_first_scan_is_resumed(
    database: Database, keys: SealKeys, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_MEMBERS", 4)
    written = await write(10)
    append = seals.append
    calls = 0

    async def failing(*args: Any, **content: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("killed")
        return await append(*args, **content)

    monkeypatch.setattr(seals, "append", failing)
    with pytest.raises(RuntimeError):
        await Sealer(database, keys).seal()
    assert len(await sealed(database)) == 4
    await Sealer(database, keys).seal()
    assert [oid for oid, _ in await sealed(database)] == written


async def test_an_idle_log_gets_an_empty_seal_every_hour(database: Database, sealer: Sealer) -> None:
    for _ in range(3):
        await sealer.seal()
    assert len(await chain(database)) == 1
    database.clock.offset_ms = 3_700_000
    for _ in range(3):
        await sealer.seal()
    assert [seal.count for seal in await chain(database)] == [0, 0]


async def test_only_one_of_several_running_sealers_is_due(
    database: Database, keys: SealKeys, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "EVERY_S", 0.05)
    await write(5)
    tasks = [asyncio.create_task(Sealer(database, keys).run(asyncio.Event())) for _ in range(3)]
    try:
        async with asyncio.timeout(20):
            while len(await sealed(database)) < 5:  # noqa: ASYNC110 (polls the database)
                await asyncio.sleep(0.02)
            more = await write(5)
            while len(await sealed(database)) < 10:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.02)
    finally:
        while any(not task.done() for task in tasks):  # the driver swallows a cancellation now and then
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.5)
    assert [oid for oid, _ in await sealed(database)][-5:] == more


async def test_a_public_key_seals_nothing(database: Database, keys: SealKeys) -> None:
    with pytest.raises(NoSealKey):
        await Sealer(database, SealKeys.parse(keys.public[0])).seal()
    assert await database[SEALS].count({}) == 0


@pytest.mark.slow
async def test_an_entry_as_large_as_a_document_can_be_does_not_stop_the_sealer(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    large = {"_id": ObjectId(), "action": "a", "resource": "r", "createdAt": database.clock.now()}
    large["metadata"] = {"x": "x" * (16 * 1024 * 1024 - 120)}
    await database.raw["auditlogs"].insert_one(large)
    (after,) = await write()
    assert await sealer.seal() == 2
    assert await sealed(database) == [(large["_id"], OTHERS), (after, 0)]
    await database.raw["auditseals"].delete_many({})
    assert await Sealer(database, keys).seal() == 2
    assert (await verify(database, keys, others=True)).sound


async def test_sealing_continues_after_the_log_was_dropped_and_the_loss_is_reported(
    empty_database: Database, keys: SealKeys, settings: Settings, ada: Actor
) -> None:
    database = empty_database
    database.entry_keys = settings.entry_keys
    write, sealer = Written(database, ada), Sealer(database, keys)
    await write(2)
    await sealer.seal()
    await sealer.seal()
    await database.raw["auditlogs"].drop()
    await sealer.seal()
    (after,) = await write(1)
    await sealer.seal()
    await sealer.seal()
    report = await verify(database, keys)
    assert report.counts == {"missing": 2}
    assert report.waiting == 0
    assert after in {oid for oid, _ in await sealed(database)}


SEAL_FOR_EVER = """
import asyncio, sys
from ximler.audit.keys import SealKeys
from ximler.audit.sealing import Sealer
from ximler.core.settings import Settings
from ximler.database import connect

async def main():
    uri, name, keys, secret = sys.argv[1:]
    database = await connect(uri, settings=Settings(mongodb_uri=uri, secret_key=secret), name=name)
    sealer = Sealer(database, SealKeys.parse(keys))
    print("ready", flush=True)
    while True:
        await sealer.seal()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_sealers_that_are_killed_leave_a_chain_that_others_go_on_with(
    database: Database, mongodb_uri: str, settings: Settings, write: Written
) -> None:
    text = new_key()
    keys = SealKeys.parse(text)
    await Sealer(database, keys).seal()
    written: list[ObjectId] = []
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SEAL_FOR_EVER, mongodb_uri, database.name, text, str(settings.secret_key),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        while b"ready" not in await process.stdout.readline():
            assert process.returncode is None
        written += await write(20)
        process.kill()
        await process.wait()
    await Sealer(database, keys).seal()
    assert [oid for oid, _ in await sealed(database)] == written
    assert (await verify(database, keys)).sound
