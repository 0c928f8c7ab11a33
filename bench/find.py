"""Topic `find`: 20,000 payments read into typed documents with aware datetimes."""

from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection

from bench.contest import Contestant, compete, ratio, timed
from bench.peers import beanie_odm, mongoengine_odm
from bench.peers.mongoose import mongoose
from bench.report import Figure, Table, ms, spread, us
from bench.samples import COUNT, payment_documents
from bench.setup import Setup

__all__ = ["run"]

OURS = "Ximler: typed, aware"
AWARE = "PyMongo async: dicts, tz_aware=True"
NAIVE = "PyMongo async: dicts, naive"
SYNC = "PyMongo sync: dicts, naive"
BEANIE = "Beanie: aware"
BEANIE_NAIVE = "Beanie: naive"
MONGOENGINE = "MongoEngine: aware"
MONGOENGINE_NAIVE = "MongoEngine: naive"
MONGOOSE = "Mongoose: hydrated"
LEAN = "Mongoose: lean()"


async def run(setup: Setup) -> list[Table]:
    async with (
        setup.database() as database,
        setup.driver(database) as driver,
        mongoose(setup.uri, database.name) as node,
    ):
        raw = driver["payments"]
        await raw.insert_many(payment_documents())
        aware: AsyncCollection[dict[str, Any]] = raw.with_options(CodecOptions(tz_aware=True))
        await beanie_odm.prepare(driver)
        mongoengine_odm.prepare(setup.uri, database.name)
        sync: MongoClient[dict[str, Any]] = MongoClient(setup.uri)
        ours = _contestant(OURS, lambda: database.payments.find({}))
        drivers = [
            ours,
            _contestant(AWARE, lambda: aware.find({}).to_list()),
            _contestant(NAIVE, lambda: raw.find({}).to_list()),
        ]
        mappers = [
            ours,
            _contestant(SYNC, lambda: _at_once(sync[database.name]["payments"].find({}).to_list)),
            _contestant(BEANIE, lambda: beanie_odm.find_all(aware=True)),
            _contestant(BEANIE_NAIVE, lambda: beanie_odm.find_all(aware=False)),
            _contestant(MONGOENGINE, lambda: _at_once(partial(mongoengine_odm.find_all, aware=True))),
            _contestant(MONGOENGINE_NAIVE, lambda: _at_once(partial(mongoengine_odm.find_all, aware=False))),
        ]
        if not isinstance(node, str):
            mappers += [
                Contestant(MONGOOSE, partial(node.ask, "hydrated", COUNT)),
                Contestant(LEAN, partial(node.ask, "lean", COUNT)),
            ]
        try:
            beside_drivers = await compete(drivers, setup.rounds(60))
            beside_mappers = await compete(mappers, setup.rounds(8))
        finally:
            mongoengine_odm.close()
            sync.close()
        return [_drivers(beside_drivers), _mappers(beside_mappers, str(node))]


def _contestant(name: str, work: Callable[[], Awaitable[list[Any]]]) -> Contestant:
    async def run() -> float:
        seconds, found = await timed(work)
        assert len(found) == COUNT, f"{name} found {len(found)}"
        return seconds

    return Contestant(name, run)


async def _at_once(work: Callable[[], list[Any]]) -> list[Any]:
    """Synchronous work in place, because a thread would add to its time."""
    return work()


def _drivers(samples: dict[str, list[float]]) -> Table:
    ours = samples[OURS]
    return _table(
        f"find: {COUNT:,} payments, beside the driver",
        [
            Figure(what="ours ÷ async driver, tz_aware=True", value=ratio(ours, samples[AWARE]), most=0.85),
            Figure(what="ours ÷ async driver, naive", value=ratio(ours, samples[NAIVE]), most=1.45),
        ],
        samples,
        "One document in a hundred has a null currency, no updatedAt, or both: ours reads the default, and createdAt.",
    )


def _mappers(samples: dict[str, list[float]], node: str) -> Table:
    ours = samples[OURS]
    figures = [
        Figure(what="faster than Beanie", value=ratio(samples[BEANIE], ours), least=3.5),
        Figure(what="faster than Beanie, were its datetimes naive", value=ratio(samples[BEANIE_NAIVE], ours)),
        Figure(what="faster than MongoEngine", value=ratio(samples[MONGOENGINE], ours), least=5),
        Figure(what="faster than MongoEngine, were its datetimes naive", value=ratio(samples[MONGOENGINE_NAIVE], ours)),
    ]
    if MONGOOSE in samples:
        figures += [
            Figure(what="faster than Mongoose", value=ratio(samples[MONGOOSE], ours), least=2.5),
            Figure(what="faster than Mongoose, were it lean() (plain objects)", value=ratio(samples[LEAN], ours)),
        ]
    return _table(
        f"find: {COUNT:,} payments, beside other mappers",
        figures,
        samples,
        "For the documents that need tolerance, Beanie's model declares both fields optional and gives None; MongoEngine "
        "leaves null as None and ignores unknown fields (strict: False); Mongoose hydrates what is there.",
        f"{node}." if MONGOOSE in samples else f"Mongoose was not measured: {node}.",
    )


def _table(title: str, figures: list[Figure], samples: dict[str, list[float]], *notes: str) -> Table:
    rows = [(name, ms(median(taken)), us(median(taken) / COUNT), spread(taken)) for name, taken in samples.items()]
    return Table(
        title=title,
        figures=figures,
        columns=("", "median", "a document", "spread"),
        rows=rows,
        notes=[f"{len(samples[OURS])} rounds, in turn.", *notes],
        samples=samples,
    )
