"""Processes that are killed by a signal while they roll up."""

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

from ximler.analytics import revenue, rollups, verification
from ximler.core.actor import SYSTEM
from ximler.database import Database
from ximler.schema.customer_day import CUSTOMER_DAYS
from ximler.schema.movement import MOVEMENTS, Movement
from ximler.schema.revenue_day import REVENUE_DAYS, REVENUE_MONTHS

pytestmark = pytest.mark.slow

ROLLER = Path(__file__).with_name("roller.py")
APPLICATION = f"roller{os.getpid()}"
RANGE: dict[str, Any] = {"start": date(2027, 9, 1), "end": date(2028, 1, 1)}


@pytest.fixture
async def roller(database: Database, mongodb_uri: str) -> AsyncIterator[Process]:
    arguments = (ROLLER, mongodb_uri, database.name, APPLICATION)
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE)
    yield process
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


async def customers(database: Database, count: int) -> None:
    chance = random.Random(11)
    rows = []
    for _ in range(count):
        user_id = ObjectId()
        for number, day in enumerate(sorted(chance.sample(range(120), 3))):
            annual = 12 * chance.choice((0, 2900, 9900))
            rows.append(
                Movement(
                    id=f"{user_id}:{number}",
                    user_id=user_id,
                    subscription_id=user_id,
                    number=number,
                    at=datetime(2027, 9, 1, 9, tzinfo=UTC) + timedelta(days=day),
                    plan_id="pro",
                    currency="USD",
                    annual_minor=annual,
                    committed_minor=annual,
                    at_risk_minor=0,
                    pending=True,
                )
            )
    await database[MOVEMENTS].insert_many(rows)


async def damage(database: Database, act: str) -> None:
    """Empty the rollups, or plant errors that only a rebuild corrects."""
    if act == "refresh":
        await database[MOVEMENTS].patch_many({}, {"$set": {"pending": True}})
        for each in (CUSTOMER_DAYS, REVENUE_DAYS, REVENUE_MONTHS):
            await database.raw[each.name].delete_many({})
    else:
        await database.raw[CUSTOMER_DAYS.name].delete_many({"day": {"$lt": datetime(2027, 11, 1, tzinfo=UTC)}})
        for sums in (REVENUE_DAYS, REVENUE_MONTHS):
            await database[sums].patch_many({}, {"$set": {"newMinor": 5, "summed": 10_000}})


async def bytes_of_reports(database: Database) -> bytes:
    lines = [await revenue.mrr(database, SYSTEM, **RANGE, by=by) for by in ("DAY", "WEEK", "MONTH")]
    kept = [await revenue.churn(database, SYSTEM, **RANGE), await revenue.cohorts(database, SYSTEM, **RANGE)]
    return msgspec.json.encode([lines, kept])


async def end_sessions(uri: str) -> None:
    """Abort the transactions of killed processes, as the server does after a minute."""
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        stages: list[dict[str, Any]] = [
            {"$currentOp": {"idleSessions": True, "localOps": True, "allUsers": True}},
            {"$match": {"appName": f"ximler/{APPLICATION}"}},
        ]
        found = [each["lsid"] async for each in await client.admin.aggregate(stages) if "lsid" in each]
        if found:
            await client.admin.command("killAllSessionsByPattern", [{"lsid": each} for each in found])


@pytest.mark.parametrize("act", ["refresh", "rebuild"])
async def test_reports_are_the_same_bytes_after_a_process_is_killed_while_it_rolls_up(
    act: str, database: Database, roller: Process, mongodb_admin_uri: str
) -> None:
    assert roller.stdin is not None
    assert roller.stdout is not None
    await customers(database, 60)
    once = await bytes_of_reports(database)
    kills, within_s = 4, 0.0
    for number in range(kills + 1):
        await damage(database, act)
        roller.stdin.write(f"{act}\n".encode())
        copy = int(await roller.stdout.readline())
        began = monotonic()
        if number:
            await asyncio.sleep(within_s * (number - 0.5) / kills)
            with suppress(ProcessLookupError):  # done sooner than the first
                os.kill(copy, signal.SIGKILL)
        said = b""
        while b"ended" not in said:
            said += await roller.stdout.readline()
            if said == b"done\n" and not number:
                within_s = monotonic() - began
        await end_sessions(mongodb_admin_uri)
        works = rollups.refresh if act == "refresh" else verification.rebuild
        await asyncio.gather(works(database), works(database))
        assert await bytes_of_reports(database) == once, f"killed after {number} of {kills} parts"
        assert await verification.verify(database) == []
    assert within_s > 0
