"""Documents that other applications wrote into the collections that they share with Ximler.

Each row says where its value comes from.
"""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import DatetimeMS, DBRef, MaxKey, MinKey, ObjectId, Regex, Timestamp
from tests.serving import Client

from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.schema.document import Document

TIMES: list[Any] = [
    datetime(2026, 3, 4, tzinfo=UTC),
    datetime(2026, 3, 4, tzinfo=UTC),
    # JavaScript's `new Date(±8.64e15)`, the range of its Date; and C#'s `DateTime.MinValue` and `MaxValue`.
    DatetimeMS(8_640_000_000_000_000),
    DatetimeMS(-8_640_000_000_000_000),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
    # Just outside the years that Python supports, and the ends of BSON's range.
    DatetimeMS(-62_135_596_800_001),
    DatetimeMS(253_402_300_800_000),
    DatetimeMS(253_402_300_800_000),
    DatetimeMS(2**63 - 1),
    DatetimeMS(-(2**63)),
    datetime(1969, 12, 31, tzinfo=UTC),
    # `timestamps: false`, and a cleared field.
    ...,
    None,
]
# Exports and imports through JSON, and other drivers.
ODD: list[Any] = ["2026-03-04", "", 1_772_582_400, 1.5e12, True, Timestamp(5, 1), MinKey(), MaxKey(), Regex("a"), {},
                  {"$date": 5}, [], [datetime(2026, 3, 4, tzinfo=UTC)], ObjectId(), b"\0", DBRef("a", 1),
                  float("nan"), [1, "a"], [5, 9], "9999", 7]  # fmt: skip


@pytest.mark.parametrize("change", ['name: "New"', 'tags: ["a"]'])
async def test_a_change_that_an_array_of_another_application_prevents_says_why(
    ada: Client, database: Database, change: str
) -> None:
    """MongoDB indexes at most one array of a document in an index, and `searchKeys` and `tags` are arrays."""
    me = (await ada.ask("{ me { id } }"))["me"]["id"]
    project = {
        "_id": ObjectId(),
        "userId": ObjectId(me),
        "name": "Old",
        "createdAt": [datetime(2026, 3, 4, tzinfo=UTC)],
    }
    await database.raw["projects"].insert_one(project, bypass_document_validation=True)
    answer = await ada.ask(f'mutation {{ updateProject(id: "{project["_id"]}", input: {{{change}}}) {{ id }} }}')
    assert answer.code == "CONFLICT"
    assert "createdAt and " in answer.errors[0]["message"]
    assert "repair it in the database" in answer.errors[0]["message"]
    stored = await database.raw["projects"].find_one({"_id": project["_id"]})
    assert stored is not None
    assert (stored["name"], "updatedAt" in stored) == ("Old", False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["users", "projects"])
async def test_pages_of_every_size_contain_the_same_documents(database: Database, name: str) -> None:
    """A wrong time is read as the default in a user, and excludes a project from pages."""
    collection: Any = getattr(database, name)
    owner = ObjectId()
    made = [{"_id": ObjectId(), "name": "n", "userId": owner, "createdAt": moment} for moment in [*TIMES, *ODD]]
    for number, raw in enumerate(made):
        if name == "users":
            raw.update(email=f"{number}@example.com", password="x")
        if raw["createdAt"] is ...:
            del raw["createdAt"]
    await collection.raw.insert_many(made, bypass_document_validation=True)
    whole = await collection.page({}, first=100)
    arrays = sum(isinstance(each, list) for each in ODD)  # are left out
    readable = len(made) - arrays if name == "users" else len(TIMES)
    assert (len(whole.items), whole.has_next) == (readable, False)
    order = [raw["_id"] async for raw in collection.raw.find({}).sort([("createdAt", -1), ("_id", -1)])]
    ids = [each.id for each in whole.items]
    assert ids == [each for each in order if each in set(ids)]
    for first in (1, 2, 3, 7):
        found: list[Document] = []
        after = None
        while True:
            page = await collection.page({}, first=first, after=after)
            found += page.items
            if not page.has_next:
                break
            after = decode_cursor(page.end_cursor)
        values = {raw["_id"]: raw.get("createdAt") for raw in made}
        assert [values[each.id] for each in found] == [values[each] for each in ids], first
