"""Processes that look at entries find what this one finds, in order; of one that is killed no part passes for sound."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import bson
import pytest
from bson import ObjectId
from tests.audit.conftest import Written

from ximler.audit import examination, fingerprint, verification
from ximler.audit.examination import Entry, ExaminerEnded, Examiners, examiners, look
from ximler.audit.keys import SealKeys
from ximler.audit.sealing import Sealer
from ximler.audit.verification import verify
from ximler.database import Database


def entries(count: int) -> list[Entry]:
    """Every third is not what was sealed, every fifth holds what its fingerprint does not cover."""
    made = []
    for number in range(count):
        raw: dict[str, Any] = {"_id": ObjectId(), "action": f"a{number}", "userAgent": "Firefox", "metadata": {}}
        mark = fingerprint.make(raw, [("userAgent", "person", "Firefox")], [b"key"])
        raw["metadata"]["_audit"] = mark
        more = {} if number % 5 else {"more": number}
        made.append((bson.encode(raw | more), mark["hash"] if number % 3 else bytes(32), number % 2))
    return made


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_whoever_looks_finds_the_same(count: int) -> None:
    lots = [entries(number) for number in (0, 1, 300, 129, 15, 1)]
    async with examiners(count) as started:
        found = await asyncio.gather(*(started.look(lot) for lot in lots))
    assert found == [look(lot) for lot in lots]
    altered = [finding.place for finding in found[2] if finding.problem]
    assert altered == [place for place in range(300) if place % 3 == 0 or place % 5 == 0]


async def test_one_that_is_killed_is_an_error_and_the_others_are_ended() -> None:
    async with examiners(2) as started:
        started.processes[0].kill()
        with pytest.raises(ExaminerEnded, match="verify again"):
            await asyncio.gather(*(started.look(entries(50)) for _ in range(4)))
    assert all(process.returncode is not None for process in started.processes)


async def test_verifying_says_nothing_when_one_was_killed_midway(
    database: Database, keys: SealKeys, sealer: Sealer, write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Examiners] = []

    @asynccontextmanager
    async def two(_: int) -> AsyncGenerator[Examiners, None]:
        async with examiners(2) as looking:
            started.append(looking)
            yield looking

    monkeypatch.setattr(verification, "examiners", two)
    monkeypatch.setattr(verification, "_AT_ONCE", 2)
    await write(40)
    await sealer.seal()
    assert (await verify(database, keys)).entries == 40
    started.clear()

    def progress(count: int) -> None:
        if count == 6:
            started[0].processes[0].kill()

    with pytest.raises(ExaminerEnded):
        await verify(database, keys, progress=progress)


@pytest.mark.parametrize("left", [b"", b"\x05\0\0", b"\x05\0\0\0\0\0\0\0ab"])
async def test_a_process_ends_with_whoever_started_it(left: bytes) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", examination.__name__, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, complaints = await process.communicate(left)
    assert (process.returncode, complaints) == (0, b"")
