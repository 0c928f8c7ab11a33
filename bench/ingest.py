"""Topic `ingest`: recorded events, each counted once, from one process and from two, with many stored
already.

The whole way is measured: lines of JSON to sums in the ledger, durable with majority, 1 % of them sent
before. Beside it the usual way to insert idempotently: random ids, unordered.
"""

import asyncio
import contextlib
import os
import random
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from bson import ObjectId
from pymongo.errors import BulkWriteError

from bench.report import Figure, Table
from bench.setup import Setup
from ximler.core import logs
from ximler.core.actor import SYSTEM
from ximler.core.clock import from_ms, to_ms
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.metering.ledger import settlement
from ximler.metering.ledger.ingest import ingest
from ximler.metering.ledger.settlement import Settler

__all__ = ["run"]

USERS = [ObjectId(f"{n:024x}") for n in range(1, 1001)]
BATCH = 10_000  # half of the most that there can be: acknowledged twice as soon, and hardly dearer
_PER_SECOND = 60_000  # events that happen in one second of the stream
_STEP = 50_000
USUAL = "insert_many, random ids, unordered"


async def run(setup: Setup) -> list[Table]:
    stored = 10_000_000 if setup.full else 100_000 if setup.quick else 500_000
    batches = 20 if setup.quick else 80
    async with setup.database(initialised=True) as database:
        await database.raw["users"].insert_many(
            [{"_id": user, "name": "n", "email": f"{user}@example.com", "password": "-"} for user in USERS]
        )
        now = to_ms(database.clock.now())
        await _store_before(database, stored, now)
        one = await _race(setup, database, now, batches, processes=1)
        two = await _race(setup, database, now + 1_000_000, batches, processes=2)
        usual = await _usual(database, stored, max(3, batches // 4))
        await settlement.settle(database)
        counted = await database.usage.aggregate([{"$group": {"_id": None, "amount": {"$sum": "$amount"}}}])
        known = await database.raw["usageevents"].estimated_document_count() - stored
    expected = sum(said["accepted"] for said in (*one, *two))
    slowest = max(late for said in (*one, *two) for late in said["late_ms"])
    rows = [
        (
            name,
            f"{_rate(said):,.0f}",
            f"{_client(said):.1f}",
            f"{_server(said):.1f}",
            f"{max(s['grown_mb'] for s in said):.0f}",
        )
        for name, said in (("one process", one), ("two processes", two), (USUAL, [usual]))
    ]
    figures = [
        Figure(what=f"events a second, one process ÷ {USUAL}", value=_rate(one) / _rate([usual]), least=1.0),
        Figure(what=f"events a second, two processes ÷ {USUAL}", value=_rate(two) / _rate([usual]), least=1.0),
        Figure(what=f"processor time an event, one process ÷ {USUAL}", value=_cpu(one) / _cpu([usual]), most=1.0),
        Figure(what="acknowledgement of a batch, p99, ÷ the peer's p99", value=slowest / usual["slowest_ms"], most=5),
        Figure(what="acknowledgement of a batch, p99", value=slowest, unit="ms"),
        Figure(what="events counted − events accepted", value=counted[0]["amount"] - expected, unit="", exactly=0),
        Figure(what="events stored − events accepted", value=known - expected, unit="", exactly=0),
    ]
    return [
        Table(
            title=f"ingest: events of which 1 % were sent before, {stored:,} stored",
            figures=figures,
            columns=("", "events a second", "client µs an event", "mongod µs an event", "MB grown"),
            rows=rows,
            notes=[
                f"{batches} batches of {BATCH:,} a process, of 1,000 users, from JSON to the ledger; the settling included.",
                "µs are CPU time, which a busy machine does not blur; one core gives 1,000,000 of them a second.",
            ],
        )
    ]


def _rate(said: list[dict[str, Any]]) -> float:
    """Of all processes together, from the first one's beginning to the last one's end."""
    seconds = max(s["ended"] for s in said) - min(s["began"] for s in said)
    return sum(int(s["events"]) for s in said) / seconds


def _client(said: list[dict[str, Any]]) -> float:
    return sum(float(s["cpu_s"]) for s in said) / sum(int(s["events"]) for s in said) * 1e6


def _server(said: list[dict[str, Any]]) -> float:
    return float(said[0]["mongod_s"]) / sum(int(s["events"]) for s in said) * 1e6


def _cpu(said: list[dict[str, Any]]) -> float:
    return _client(said) + _server(said)


async def _store_before(database: Database, count: int, now: int) -> None:
    """Events counted in earlier hours: as many documents, with ids of the same form."""
    raw, user = database.raw["usageevents"], USERS[0]
    first = now // 1000 - 7200 - count // 500
    for begin in range(0, count, _STEP):
        ids = sorted(
            (first + n // 500).to_bytes(4, "big") + secrets.token_bytes(8)
            for n in range(begin, min(begin + _STEP, count))
        )
        await raw.insert_many([{"_id": _id, "userId": user, "amount": 1} for _id in ids], ordered=False)


async def _race(setup: Setup, database: Database, now: int, batches: int, *, processes: int) -> list[dict[str, Any]]:
    """The reports of the processes, which start together."""
    arguments = (setup.uri, database.name)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.ingest", *arguments, str(number), str(batches), str(now)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for child in children:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == "ready\n"
    before = await _mongod_seconds(database)
    answers = await asyncio.gather(*(asyncio.to_thread(child.communicate, "go\n") for child in children))
    said = [msgspec.json.decode(out) for out, _ in answers]
    said[0]["mongod_s"] = await _mongod_seconds(database) - before
    return said


async def _mongod_seconds(database: Database) -> float:
    """CPU time of the server, as it says itself."""
    status = await database.client.admin.command("serverStatus")
    info = status.get("extra_info", {})
    return float(info.get("user_time_us", 0) + info.get("system_time_us", 0)) / 1e6


async def _usual(database: Database, stored: int, batches: int) -> dict[str, float]:
    """The same of `insert_many(ordered=False)` with random ids, 1 % of them there already, and nothing else
    done.
    """
    raw = database.raw["random"]
    for begin in range(0, stored, _STEP):
        count = min(_STEP, stored - begin)
        await raw.insert_many([{"_id": secrets.token_bytes(12), "userId": USERS[0], "amount": 1} for _ in range(count)])
    made: list[list[dict[str, Any]]] = []
    for _ in range(batches):
        again = [document["_id"] for document in made[-1][: BATCH // 100]] if made else []
        ids = [*(secrets.token_bytes(12) for _ in range(BATCH - len(again))), *again]
        made.append([{"_id": _id, "userId": USERS[0], "amount": 1} for _id in ids])
    server, cpu, began = await _mongod_seconds(database), time.process_time(), time.time()
    taken = []
    for documents in made:
        since = time.perf_counter()
        with contextlib.suppress(BulkWriteError):  # those that were there
            await raw.insert_many(documents, ordered=False)
        taken.append((time.perf_counter() - since) * 1e3)
    return {
        "slowest_ms": max(taken),  # of fewer than a hundred, as ours
        "events": batches * BATCH,
        "began": began,
        "ended": time.time(),
        "cpu_s": time.process_time() - cpu,
        "mongod_s": await _mongod_seconds(database) - server,
        "grown_mb": 0,
    }


# One of the processes: `python -m bench.ingest URI DATABASE NUMBER BATCHES NOW_MS`.


def _lines(number: int, batches: int, now: datetime) -> list[bytes]:
    """Batches as they come, in order of time within two seconds; from the fourth on, 1 % of each was in the
    third before it.
    """
    choose = random.Random(number)
    texts: list[list[bytes]] = []
    for batch in range(batches):
        moment = now - timedelta(hours=1) + timedelta(seconds=batch * BATCH / _PER_SECOND)
        text = [
            b'{"id":"%s","source":"gateway %d","userId":"%s","at":"%s"}'
            % (
                secrets.token_hex(10).encode(),
                number,
                str(choose.choice(USERS)).encode(),
                (moment + timedelta(milliseconds=choose.randrange(2000))).isoformat().encode(),
            )
            for _ in range(BATCH)
        ]
        if batch > 2:
            text[: BATCH // 100] = texts[batch - 3][-(BATCH // 100) :]
        texts.append(text)
    return [b"\n".join(text) + b"\n" for text in texts]


async def _process(uri: str, name: str, number: int, batches: int, now: datetime) -> None:
    database = await connect(uri, settings=Settings(mongodb_uri=uri), name=name)
    chunks = _lines(number, batches, now)
    settling = asyncio.ensure_future(Settler(database).run(asyncio.Event()))
    handed: list[float] = []
    late: list[float] = []

    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            handed.append(time.perf_counter())
            yield chunk

    def acknowledged(_: Any) -> None:
        late.append((time.perf_counter() - handed[len(late)]) * 1e3)

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    memory, cpu, began = _resident_mb(), time.process_time(), time.time()
    report = await ingest(database, SYSTEM, stream(), batch=BATCH, progress=acknowledged)
    ended = time.time()
    late.sort()
    said = {
        "events": report.lines,
        "accepted": report.accepted,
        "began": began,
        "ended": ended,
        "cpu_s": time.process_time() - cpu,
        "late_ms": late[-max(1, len(late) // 100) :][:1],
        "grown_mb": _resident_mb() - memory,
    }
    while not settling.done():
        settling.cancel()
        await asyncio.wait([settling], timeout=0.2)
    await database.close()
    print(msgspec.json.encode(said).decode(), flush=True)


def _resident_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the most there ever was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    import uvloop

    logs.configure(Settings(log_level="error"))
    uvloop.run(_process(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), from_ms(int(sys.argv[5]))))
