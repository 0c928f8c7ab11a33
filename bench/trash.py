"""Topic `trash`: expired projects in the trash are erased while requests are served."""

import asyncio
import time
from datetime import timedelta
from statistics import median

from bson import ObjectId

from bench.contest import percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import projects, search, trash

__all__ = ["run"]

EACH = 10  # deleted projects of each of many owners
_PAUSE = 0.02  # between requests


async def run(setup: Setup) -> list[Table]:
    total = 2000 if setup.quick else 10_000
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}
    async with setup.database(initialised=True) as database:
        guest = ObjectId()
        await _fill(database, [guest], 50, deleted=False)
        for name, owners in (("one owner", 1), (f"{total // EACH:,} owners", total // EACH)):
            idle: list[float] = []
            beside: list[float] = []
            await _fill(database, [ObjectId() for _ in range(owners)], total // owners, deleted=True)
            await _requests(database, guest, idle, until=asyncio.create_task(asyncio.sleep(5 if setup.quick else 10)))
            began = time.perf_counter()
            erasing = asyncio.create_task(trash.purge_expired(database=database))
            await _requests(database, guest, beside, until=erasing)
            taken = time.perf_counter() - began
            if (erased := erasing.result()) != total:
                raise RuntimeError(f"{erased} of {total} projects were erased")
            figures += [
                Figure(what=f"erased, of {name}", value=total / taken, unit="/s", least=200),
                Figure(
                    what=f"p99 of a list meanwhile, of {name}",
                    value=percentile(beside, 99) / percentile(idle, 99),
                    most=2,
                ),
            ]
            samples |= {f"list, idle ({name})": idle, f"list, beside ({name})": beside}
    return [
        Table(
            title=f"trash: {total:,} projects erased",
            figures=figures,
            columns=("", "median", "p99"),
            rows=[(name, ms(median(taken)), ms(percentile(taken, 99))) for name, taken in samples.items()],
            notes=["Requests and the job share a process, as in `ximler up`."],
            samples=samples,
        )
    ]


async def _requests(database: Database, user: ObjectId, taken: list[float], until: asyncio.Task[object]) -> None:
    actor = Actor(kind="user", user_id=user)
    while not until.done():
        began = time.perf_counter()
        await projects.page(database, actor)
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE)


async def _fill(database: Database, owners: list[ObjectId], count: int, *, deleted: bool) -> None:
    now = database.clock.now().replace(tzinfo=None)
    terms = search.terms("Sketch of a bridge")
    project = {"name": "Sketch of a bridge", "searchTerms": terms, "searchKeys": search.keys(terms), "storageSize": 900}
    project["canvasData"] = {"elements": [{"id": str(n), "x": n, "y": n} for n in range(30)]}
    project |= {"createdAt": now - timedelta(days=60), "updatedAt": now}
    if deleted:
        project["deletedAt"] = now - timedelta(days=31)
    gauge = {"projects": 0, "storageBytes": 900 * count, "number": 1, "createdAt": now, "updatedAt": now}
    await database.raw["gauges"].insert_many([gauge | {"_id": owner} for owner in owners])
    rows = [project | {"userId": owner} for owner in owners for _ in range(count)]
    for start in range(0, len(rows), 1000):
        await database.raw["projects"].insert_many(rows[start : start + 1000], ordered=False)
