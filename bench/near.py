"""Topic `near`: a customer's nearest projects, among everybody's."""

import math
import random
import time
from statistics import median
from typing import Any

from bson import ObjectId

from bench.contest import frozen, percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import nearest

__all__ = ["run"]

PROJECTS, HEAVY, LIGHT = 1_000_000, 20_000, 90  # of all users, of one of them, of each other
_INDEX = "userId_1_location_2dsphere"
_BATCH = 10_000


async def run(setup: Setup) -> list[Table]:
    total = 30_000 if setup.quick else PROJECTS
    chance = random.Random(5)
    heavy, lights = ObjectId(), [ObjectId() for _ in range((total - HEAVY) // LIGHT)]
    async with setup.database(initialised=True) as database:
        # The other indexes serve other queries, and would take most of the time.
        for name in await database.raw["projects"].index_information():
            if name not in ("_id_", _INDEX):
                await database.raw["projects"].drop_index(name)
        owners = [heavy] * HEAVY + lights * LIGHT
        for first in range(0, len(owners), _BATCH):
            rows = [_project(database, chance, owner) for owner in owners[first : first + _BATCH]]
            await database.raw["projects"].insert_many(rows, ordered=False)
        asked: dict[str, dict[str, Any]] = {
            "90 projects": {"who": lights, "near": {}},
            "90 projects, within 500 km": {"who": lights, "near": {"max_km": 500}},
            "20,000 projects": {"who": [heavy], "near": {}},
            "20,000 projects, within 500 km": {"who": [heavy], "near": {"max_km": 500}},
        }
        samples: dict[str, list[float]] = {name: [] for name in asked}
        cursors: list[float] = []
        with frozen():
            for name, each in asked.items():
                for number in range(setup.rounds(200) + 5):
                    actor = Actor(kind="user", user_id=chance.choice(each["who"]))
                    place = _place(chance) | each["near"]
                    began = time.perf_counter()
                    page = await nearest.nearest(database, actor, place)
                    taken = time.perf_counter() - began
                    if number >= 5:  # the first ones open connections
                        samples[name].append(taken)
                    if number % 4 == 0 and page.has_next:
                        began = time.perf_counter()
                        await nearest.nearest(database, actor, place, after=page.end_cursor)
                        cursors.append(time.perf_counter() - began)
    samples["the second page"] = cursors
    return [
        Table(
            title=f"near: {len(owners):,} projects of {len(lights) + 1:,} users",
            figures=[
                Figure(what=f"p95: {name}", value=percentile(taken, 95) * 1000, unit="ms", most=5)
                for name, taken in samples.items()
            ],
            columns=("", "median", "p95"),
            rows=[(name, ms(median(taken)), ms(percentile(taken, 95))) for name, taken in samples.items()],
            samples=samples,
        )
    ]


def _place(chance: random.Random) -> dict[str, float]:
    """Evenly on the sphere, rounded as a map's."""
    latitude = math.degrees(math.asin(chance.uniform(-1, 1)))
    return {"longitude": round(chance.uniform(-180, 180), 5), "latitude": round(latitude, 5)}


def _project(database: Database, chance: random.Random, owner: ObjectId) -> dict[str, Any]:
    place, now = _place(chance), database.clock.now()
    point = {"type": "Point", "coordinates": [place["longitude"], place["latitude"]]}
    return {
        "userId": owner,
        "name": "bridge",
        "storageSize": 300,
        "createdAt": now,
        "updatedAt": now,
        "location": point,
    }
