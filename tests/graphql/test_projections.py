"""What is read of documents is what the query selects, and keys: asserted on the commands that are sent."""

from typing import Any

import pytest
from bson import DatetimeMS, Int64
from pymongo import monitoring
from tests.serving import Client

from ximler.database import Database
from ximler.database.monitoring import _Commands

KEYS = {"_id", "createdAt"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The fields that each find of projects asks for."""
    found: list[Any] = []
    started = _Commands.started

    def note(self: _Commands, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "find" and event.command["find"] == "projects":
            found.append(set(event.command.get("projection", ())))
        started(self, event)

    monkeypatch.setattr(_Commands, "started", note)
    return found


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("{ projects { nodes { id } } }", set()),
        ("{ projects { nodes { id name } } }", {"name"}),
        ("{ projects { nodes { id } edges { node { a: description b: description } cursor } } }", {"description"}),
        ("{ projects { pageInfo { endCursor hasNextPage } } }", set()),
        (
            "{ projects { nodes { ...F storageSize } } } fragment F on Project { updatedAt }",
            {"storageSize", "updatedAt"},
        ),
        ("{ me { projects(first: 3) { nodes { name deletedAt } } } }", {"name", "deletedAt"}),
        ("query ($no: Boolean = false) { projects { nodes { id name @include(if: $no) } } }", set()),
    ],
)
async def test_lists_of_projects_read_only_selected_fields(
    client: Client, read: list[Any], query: str, fields: set[str]
) -> None:
    await client.join("ada@example.com")
    for name in ("first", "second"):
        await client.ask("mutation ($n: String!) { createProject(input: {name: $n}) { id } }", n=name)
    read.clear()
    for _ in range(3):
        answer = await client.ask(query)
        assert not answer.errors
    assert read == [fields | KEYS] * 3


async def test_large_fields_are_read_by_their_own_resolver_from_the_id_alone(client: Client, read: list[Any]) -> None:
    await client.join("ada@example.com")
    await client.ask('mutation { createProject(input: {name: "first", settings: {a: 1}}) { id } }')
    read.clear()
    answer = await client.ask("{ projects { nodes { settings } } }")
    assert answer["projects"]["nodes"] == [{"settings": {"a": 1}}]
    assert read == [KEYS, {"_id", "settings"}]


async def test_rows_that_are_copied_are_those_that_structs_give(client: Client, database: Database) -> None:
    await client.join("ada@example.com")
    for name in ("first", "second"):
        await client.ask("mutation ($n: String!) { createProject(input: {name: $n}) { id } }", n=name)
    stored = database.raw["projects"]
    changes: list[dict[str, Any]] = [
        {"$set": {"description": "with one"}},
        {"$unset": {"description": 1, "storageSize": 1}},
        {"$set": {"storageSize": Int64(2**40), "deletedAt": None}},
        {"$set": {"storageSize": 2.5, "updatedAt": DatetimeMS(-1)}},
        {"$set": {"storageSize": None}},
        {"$set": {"storageSize": 2**60}},  # beyond a Long
        {"$unset": {"updatedAt": 1}},
        {"$set": {"name": 5}},  # cannot be read
    ]
    fields = "id name description storageSize createdAt updatedAt deletedAt __typename"
    for number, change in enumerate(changes):
        await stored.update_one({"name": "first"}, change, bypass_document_validation=True)
        query = f"# {number}\n{{ projects {{ nodes {{ {fields} }} pageInfo {{ endCursor }} }} }}"
        interpreted, *compiled = [await client.ask(query) for _ in range(3)]  # a plan is compiled for its second use
        for answer in compiled:
            assert answer.data == interpreted.data
            assert [error["path"] for error in answer.errors] == [error["path"] for error in interpreted.errors]
