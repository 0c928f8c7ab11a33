"""Topic `events`: the payment provider's events, verified, stored, acknowledged and applied."""

import asyncio
import hashlib
import hmac
import time
from statistics import median

import msgspec

from bench.contest import ratio
from bench.renewals import subscribe
from bench.report import Figure, Table
from bench.setup import Setup
from ximler.billing import events
from ximler.billing import run as billing
from ximler.billing.rails import sandbox
from ximler.billing.stripe import VERSION, Stripe
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.billing_event import BILLING_EVENTS
from ximler.schema.sandbox_object import SANDBOX_OBJECTS

__all__ = ["run"]

EVENTS, AT_ONCE, SECRET = 2_000, 32, "whsec_of_the_benchmark"
TOGETHER = 20
_LATER = "4000000000000077"
OURS, BARE = "events", "bare inserts"


async def run(setup: Setup) -> list[Table]:
    stripe = Stripe("sk_test_of_nobody", (SECRET,))
    samples: dict[str, list[float]] = {OURS: [], BARE: []}
    stored, rounds = 0, setup.rounds(5)
    async with setup.database(initialised=True) as database:
        await _rush(database, stripe, "warm")
        for number in range(rounds):
            samples[OURS].append(await _rush(database, stripe, str(number)))
            samples[BARE].append(await _bare(database, str(number)))
            stored += await database[BILLING_EVENTS].count({"_id": {"$gt": f"evt_{number}_", "$lt": f"evt_{number}`"}})
        with round_trips() as trips:
            await events.receive(database, stripe, *_event("once"))
        applied, alone = await _applied(database, TOGETHER), await _applied(database, 1)
    await stripe.close()
    return [
        Table(
            title=f"events: {EVENTS:,} of Stripe, {AT_ONCE} at a time, a tenth of them twice",
            figures=[
                Figure(what="events stored once", value=stored, unit="", exactly=EVENTS * rounds),
                Figure(what=f"{OURS} beside {BARE}, in speed", value=ratio(samples[BARE], samples[OURS]), least=0.6),
                Figure(what="events acknowledged", value=EVENTS / median(samples[OURS]), unit="a second"),
                Figure(what="round trips, one event", value=len(trips), unit="", most=2),
                Figure(what=f"round trips to apply one of {TOGETHER} payments", value=applied, unit="", most=8),
                Figure(what="round trips to apply a payment alone", value=alone, unit="", most=8),
            ],
            columns=(),
            rows=[],
            notes=[
                "One process, without HTTP: the signature is verified on a body of 3 kB, and the event is inserted."
            ],
            samples=samples,
        )
    ]


async def _applied(database: Database, count: int) -> float:
    """The commands by which the payments of renewals are applied, each, that the provider decided later.
    The sandbox's own reading of a payment is Stripe's HTTP request, and does not count."""
    rail = sandbox(database, Settings(secret_key="0" * 43))
    await subscribe(database, count, card=_LATER)
    await billing.run(database, rail)
    offset = database.clock.offset_ms
    database.clock.offset_ms += 11 * 60_000
    await rail.advance()
    with round_trips() as trips:
        handled = await events.process(database, rail)
    database.clock.offset_ms = offset
    if handled != count or await database.payments.count({"status": "PENDING"}):
        raise RuntimeError("not every payment was applied")
    return sum(collection != SANDBOX_OBJECTS.name for _, collection in trips) / count


async def _rush(database: Database, stripe: Stripe, name: str) -> float:
    deliveries = [_event(f"{name}_{number}") for number in range(EVENTS)]
    waiting = iter(deliveries + deliveries[::10])

    async def sender() -> None:
        for body, signature in waiting:
            await events.receive(database, stripe, body, signature)

    began = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(AT_ONCE)))
    return time.perf_counter() - began


async def _bare(database: Database, name: str) -> float:
    """The driver alone, as many documents of the same size."""
    now = database.clock.now()
    waiting = iter(
        [
            {
                "_id": f"{name}_{n}",
                "kind": "intent.changed",
                "objectId": f"pi_{n}",
                "dueAt": now,
                "tries": 0,
                "createdAt": now,
            }
            for n in range(EVENTS + EVENTS // 10)
        ]
    )
    inserted = database.raw["bare"]
    await inserted.create_index("dueAt")

    async def sender() -> None:
        for document in waiting:
            await inserted.insert_one(document)

    began = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(AT_ONCE)))
    return time.perf_counter() - began


def _event(name: str) -> tuple[bytes, str]:
    found = {"id": f"pi_{name}", "metadata": {"ximler": name}, "description": "x" * 2_700}
    body = msgspec.json.encode(
        {"id": f"evt_{name}", "type": "payment_intent.succeeded", "api_version": VERSION, "data": {"object": found}}
    )
    moment = int(time.time())
    mac = hmac.new(SECRET.encode(), b"%d." % moment + body, hashlib.sha256).hexdigest()
    return body, f"t={moment},v1={mac}"
