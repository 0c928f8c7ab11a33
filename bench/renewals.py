"""Topic `renewals`: subscriptions whose period has ended,
billed and paid by one process through the sandbox."""

import asyncio
import os
import resource
import subprocess
import sys
import time
from datetime import timedelta
from statistics import median

from bson import ObjectId

from bench.report import Figure, Table
from bench.setup import Setup
from ximler.billing import movements
from ximler.billing import run as billing
from ximler.billing.account import recurring
from ximler.billing.rails import sandbox
from ximler.billing.verify import verify
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount, Method, Terms
from ximler.schema.invoice import INVOICES
from ximler.schema.sandbox_object import SANDBOX_OBJECTS
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = ["run", "subscribe"]

DUE, ALL = 300, int(os.environ.get("XIMLER_BENCH_RENEWALS", "100000"))
_KILLS = 5
_BATCH = 1_000
_TOGETHER = 50


async def run(setup: Setup) -> list[Table]:
    return [await _measured(setup), *([await _killed(setup)] if setup.full else [])]


async def _measured(setup: Setup) -> Table:
    rates: list[float] = []
    busy: list[float] = []
    served: list[float] = []
    count, rounds = DUE, setup.rounds(3)
    async with setup.database(initialised=True) as database:
        rail = sandbox(database, Settings(secret_key="0" * 43))
        await subscribe(database, 1)
        with round_trips() as trips:
            await billing.run(database, rail)
        await subscribe(database, _TOGETHER)
        with round_trips() as together:
            await billing.run(database, rail)
        before = _memory_mb()
        for _ in range(rounds):
            await subscribe(database, count)
            server, used, began = await _server_s(database), time.process_time(), time.perf_counter()
            await billing.run(database, rail)
            rates.append(count / (time.perf_counter() - began))
            busy.append((time.process_time() - used) / count)
            served.append((await _server_s(database) - server) / count)
        grown = _memory_mb() - before
        billed = await database[INVOICES].count({"status": "PAID"})
        charged = await database[SANDBOX_OBJECTS].count({"kind": "intent", "status": "SUCCEEDED"})
        problems = [each for each in await verify(database) if "has no invoice" not in each]  # the seeded first period
    total = count * rounds + 1 + _TOGETHER
    return Table(
        title=f"renewals: {count:,} subscriptions that are due, paid in the sandbox",
        figures=[
            Figure(what="periods billed and charged once", value=min(billed, charged), unit="", exactly=total),
            Figure(what="contradictions found by verify", value=len(problems), unit="", exactly=0),
            Figure(what="renewals", value=median(rates), unit="a second"),
            Figure(what="round trips, one renewal, with its run", value=len(trips), unit=""),
            Figure(
                what=f"round trips each, {_TOGETHER} renewals, with their run",
                value=len(together) / _TOGETHER,
                unit="",
                most=2,
            ),
            Figure(what="processor of this process, one renewal", value=1000 * median(busy), unit="ms"),
            Figure(what="processor of mongod, one renewal", value=1000 * median(served), unit="ms"),
            Figure(what="memory grown by", value=grown, unit="MB"),
        ],
        columns=(),
        rows=[],
        notes=[
            "One process. Each renewal has an invoice, a payment, a receipt, a mail and the sandbox's writes.",
            "The limit is processor time. Each renewal reads, inserts and updates about 30 documents, each of which costs"
            " mongod 20 to 100 microseconds. Round trips are far less than one each, so waiting for the network plays no part.",
        ],
        samples={"renewals a second": rates},
    )


async def _killed(setup: Setup) -> Table:
    """Two processes bill all subscriptions; one of them is killed now and then and restarted."""
    async with setup.database(initialised=True) as database:
        await subscribe(database, ALL)
        began = time.perf_counter()
        grown = max(await asyncio.gather(_worker(setup, database, kills=0), _worker(setup, database, kills=_KILLS)))
        took = time.perf_counter() - began
        rail = sandbox(database, Settings(secret_key="0" * 43))
        # The transaction of a killed process expires after a minute; accounts that conflict with it wait.
        for _ in range(90):
            database.clock.offset_ms += 6 * 60_000
            if not (await billing.run(database, rail)).waiting:
                break
            await asyncio.sleep(1)
        billed = await database[INVOICES].count({"status": "PAID"})
        charged = await database[SANDBOX_OBJECTS].count({"kind": "intent", "status": "SUCCEEDED"})
        payments = await database.payments.count({})
        problems = [each for each in await verify(database) if "has no invoice" not in each]
    return Table(
        title=f"renewals: {ALL:,} by two processes, one of which is killed {_KILLS} times",
        figures=[
            Figure(what="invoices paid", value=billed, unit="", exactly=ALL),
            Figure(what="payments", value=payments, unit="", exactly=ALL),
            Figure(what="charged in the sandbox", value=charged, unit="", exactly=ALL),
            Figure(what="contradictions found by verify", value=len(problems), unit="", exactly=0),
            Figure(what="renewals", value=ALL / took, unit="a second"),
            Figure(what="memory grown by, after the first tenth", value=grown, unit="MB", most=30),
        ],
        columns=(),
        rows=[],
        notes=[],
    )


async def _worker(setup: Setup, database: Database, *, kills: int) -> float:
    """Bill in another process until nothing is due; returns by how many MB its memory grew after a while."""
    first = latest = 0.0
    for number in range(kills + 1):
        command = [sys.executable, "-m", "bench.renewing", setup.uri, database.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        until = ALL * (number + 1) // (2 * kills) if number < kills else 2 * ALL
        first = 0.0
        while line := await asyncio.to_thread(process.stdout.readline):
            accounts, latest = int(line.split()[0]), float(line.split()[1])
            if accounts >= ALL // 20 and not first:
                first = latest
            if process.poll() is None and await database[INVOICES].count({}) >= until:
                process.kill()
        await asyncio.to_thread(process.wait)
    return latest - first if first else 0.0


async def subscribe(database: Database, count: int, *, card: str = "4242424242424242") -> None:
    """Customers of Pro whose first month has ended, with its movement of revenue."""
    now = database.clock.now().replace(microsecond=0)
    anchor = now - timedelta(days=31, hours=1)
    for first in range(0, count, _BATCH):
        ids = [ObjectId() for _ in range(min(_BATCH, count - first))]
        terms = Terms(
            plan_id="pro", plan_name="Pro", price_minor=2900, currency="USD", interval="MONTH", net_minor=2900
        )
        method = Method(id=f"pm_{card}", label="Test card", fingerprint="-")
        subscriptions = [
            Subscription(
                user_id=user_id,
                plan_id="pro",
                status="ACTIVE",
                start_date=anchor,
                price=29,
                period_start=anchor,
                period_end=now,
            )
            for user_id in ids
        ]
        await database.users.insert_many(
            [User(id=each, name="Ada", email=f"{each}@example.com", password="-") for each in ids]
        )
        await database.subscriptions.insert_many(subscriptions)
        accounts = [
            BillingAccount(
                id=each.user_id, customer_id=f"cus_{each.user_id}", method=method, subscription_id=each.id,
                terms=terms, anchor=anchor, period=0, next_at=now - timedelta(seconds=1),
            )
            for each in subscriptions
        ]  # fmt: skip
        for each in accounts:
            await movements.follow(database, each, recurring(each, database.business))
        await database[BILLING_ACCOUNTS].insert_many(accounts)


async def _server_s(database: Database) -> float:
    """Processor time of mongod, in seconds."""
    info = (await database.client.admin.command("serverStatus"))["extra_info"]
    return float(info["user_time_us"] + info["system_time_us"]) / 1e6


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
