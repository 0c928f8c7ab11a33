"""Topic `find`: 20,000 payments read into typed documents with aware datetimes."""

from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import MongoClient

from bench.contest import Contestant, compete, timed
from bench.peers import beanie_odm, mongoengine_odm
from bench.peers.mongoose import mongoose
from bench.report import Figure, Table, ms, spread, us
from bench.samples import COUNT, payment_documents
from bench.setup import Setup

__all__ = ["run"]

OURS = "Ximler, typed, aware"
AWARE = "PyMongo async, dicts, tz_aware=True"
NAIVE = "PyMongo async, dicts, naive"
SYNC = "PyMongo sync, dicts, naive"
BEANIE = "Beanie, aware"
BEANIE_NAIVE = "Beanie, naive"
MONGOENGINE = "MongoEngine, aware"
MONGOENGINE_NAIVE = "MongoEngine, naive"
MONGOOSE = "Mongoose, hydrated"
LEAN = "Mongoose, lean"


async def run(setup: Setup) -> list[Table]:
    async with setup.database() as database, mongoose(setup.uri, database.name) as node:
        raw = database.raw["payments"]
        await raw.insert_many(payment_documents())
        aware = raw.with_options(CodecOptions(tz_aware=True))
        await beanie_odm.prepare(database.raw)
        mongoengine_odm.prepare(setup.uri, database.name)
        sync: MongoClient[dict[str, Any]] = MongoClient(setup.uri)
        contestants = [
            _contestant(OURS, lambda: database.payments.find({})),
            _contestant(AWARE, lambda: aware.find({}).to_list()),
            _contestant(NAIVE, lambda: raw.find({}).to_list()),
            _contestant(SYNC, lambda: _now(sync[database.name]["payments"].find({}).to_list)),
            _contestant(BEANIE, lambda: beanie_odm.find_all(aware=True)),
            _contestant(BEANIE_NAIVE, lambda: beanie_odm.find_all(aware=False)),
            _contestant(MONGOENGINE, lambda: _now(partial(mongoengine_odm.find_all, aware=True))),
            _contestant(MONGOENGINE_NAIVE, lambda: _now(partial(mongoengine_odm.find_all, aware=False))),
        ]
        if not isinstance(node, str):
            contestants += [
                Contestant(MONGOOSE, partial(node.ask, "hydrated", COUNT)),
                Contestant(LEAN, partial(node.ask, "lean", COUNT)),
            ]
        try:
            samples = await compete(contestants, setup.rounds(12))
        finally:
            mongoengine_odm.close()
            sync.close()
    return [_table(samples, node if isinstance(node, str) else f"node {node.versions['node']}, Mongoose {node.versions['mongoose']}")]


def _contestant(name: str, work: Callable[[], Awaitable[list[Any]]]) -> Contestant:
    async def run() -> float:
        seconds, found = await timed(work)
        assert len(found) == COUNT, f"{name} found {len(found)}"
        return seconds

    return Contestant(name, run)


async def _now(work: Callable[[], list[Any]]) -> list[Any]:
    """Synchronous work where it is: a thread would only add to its time."""
    return work()


def _table(samples: dict[str, list[float]], node: str) -> Table:
    medians = {name: median(taken) for name, taken in samples.items()}
    ours = medians[OURS]
    figures = [
        Figure(what="ours ÷ async driver, tz_aware=True", value=ours / medians[AWARE], most=0.85),
        Figure(what="ours ÷ async driver, naive", value=ours / medians[NAIVE], most=1.45),
        Figure(what="faster than Beanie", value=medians[BEANIE] / ours, least=3.5),
        Figure(what="faster than Beanie with naive datetimes", value=medians[BEANIE_NAIVE] / ours),
        Figure(what="faster than MongoEngine", value=medians[MONGOENGINE] / ours, least=5),
        Figure(what="faster than MongoEngine with naive datetimes", value=medians[MONGOENGINE_NAIVE] / ours),
    ]
    if MONGOOSE in medians:
        figures += [
            Figure(what="faster than Mongoose", value=medians[MONGOOSE] / ours, least=2.5),
            Figure(what="faster than Mongoose's lean()", value=medians[LEAN] / ours),
        ]
    return Table(
        title=f"find: {COUNT:,} payments",
        figures=figures,
        columns=("contestant", "median", "a document", "spread"),
        rows=[(name, ms(medians[name]), us(medians[name] / COUNT), spread(samples[name])) for name in samples],
        notes=[
            f"{len(samples[OURS])} rounds in turn. One document in a hundred has a null currency, no updatedAt, or both.",
            "Ours reads those as the default and as createdAt. Beanie's model declares both fields optional and gives None; "
            "MongoEngine leaves null as None (strict: False, or it refuses unknown fields); Mongoose hydrates what is there.",
            f"Mongoose: {node}." if MONGOOSE in medians else f"Mongoose was not measured: {node}.",
        ],
        samples=samples,
    )
