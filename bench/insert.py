"""Topic `insert`: 20,000 payments written with one call.

Into a collection without secondary indexes and validators, which is the hardest case for us: the server's
work on those would dilute the client's.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any

from bench.contest import Contestant, compete, ratio, timed
from bench.peers import beanie_odm, mongoengine_odm
from bench.peers.mongoose import mongoose
from bench.report import Figure, Table, ms, spread, us
from bench.samples import COUNT, payments
from bench.setup import Setup
from ximler.database import Database
from ximler.schema.payment import Payment

__all__ = ["run"]

OURS = "Ximler: Structs"
OURS_BUILT = "Ximler: Structs made in the time"
BARE = "PyMongo async: dicts made in the time"
READY = "PyMongo async: dicts made before"
BEANIE = "Beanie: models made before"
BEANIE_BUILT = "Beanie: models made in the time"
MONGOENGINE = "MongoEngine: models made before"
MONGOOSE = "Mongoose: from plain objects"


async def run(setup: Setup) -> list[Table]:
    async with (
        setup.database() as database,
        setup.driver(database) as driver,
        mongoose(setup.uri, database.name) as node,
    ):
        structs = payments(stamped=False)
        raw = driver["payments"]
        await driver["source"].insert_many([{k: v for k, v in p.items() if k not in _STAMPS} for p in _plain(structs)])
        await beanie_odm.prepare(driver)
        mongoengine_odm.prepare(setup.uri, database.name)
        ready = _plain(structs)
        models = beanie_odm.models(structs)
        documents: list[Any] = []
        enter = partial(_contestant, database)
        ours = enter(OURS, lambda: database.payments.insert_many(structs))
        drivers = [
            ours,
            enter(BARE, lambda: raw.insert_many(_plain(structs))),
            enter(READY, lambda: raw.insert_many(ready)),
        ]
        mappers = [
            ours,
            enter(OURS_BUILT, lambda: database.payments.insert_many(_copies(structs))),
            enter(BEANIE, lambda: beanie_odm.insert_many(models)),
            enter(BEANIE_BUILT, lambda: beanie_odm.insert_many(beanie_odm.models(structs))),
            enter(MONGOENGINE, lambda: _mongoengine(documents), prepare=lambda: _refill(documents, structs)),
        ]
        if not isinstance(node, str):
            await node.ask("load", COUNT)
            mappers.append(_emptied(database, Contestant(MONGOOSE, partial(node.ask, "insert", COUNT))))
        try:
            beside_drivers = await compete(drivers, setup.rounds(40))
            beside_mappers = await compete(mappers, setup.rounds(8))
        finally:
            mongoengine_odm.close()
        return [_drivers(beside_drivers), _mappers(beside_mappers, str(node))]


_STAMPS = ("createdAt", "updatedAt")  # Mongoose sets its own


def _plain(structs: list[Payment]) -> list[dict[str, Any]]:
    """Code without a mapper: a dict literal per document, no checks, one timestamp."""
    now = datetime.now(UTC)
    return [
        {
            "_id": p.id,
            "userId": p.user_id,
            "subscriptionId": p.subscription_id,
            "amount": p.amount,
            "currency": p.currency,
            "status": p.status,
            "description": p.description,
            "stripePaymentIntentId": p.stripe_payment_intent_id,
            "stripeInvoiceId": p.stripe_invoice_id,
            "invoiceUrl": p.invoice_url,
            "paidAt": p.paid_at,
            "createdAt": now,
            "updatedAt": now,
        }
        for p in structs
    ]


def _copies(structs: list[Payment]) -> list[Payment]:
    return [
        Payment(
            id=p.id,
            user_id=p.user_id,
            subscription_id=p.subscription_id,
            amount=p.amount,
            currency=p.currency,
            status=p.status,
            description=p.description,
            stripe_payment_intent_id=p.stripe_payment_intent_id,
            stripe_invoice_id=p.stripe_invoice_id,
            invoice_url=p.invoice_url,
            paid_at=p.paid_at,
        )
        for p in structs
    ]


def _contestant(
    database: Database, name: str, work: Callable[[], Awaitable[Any]], *, prepare: Callable[[], object] | None = None
) -> Contestant:
    async def run() -> float:
        if prepare:
            prepare()
        return (await timed(work))[0]

    return _emptied(database, Contestant(name, run))


def _emptied(database: Database, contestant: Contestant) -> Contestant:
    """The same into a collection recreated outside the measured time; the stored documents are counted."""

    async def run() -> float:
        await database.raw["payments"].drop()
        await database.raw.create_collection("payments")
        seconds = await contestant.run()
        stored = await database.raw["payments"].estimated_document_count()
        assert stored == COUNT, f"{contestant.name} stored {stored}"
        return seconds

    return Contestant(contestant.name, run)


def _refill(documents: list[Any], structs: list[Payment]) -> None:
    """MongoEngine inserts a document object once only."""
    documents[:] = mongoengine_odm.models(structs)


async def _mongoengine(documents: list[Any]) -> None:
    """Synchronous work in place, because a thread would add to its time."""
    mongoengine_odm.insert_many(documents)


def _drivers(samples: dict[str, list[float]]) -> Table:
    ours = samples[OURS]
    return _table(
        f"insert: {COUNT:,} payments, beside the driver",
        [
            Figure(what="ours ÷ async driver that makes its dicts", value=ratio(ours, samples[BARE]), most=1.15),
            Figure(what="ours ÷ async driver whose dicts are there", value=ratio(ours, samples[READY])),
        ],
        samples,
        "Ours checks every field's type and every string before anything is sent; the driver's dicts are sent as they are.",
        "All start from the same Structs. Times are aware, as applications have them.",
    )


def _mappers(samples: dict[str, list[float]], node: str) -> Table:
    ours = samples[OURS]
    figures = [
        Figure(what="faster than Beanie, models ready on both sides", value=ratio(samples[BEANIE], ours), least=3),
        Figure(
            what="faster than Beanie, models made on both sides",
            value=ratio(samples[BEANIE_BUILT], samples[OURS_BUILT]),
        ),
        Figure(what="faster than MongoEngine, models ready on both sides", value=ratio(samples[MONGOENGINE], ours)),
    ]
    if MONGOOSE in samples:
        figures.append(
            Figure(what="faster than Mongoose, which makes and checks its own", value=ratio(samples[MONGOOSE], ours))
        )
    return _table(
        f"insert: {COUNT:,} payments, beside other mappers",
        figures,
        samples,
        "Beanie checks when a model is made, not when it is written; ours checks when it is written.",
        f"{node}." if MONGOOSE in samples else f"Mongoose was not measured: {node}.",
    )


def _table(title: str, figures: list[Figure], samples: dict[str, list[float]], *notes: str) -> Table:
    rows = [(name, ms(median(taken)), us(median(taken) / COUNT), spread(taken)) for name, taken in samples.items()]
    return Table(
        title=title,
        figures=figures,
        columns=("", "median", "a document", "spread"),
        rows=rows,
        notes=[f"{len(samples[OURS])} rounds, in turn, each into a new collection without secondary indexes.", *notes],
        samples=samples,
    )
