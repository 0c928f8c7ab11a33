"""Manipulations by an attacker who controls the database are detected and named."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bson
import msgspec
import pytest
import structlog
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from tests.audit.conftest import Written

from ximler.audit import fingerprint, records, seals, verification
from ximler.audit.keys import SealKeys, new_key
from ximler.audit.sealing import Sealer
from ximler.audit.seals import Head
from ximler.audit.verification import VERIFIED, Report, verify, verify_daily
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database


def first(report: Report) -> tuple[str, str | None]:
    return report.problems[0].what, report.problems[0].entry


async def logs(database: Database) -> list[dict[str, Any]]:
    return await database.raw["auditlogs"].find({}).sort("_id", 1).to_list()


async def test_an_untouched_log_is_sound(database: Database, keys: SealKeys, sealer: Sealer, write: Written) -> None:
    await write(5)
    await sealer.seal()
    await write(5)
    await sealer.seal()
    await write(1)
    report = await verify(database, keys)
    assert report.sound, report.problems
    assert (report.entries, report.seals, report.waiting, report.others) == (10, 2, 1, 0)
    assert report.head is not None
    assert report.head.number == 2


CHANGES: dict[str, dict[str, Any]] = {
    "action": {"$set": {"action": "accounts.email.verified"}},
    "user": {"$set": {"userId": ObjectId()}},
    "time": {"$set": {"createdAt": None}},
    "address": {"$set": {"ipAddress": "203.0.113.9"}},
    "address gone": {"$unset": {"ipAddress": ""}},
    "before": {"$set": {"metadata.before.email": "mallory@example.com"}},
    "salt": {"$set": {"metadata._audit.person.salt": b"x" * 16}},
    "more": {"$set": {"metadata.approved": True}},
    "one more field": {"$set": {"approved": True}},
    "fingerprint gone": {"$unset": {"metadata._audit": ""}},
    "all metadata gone": {"$unset": {"metadata": ""}},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_the_entry_that_was_altered_is_named(
    change: str, database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    written = await write(5)
    await sealer.seal()
    await database.raw["auditlogs"].update_one({"_id": written[2]}, CHANGES[change], bypass_document_validation=True)
    report = await verify(database, keys)
    assert first(report) == ("altered", str(written[2]))
    assert report.counts == {"altered": 1}


@pytest.mark.parametrize("field", ["action", "resourceId", "ipAddress", "metadata"])
async def test_a_field_that_is_there_twice_is_found(
    field: str, database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    """The server searches the first, and drivers read the last,
    from which everything that was sealed can be computed."""
    written = await write(3)
    await sealer.seal()
    raw: Any = database.raw["auditlogs"].with_options(codec_options=CodecOptions(document_class=RawBSONDocument))
    stored = bytes((await raw.find_one({"_id": written[1]})).raw)
    value = bson.decode(stored)[field]
    where = stored.index(bson.encode({field: value})[4:-1])
    put_in = bson.encode({field: {"forged": True} if field == "metadata" else "forged"})[4:-1]
    forged = stored[4:where] + put_in + stored[where:]
    forged = (len(forged) + 4).to_bytes(4, "little") + forged
    assert bson.decode(forged) == bson.decode(stored)
    await raw.replace_one({"_id": written[1]}, RawBSONDocument(forged), bypass_document_validation=True)
    report = await verify(database, keys)
    assert first(report) == ("altered", str(written[1]))
    assert report.counts == {"altered": 1}


@pytest.mark.slow
async def test_problems_are_in_the_order_of_the_seals(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_AT_ONCE", 5)
    await write(1)
    (raw,) = await logs(database)
    del raw["metadata"]["_audit"]
    ids = [ObjectId(bytes([255 - n]) + bytes(11)) for n in range(17)]
    for oid in ids:
        entry = raw | {"_id": oid}
        marked = fingerprint.make(entry, [], database.entry_keys)
        await database.raw["auditlogs"].insert_one(entry | {"metadata": {**entry["metadata"], "_audit": marked}})
        await sealer.seal()
    assert (await verify(database, keys)).sound
    await database.raw["auditlogs"].delete_many({"_id": {"$in": [ids[3], ids[12]]}})
    await database.raw["auditlogs"].update_many({"_id": {"$in": [ids[4], ids[6], ids[16]]}}, {"$set": {"action": "x"}})
    report = await verify(database, keys)
    found = [(problem.what, problem.entry) for problem in report.problems if problem.entry]
    assert found == [("missing", str(ids[3])), ("altered", str(ids[4])), ("altered", str(ids[6])),
                     ("missing", str(ids[12])), ("altered", str(ids[16]))]  # fmt: skip


async def test_an_altered_entry_with_a_recomputed_fingerprint_is_found(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    (oid,) = await write()
    await sealer.seal()
    raw = (await logs(database))[0] | {"action": "accounts.nothing.happened"}
    raw["metadata"]["_audit"] = fingerprint.make(raw, [], database.entry_keys)  # even with the secret key
    await database.raw["auditlogs"].replace_one({"_id": oid}, raw)
    assert first(await verify(database, keys)) == ("altered", str(oid))


@pytest.mark.slow
async def test_a_forged_entry_with_a_recomputed_fingerprint_is_found_although_it_was_sealed(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    await write(3)
    raw = (await logs(database))[1] | {"_id": ObjectId(), "createdAt": database.clock.now().replace(tzinfo=None)}
    mark = raw["metadata"].pop("_audit")
    for forged in (fingerprint.make(raw, [], [b"a guess"]), fingerprint.make(raw, [], []), {**mark, "hash": bytes(32)}):
        entry = {**raw, "_id": ObjectId(), "metadata": {**raw["metadata"], "_audit": forged}}
        if "person" not in forged:
            entry["metadata"]["_audit"] = fingerprint.make({**entry, "metadata": raw["metadata"]}, [],
                                                           [b"a guess"] if "mac" in forged else [])  # fmt: skip
        await database.raw["auditlogs"].insert_one(entry)
        await sealer.seal()
        report = await verify(database, keys)
        assert str(entry["_id"]) in {problem.entry for problem in report.problems}, forged
        await database.raw["auditlogs"].delete_one({"_id": entry["_id"]})
        await database.raw["auditseals"].delete_one({"_id": report.head.number if report.head else 0})


async def test_a_copy_of_an_entry_under_another_id_is_found(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    await write()
    copy = (await logs(database))[0] | {"_id": ObjectId()}
    await database.raw["auditlogs"].insert_one(copy)
    await sealer.seal()
    assert first(await verify(database, keys)) == ("altered", str(copy["_id"]))


async def test_an_entry_without_our_mark_is_named_unless_others_are_welcome(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    await write()
    oid = ObjectId()
    entry = {
        "_id": oid,
        "action": "a.b",
        "resource": "users",
        "createdAt": database.clock.now(),
        "metadata": {"a": [1, {}]},
    }
    await database.raw["auditlogs"].insert_one(entry)
    await sealer.seal()
    assert first(await verify(database, keys)) == ("inserted", str(oid))
    report = await verify(database, keys, others=True)
    assert (report.sound, report.others) == (True, 1)
    await database.raw["auditlogs"].update_one({"_id": oid}, {"$set": {"metadata.a": []}})
    assert first(await verify(database, keys, others=True)) == ("altered", str(oid))


@pytest.mark.parametrize("age", [timedelta(hours=3), -timedelta(hours=3)])
async def test_an_entry_that_was_put_in_behind_the_seals_is_named(
    age: timedelta, database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await write(3)
    await sealer.seal()
    raw = (await logs(database))[0] | {"_id": ObjectId(), "createdAt": database.clock.now() - age}
    await database.raw["auditlogs"].insert_one(raw)
    assert first(await verify(database, keys)) == ("inserted", str(raw["_id"]))
    await sealer.seal()  # makes it no better: its time is not that of its commit
    assert str(raw["_id"]) in {problem.entry for problem in (await verify(database, keys, others=True)).problems}


async def test_an_entry_with_an_id_of_another_kind_is_named(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await write(2)
    await database.raw["auditlogs"].insert_one(
        {"_id": "mine", "action": "a", "resource": "r", "createdAt": database.clock.now()}
    )
    await sealer.seal()
    assert first(await verify(database, keys)) == ("inserted", "mine")


async def test_the_entry_that_is_missing_is_named(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    written = await write(5)
    await sealer.seal()
    await database.raw["auditlogs"].delete_many({"_id": {"$in": [written[3], written[1]]}})
    report = await verify(database, keys)
    assert first(report) == ("missing", str(written[1]))
    assert report.counts == {"missing": 2}


async def test_an_entry_that_was_removed_and_put_back_changed_is_found(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    (oid,) = await write()
    await sealer.seal()
    raw = (await logs(database))[0]
    await database.raw["auditlogs"].delete_one({"_id": oid})
    await database.raw["auditlogs"].insert_one(raw | {"action": "other"})
    await sealer.seal()
    assert first(await verify(database, keys)) == ("altered", str(oid))


async def test_an_entry_in_no_seal_is_reported_after_two_minutes_and_not_before(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    await sealer.seal()
    (oid,) = await write()
    database.clock.offset_ms = 115_000
    report = await verify(database, keys)
    assert (report.sound, report.waiting) == (True, 1)
    database.clock.offset_ms = 125_000
    assert first(await verify(database, keys)) == ("unsealed", str(oid))
    await sealer.seal()
    assert (await verify(database, keys)).sound


@pytest.mark.slow
async def test_neither_a_slow_transaction_nor_a_slow_clock_raises_an_alarm(
    database: Database, keys: SealKeys, sealer: Sealer, ada: Actor, write: Written
) -> None:
    """A transaction that is open for 30 s, by a process whose clock is 5 s behind,
    while others write and the log is sealed."""
    await sealer.seal()
    opened, finish = asyncio.Event(), asyncio.Event()

    async def body(transaction: Database) -> None:
        await records.write(transaction, ada, "accounts.profile.changed", resource="users")
        opened.set()
        await finish.wait()

    database.clock.offset_ms = -35_000
    running = asyncio.create_task(database.transaction(body))
    await opened.wait()
    for behind in (-30_000, -5_000, 0):
        database.clock.offset_ms = behind
        await write(2)
        await sealer.seal()
        assert (await verify(database, keys)).sound
    finish.set()
    await running
    report = await verify(database, keys)
    assert (report.sound, report.waiting) == (True, 1)
    await sealer.seal()
    report = await verify(database, keys)
    assert (report.sound, report.waiting, report.entries) == (True, 0, 7)


@pytest.mark.slow
async def test_verifying_while_the_log_is_written_and_sealed_raises_no_alarm(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    async def seal_all() -> None:
        for _ in range(10):
            await sealer.seal()

    async def verify_all() -> None:
        for _ in range(10):
            report = await verify(database, keys)
            assert report.sound, report.problems

    await asyncio.gather(write(40), seal_all(), verify_all())


Forgery = Callable[[Database, SealKeys], Awaitable[Any]]


async def _remove_seal(database: Database, keys: SealKeys) -> None:
    await database.raw["auditseals"].delete_one({"_id": 2})


async def _remove_first(database: Database, keys: SealKeys) -> None:
    await database.raw["auditseals"].delete_one({"_id": 1})


async def _alter_members(database: Database, keys: SealKeys) -> None:
    seal = await database.raw["auditseals"].find_one({"_id": 2})
    assert seal is not None
    await database.raw["auditseals"].update_one({"_id": 2}, {"$set": {"members": seal["members"][45:]}})


async def _take_out_member(database: Database, keys: SealKeys) -> None:
    """With entry and count and hash: only the signature is left to tell."""
    seal = await database.raw["auditseals"].find_one({"_id": 2})
    assert seal is not None
    packed = seal["members"][45:]
    change = {"members": packed, "count": seal["count"] - 1, "membersHash": seals.digest_of(packed)}
    await database.raw["auditseals"].update_one({"_id": 2}, {"$set": change})
    await database.raw["auditlogs"].delete_one({"_id": ObjectId(seal["members"][:12])})


async def _sign_again(database: Database, keys: SealKeys) -> None:
    """A whole new chain by a key of the attacker's."""
    await database.raw["auditseals"].delete_many({})
    await Sealer(database, SealKeys.parse(new_key())).seal()


async def _fake_tombstone(database: Database, keys: SealKeys) -> None:
    await database.raw["auditlogs"].delete_many({})
    end = await seals.last(database)
    assert end is not None
    await seals.append(database, SealKeys.parse(new_key()), end, kind="pruned", pruned_through=end.id,
                       pruned_hash=seals.hash_of(end), pruned_count=9, reached_at=end.reached_at)  # fmt: skip
    await database.raw["auditseals"].delete_many({"_id": {"$lte": end.id}})


@pytest.mark.slow
@pytest.mark.parametrize(
    "forgery", [_remove_seal, _remove_first, _alter_members, _take_out_member, _sign_again, _fake_tombstone]
)
async def test_a_chain_that_was_tampered_with_is_found(
    forgery: Forgery, database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    for _ in range(3):
        await write(3)
        await sealer.seal()
    await forgery(database, keys)
    report = await verify(database, keys)
    assert "chain" in report.counts
    assert not report.sound


async def test_truncation_is_detected_by_an_earlier_head(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written
) -> None:
    written = await write(3)
    await sealer.seal()
    written += await write(3)
    await sealer.seal()
    head = await seals.head(database, keys)
    assert head is not None
    assert (await verify(database, keys, head=head)).sound
    await database.raw["auditseals"].delete_one({"_id": 2})
    await database.raw["auditlogs"].delete_many({"_id": {"$in": written[3:]}})
    assert (await verify(database, keys)).sound  # nothing in the database tells
    assert (await verify(database, keys, head=head)).counts == {"truncated": 1}
    await write(1)
    await sealer.seal()
    assert (await verify(database, keys, head=head)).counts["truncated"] == 1


def test_a_head_is_read_as_it_was_printed() -> None:
    text = '{"number": 3, "hash": "' + "ab" * 32 + '", "sealedAt": "2026-11-25T00:00:00Z", "publicKeys": ["pub:x"]}'
    assert Head.parse(text).number == 3
    assert Head.parse("3:" + "ab" * 32).hash == "ab" * 32
    for bad in ("", "3", "x:y", "3:abcd", "{}", '{"number": 3}'):
        with pytest.raises(Exception, match="audit head"):
            Head.parse(bad)


async def test_keys_can_be_changed_and_the_retired_ones_destroyed(
    database: Database, keys: SealKeys, write: Written
) -> None:
    await write(2)
    await Sealer(database, keys).seal()
    newer = SealKeys.parse(keys.renewed())
    await write(2)
    await Sealer(database, newer).seal()
    assert (await verify(database, newer)).sound
    assert (await verify(database, SealKeys.parse(",".join(newer.public)))).sound  # an auditor, with public keys only
    assert "chain" in (await verify(database, keys)).counts  # does not know the newer


@pytest.mark.slow
async def test_all_ids_are_compared_in_several_passes(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_PASS", 8)
    written = await write(60)
    await sealer.seal()
    assert (await verify(database, keys)).sound
    extra = {bson.ObjectId(written[0].binary[:11] + bytes([n])) for n in range(0, 256, 16)} - set(written)
    old = database.clock.now() - timedelta(hours=1)
    await database.raw["auditlogs"].insert_many(
        [{"_id": oid, "action": "a", "resource": "r", "createdAt": old} for oid in extra]
    )
    report = await verify(database, keys)
    assert {problem.entry for problem in report.problems} == {str(oid) for oid in extra}


async def test_the_daily_verification_raises_the_alarm(
    database: Database, settings: Settings, keys: SealKeys, sealer: Sealer, write: Written, tmp_path: Path
) -> None:
    await write(3)
    await sealer.seal()
    settings = msgspec.structs.replace(settings, data_dir=tmp_path)
    counted = {kind: VERIFIED.labels(kind)._value.get() for kind in ("sound", "unsound")}
    with structlog.testing.capture_logs() as logs:
        await verify_daily(database=database, settings=settings, seal_keys=keys)
        await database.raw["auditlogs"].delete_one({})
        await verify_daily(database=database, settings=settings, seal_keys=keys)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["the audit log does not verify"]
    assert {kind: VERIFIED.labels(kind)._value.get() - before for kind, before in counted.items()} == {
        "sound": 1,
        "unsound": 1,
    }
