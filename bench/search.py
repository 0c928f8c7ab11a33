"""Topic `search`: a customer's search among everybody's projects, beside the text index."""

import random
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from statistics import median
from typing import Any

from bson import ObjectId

from bench.contest import percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import projects, search

__all__ = ["run"]

HEAVY, LIGHT = 20_000, 90  # projects of a user
_TEXT = "name_text_description_text"
_SYLLABLES = "ba be bi bo da de di do fa ga ge ka ke ki ko la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa se so ta te to va vi vo".split()


class Vocabulary:
    """3,000 made-up words, of which some are far more frequent than others, as in a language."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        made = ("".join(self.random.choices(_SYLLABLES, k=self.random.randint(2, 4))) for _ in range(3000))
        self._words = list(dict.fromkeys(made))
        self._weights = [1 / (rank + 10) for rank in range(len(self._words))]

    def words(self, count: int) -> list[str]:
        return self.random.choices(self._words, self._weights, k=count)

    def query(self, count: int) -> str:
        """The beginnings of words, as one types them."""
        return " ".join(word[: self.random.randint(3, len(word))] for word in self.words(count))


async def run(setup: Setup) -> list[Table]:
    users = 100 if setup.quick else 2000 if setup.full else 400
    async with setup.database(initialised=True) as database:
        made = Vocabulary()
        heavy, lights = ObjectId(), [ObjectId() for _ in range(users)]
        await database.raw["projects"].drop_index(_TEXT)  # it makes inserts twenty times as slow
        for start in range(0, HEAVY, 1000):
            await _fill(database, made, heavy, min(1000, HEAVY - start))
        for user in lights:
            await _fill(database, made, user, LIGHT)
        await database.raw["projects"].create_index([("name", "text"), ("description", "text")], name=_TEXT)
        asked = {
            f"{who}, {words} {'term' if words == 1 else 'terms'}": [
                (made.random.choice(owners), made.query(words)) for _ in range(setup.rounds(400))
            ]
            for who, owners in (("90 projects", lights), ("20,000 projects", [heavy]))
            for words in (1, 2)
        }
        samples: dict[str, list[float]] = {}
        for kind, queries in asked.items():
            samples[f"ours: {kind}"] = await _times(queries, lambda user, query: _ours(database, user, query))
            samples[f"$text: {kind}"] = await _times(queries[:50], lambda user, query: _text(database, user, query))
    limits = {
        "90 projects, 1 term": 2,
        "90 projects, 2 terms": 2,
        "20,000 projects, 1 term": 4,
        "20,000 projects, 2 terms": 3,
    }
    total = HEAVY + users * LIGHT
    return [
        Table(
            title=f"search: {total:,} projects of {users + 1:,} users",
            figures=[
                Figure(what=f"p95: {kind}", value=percentile(samples[f"ours: {kind}"], 95) * 1000, unit="ms", most=most)
                for kind, most in limits.items()
            ],
            columns=("", "median", "p95"),
            rows=[(name, ms(median(taken)), ms(percentile(taken, 95))) for name, taken in samples.items()],
            notes=["The text index finds whole words only, and counts the words of a query as alternatives."],
            samples=samples,
        )
    ]


async def _fill(database: Database, made: Vocabulary, user: ObjectId, count: int) -> None:
    now = database.clock.now().replace(tzinfo=None)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        name, description = " ".join(made.words(3)), " ".join(made.words(12))
        at = now - timedelta(minutes=made.random.randint(0, 1_000_000))
        rows.append(
            {"userId": user, "name": name, "description": description, "createdAt": at, "updatedAt": at,
             "canvasData": {"elements": [{"id": str(n), "x": n} for n in range(10)]}, "storageSize": 300,
             "searchTerms": (terms := search.terms(name, description)), "searchKeys": search.keys(terms)}
        )  # fmt: skip
    await database.raw["projects"].insert_many(rows, ordered=False)


async def _ours(database: Database, user: ObjectId, query: str) -> None:
    await projects.page(database, Actor(kind="user", user_id=user), query=query)


async def _text(database: Database, user: ObjectId, query: str) -> None:
    found = database.raw["projects"].find({"$text": {"$search": query}, "userId": user, "deletedAt": None})
    await found.sort("createdAt", -1).limit(21).to_list()


async def _times(queries: list[tuple[ObjectId, str]], ask: Callable[[ObjectId, str], Awaitable[None]]) -> list[float]:
    for user, query in queries[:10]:
        await ask(user, query)
    taken = []
    for user, query in queries:
        began = time.perf_counter()
        await ask(user, query)
        taken.append(time.perf_counter() - began)
    return taken
