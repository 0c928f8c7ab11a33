"""Attacks on the audit log by an attacker who may remove entries and seals, but has no sealing key and no
data folder.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from ximler.audit import records, seals
from ximler.audit.actions import Action
from ximler.audit.heads import KeptHead
from ximler.audit.keys import SealKeys, new_key
from ximler.audit.pruning import prune
from ximler.audit.sealing import ChainBroken, Sealer
from ximler.audit.seals import Head
from ximler.audit.verification import Report, verify
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import Database

OPERATOR = Actor(kind="operator", via="cli")


@pytest.fixture
async def database(database: Database, settings: Settings) -> AsyncIterator[Database]:
    database.entry_keys = settings.entry_keys
    yield database
    database.entry_keys = ()
    database.clock.offset_ms = 0


@pytest.fixture
def keys() -> SealKeys:
    return SealKeys.parse(new_key())


@pytest.fixture
def kept(database: Database, tmp_path: Path) -> KeptHead:
    return KeptHead(tmp_path / "data", database.name)


@pytest.fixture
def sealer(database: Database, keys: SealKeys, kept: KeptHead) -> Sealer:
    return Sealer(database, keys, kept=kept)


async def write(database: Database, count: int = 3) -> None:
    for _ in range(count):
        await records.write(database, SYSTEM, Action.PROFILE_CHANGED, resource="users")


async def checked(database: Database, keys: SealKeys, kept: KeptHead) -> Report:
    return await verify(database, keys, head=kept.read())


async def test_a_chain_whose_seals_were_removed_is_not_restarted(
    database: Database, keys: SealKeys, kept: KeptHead, sealer: Sealer
) -> None:
    await write(database)
    await sealer.seal()
    await database.raw["auditlogs"].delete_many({})
    await database.raw["auditseals"].delete_many({})
    await write(database)  # the life of the application goes on
    for again in (
        sealer,
        Sealer(database, keys, kept=kept, may_found=True),
    ):  # the running one, and one that starts later
        with pytest.raises(ChainBroken, match="does not contain seal"):
            await again.seal()
    assert await database.raw["auditseals"].count_documents({}) == 0
    assert (await checked(database, keys, kept)).counts["truncated"] == 1


async def test_a_chain_that_was_cut_at_its_end_is_not_continued(
    database: Database, keys: SealKeys, kept: KeptHead, sealer: Sealer
) -> None:
    for _ in range(3):
        await write(database)
        await sealer.seal()
    last = await seals.last(database)
    assert last is not None
    await database.raw["auditseals"].delete_one({"_id": last.id})
    with pytest.raises(ChainBroken):
        await sealer.seal()
    assert not (await checked(database, keys, kept)).sound


async def test_a_new_chain_is_founded_by_command_and_the_log_says_so(
    database: Database, keys: SealKeys, kept: KeptHead, sealer: Sealer
) -> None:
    await write(database)
    await sealer.seal()
    await database.raw["auditlogs"].delete_many({})
    await database.raw["auditseals"].delete_many({})
    assert await sealer.seal(new_chain=True) == 1
    assert (await database.raw["auditlogs"].find_one({}))["action"] == "audit.chain.founded"  # type: ignore[index]  # there is one
    await write(database)
    assert await sealer.seal() == 3
    assert (await checked(database, keys, kept)).sound


async def test_a_first_chain_over_older_entries_needs_a_command_and_shows(
    database: Database, keys: SealKeys, kept: KeptHead
) -> None:
    database.clock.offset_ms = -timedelta(hours=3) // timedelta(milliseconds=1)
    await write(database)
    database.clock.offset_ms = 0
    with pytest.raises(ChainBroken, match="there are older entries"):
        await Sealer(database, keys, kept=kept).seal()
    # An attacker who runs a sealer of their own has no key; one that was told to found the chain writes an
    # entry.
    assert await Sealer(database, keys, kept=kept, may_found=True).seal() == 4
    report = await checked(database, keys, kept)
    assert report.sound, report.problems
    # Without that entry, which cannot be forged without the key, the chain is reported.
    await database.raw["auditlogs"].delete_many({})
    await database.raw["auditseals"].delete_many({})
    database.clock.offset_ms = -timedelta(hours=3) // timedelta(milliseconds=1)
    await write(database)
    database.clock.offset_ms = 0
    database.entry_keys, known = (b"k" * 32,), database.entry_keys
    await records.write(database, SYSTEM, Action.CHAIN_FOUNDED, resource="auditseals")
    database.entry_keys = known
    careless = Sealer(database, keys)
    careless._may_found = False
    await careless._seal(lambda _: None)
    problems = (await verify(database, keys)).problems
    assert any("it begins over older entries" in problem.why for problem in problems)


async def test_pruning_and_sealers_on_other_machines_break_no_kept_head(
    database: Database, keys: SealKeys, kept: KeptHead, sealer: Sealer
) -> None:
    for _ in range(2):
        await write(database)
        await sealer.seal()
    other = Sealer(database, keys)
    for _ in range(2):
        await write(database)
        await other.seal()
    await prune(database, keys, OPERATOR, before=database.clock.now())
    await write(database)
    await sealer.seal()
    assert (await checked(database, keys, kept)).sound


def test_the_kept_head_only_advances_and_survives_damage(tmp_path: Path, database: Database) -> None:
    kept, other = KeptHead(tmp_path / "data", "a"), KeptHead(tmp_path / "data", "b")
    now = database.clock.now()
    assert kept.read() is None
    kept.keep(Head(5, "ab" * 32, now))
    kept.keep(Head(4, "cd" * 32, now))
    other.keep(Head(1, "ef" * 32, now))
    assert [found and found.number for found in (kept.read(), other.read())] == [5, 1]
    assert (tmp_path / "data" / "audit_head").stat().st_mode & 0o077 == 0
    (tmp_path / "data" / "audit_head").write_bytes(b"{")
    assert kept.read() is None
