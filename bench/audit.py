"""Topic `audit`: sealing and verifying the audit log, beside reading the same entries with the bare driver;
and the cost of an entry.
"""

import secrets
from statistics import median
from typing import Any

from bson import ObjectId

from bench.contest import Contestant, compete, ratio, timed
from bench.report import Figure, Table, ms, spread, us
from bench.setup import Setup
from ximler.audit import records
from ximler.audit.keys import SealKeys, new_key
from ximler.audit.sealing import Sealer
from ximler.audit.verification import verify
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.seal import SEALS

__all__ = ["run"]

COUNT = 50_000
STREAM, LOOK = "seal, by the change stream", "seal, by looking through the collection"
VERIFY, READ = "verify, all of it", "PyMongo async: read them as dicts"
# Times the driver's own reading of the same entries. Where that takes 10 µs an entry, verifying takes at most
# 25.
MOST = {STREAM: 1.6, LOOK: 1.2, VERIFY: 2.5}
AUDITED, BARE = "an update and its entry, in a transaction", "the update alone, in a transaction"


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database, setup.driver(database) as driver:
        database.entry_keys = (secrets.token_bytes(32),)
        keys = SealKeys.parse(new_key())
        await Sealer(database, keys).seal()
        start = await database.raw[SEALS.name].find_one({})
        assert start is not None
        await database.audit_logs.insert_encoded(_entries(database))
        logs = driver[AUDIT_LOGS.name]

        async def seal(*, from_stream: bool) -> float:
            await database.raw[SEALS.name].delete_many({})
            if from_stream:
                await database.raw[SEALS.name].insert_one(start)
            seconds, sealed = await timed(Sealer(database, keys).seal)
            assert sealed == COUNT, sealed
            return seconds

        async def verified() -> float:
            seconds, report = await timed(lambda: verify(database, keys))
            assert report.sound, report.problems
            assert report.entries == COUNT
            return seconds

        async def read() -> float:
            seconds, found = await timed(lambda: logs.find({}).to_list())
            assert len(found) == COUNT
            return seconds

        contestants = [
            Contestant(STREAM, lambda: seal(from_stream=True)),
            Contestant(LOOK, lambda: seal(from_stream=False)),
            Contestant(VERIFY, verified),
            Contestant(READ, read),
        ]
        whole = _whole(await compete(contestants, setup.rounds(10)))
        return [whole, await _one(setup, database)]


def _entries(database: Database) -> list[dict[str, Any]]:
    made = []
    for number in range(COUNT):
        actor = Actor(kind="user", via="session", user_id=ObjectId(), address="192.0.2.1", request_id=secrets.token_hex(8),
                      user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")  # fmt: skip
        changed = {"before": {"email": f"old{number}@example.com"}, "after": {"email": f"new{number}@example.com"}}
        metadata = {"actor": "user", "via": "session", "requestId": actor.request_id, **changed}
        made.append(records.entry(database, actor, "accounts.email.changed", resource="users", resource_id=actor.user_id,
                                  metadata=metadata))  # fmt: skip
    return made


def _whole(samples: dict[str, list[float]]) -> Table:
    figures = [
        *(Figure(what=one, value=COUNT / median(samples[one]), unit="entries/s") for one in MOST),
        *(
            Figure(what=f"{one} ÷ reading with the driver", value=ratio(samples[one], samples[READ]), most=most)
            for one, most in MOST.items()
        ),
    ]
    return Table(
        title=f"audit: {COUNT:,} entries",
        figures=figures,
        columns=("", "median", "an entry", "spread"),
        rows=[(name, ms(median(taken)), us(median(taken) / COUNT), spread(taken)) for name, taken in samples.items()],
        notes=[
            f"{len(samples[READ])} rounds, in turn. Each entry has four personal values. One process seals, in seals "
            "of 10,000 entries or fewer, and one verifies.",
            "To verify is to read every entry, hash it and its personal values, compare it with its seal, and to look at every id "
            "once more for entries that no seal lists.",
        ],
        samples=samples,
    )


async def _one(setup: Setup, database: Database) -> Table:
    actor = Actor(kind="user", via="session", user_id=ObjectId(), address="192.0.2.1", user_agent="Firefox")
    commands: dict[str, int] = {}

    async def update(transaction: Database, audited: bool) -> None:
        await transaction.users.patch({"_id": actor.user_id}, {"$set": {"name": "Ada"}})
        if audited:
            await records.write(transaction, actor, "accounts.profile.changed", resource="users", before={"name": "A"},
                                after={"name": "Ada"})  # fmt: skip

    async def once(name: str) -> float:
        with round_trips() as trips:
            seconds, _ = await timed(lambda: database.transaction(lambda bound: update(bound, name == AUDITED)))
        commands[name] = len(trips)
        return seconds

    samples = await compete(
        [Contestant(name, lambda name=name: once(name)) for name in (AUDITED, BARE)], setup.rounds(200)
    )
    return Table(
        title="audit: the cost of an entry in its transaction",
        figures=[
            Figure(what="round trips more", value=commands[AUDITED] - commands[BARE], unit="", exactly=1),
            Figure(what="time, with ÷ without", value=ratio(samples[AUDITED], samples[BARE])),
        ],
        columns=("", "median", "commands", "spread"),
        rows=[(name, ms(median(taken)), str(commands[name]), spread(taken)) for name, taken in samples.items()],
        samples=samples,
    )
