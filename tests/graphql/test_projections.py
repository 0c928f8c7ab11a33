"""What is read of documents is what the query selects, and keys: asserted on the commands that are sent."""

from typing import Any

import pytest
from pymongo import monitoring
from tests.serving import Client

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
