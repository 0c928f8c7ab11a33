"""A Mongoose model named Usage, left to itself, writes to `usages`:
we say so, and bring its documents home."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId
from tests.mongoose.documents import DAY, expected, seen, their_full, their_minimal
from tests.mongoose.peer import Application

from ximler.database import Database, sync

pytestmark = pytest.mark.usefixtures("without_usages")


@pytest.fixture
async def without_usages(database: Database) -> Any:
    """`database` empties only what it knows."""
    yield
    for name in await database.raw.list_collection_names():
        if name == "usages" or name.startswith("usages_"):
            await database.raw.drop_collection(name)


async def test_documents_in_usages_are_reported_and_moved(
    unbound: Application, database: Database, models: dict[str, Any]
) -> None:
    assert await sync.status(database) == []
    documents = [their_minimal()["Usage"], their_full()["Usage"]]
    stored = [await unbound.create("Usage", document) for document in documents]
    assert await database.usage.count({}) == 0
    [found] = await sync.status(database)
    assert (found.collection, found.what, found.state) == ("usages", "documents", "extra")
    assert "ximler db adopt" in found.remedy
    assert await sync.adopt(database) == 2
    fields = models["Usage"]["fields"]
    for document, raw in zip(documents, stored, strict=True):
        row = await database.usage.get(raw["_id"])
        assert seen(fields, row) == expected(fields, document)
        assert row.created_at == raw["createdAt"]
        assert (await unbound.raw("usage", "findOne", {"_id": row.id}))["__v"] == 0
    assert await sync.status(database) == []
    assert await sync.adopt(database) == 0


async def test_an_empty_usages_collection_is_ignored(unbound: Application, database: Database) -> None:
    await unbound.ask("createIndexes", model="Usage")
    assert await sync.status(database) == []


async def test_a_document_that_was_moved_before_is_kept_as_it_is_now(unbound: Application, database: Database) -> None:
    row = await unbound.create("Usage", their_minimal()["Usage"])
    await database.raw["usage"].insert_one({**row, "amount": 99})
    await sync.adopt(database)
    assert (await database.usage.get(row["_id"])).amount == 99
    assert await database.usage.count({}) == 1


async def test_documents_outside_the_model_are_moved_too(unbound: Application, database: Database) -> None:
    """It cannot be read where it goes, either;
    but it is not lost, and does not keep the others from moving."""
    await unbound.raw("usages", "insertMany", [{"_id": ObjectId(), "amount": "many"}, their_minimal()["Usage"]])
    assert await sync.adopt(database) == 2
    assert await database.raw["usage"].count_documents({}) == 2
    assert len(await database.usage.find({})) == 1


async def test_an_adoption_that_was_interrupted_anywhere_is_reported_and_finished(
    unbound: Application, database: Database
) -> None:
    rows, interruptions = [], 0

    async def told() -> bool:
        """What is not home is reported."""
        differences = await sync.status(database)
        return await database.usage.count({}) == len(rows) or {found.what for found in differences} == {"documents"}

    for tenths_of_ms in range(0, 100, 5):
        rows += [(await unbound.create("Usage", their_minimal()["Usage"]))["_id"] for _ in range(2)]
        try:
            async with asyncio.timeout(tenths_of_ms / 10_000):
                await sync.adopt(database)
        except TimeoutError:
            interruptions += 1
        assert await told() or await told()  # the server may have been at a command whose sender is gone
    assert interruptions
    async with asyncio.timeout(10):
        while await sync.status(database):
            await sync.adopt(database)
    assert sorted(row.id for row in await database.usage.find({})) == sorted(rows)


@pytest.mark.parametrize("adopters", [1, 3])
async def test_nothing_is_lost_or_doubled_while_mongoose_goes_on_writing(
    adopters: int, unbound: Application, database: Database
) -> None:
    """Several processes may adopt at once, too."""
    written: list[ObjectId] = []
    writing = True

    async def write(writer: int) -> None:
        for number in range(25):
            row = {**their_minimal()["Usage"], "amount": writer * 1000 + number, "periodStart": DAY}
            written.append((await unbound.create("Usage", row))["_id"])

    async def adopt() -> int:
        moved = 0
        while writing:
            moved += await sync.adopt(database)
        return moved

    async with asyncio.TaskGroup() as group:
        adopting = [group.create_task(adopt()) for _ in range(adopters)]
        try:
            await asyncio.gather(*(write(writer) for writer in range(4)))
        finally:
            writing = False
    moved = sum(adopter.result() for adopter in adopting) + await sync.adopt(database)
    stored = [row.id for row in await database.usage.find({})]
    assert sorted(stored) == sorted(written)
    assert len(set(stored)) == 100
    assert moved >= 100 if adopters > 1 else moved == 100
    assert await sync.status(database) == []
