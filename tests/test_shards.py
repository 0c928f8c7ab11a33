"""The rules of `tests/shards.py`: what they must find, and what the documentation says of the list."""

from pathlib import Path

import pytest
from tests.shards import KEYS, LISTED, Command, Watch, broadcasts, refused, table

import ximler
from ximler.database import Database


def test_a_query_without_the_shard_key_is_found() -> None:
    anybodys: Command = {"find": "projects", "filter": {"name": "x"}}
    assert list(broadcasts(anybodys))
    assert list(broadcasts(anybodys | {"filter": {"userId": {"$gt": 1}}}))
    assert not list(broadcasts(anybodys | {"filter": {"$and": [{"userId": {"$in": [1, 2]}}]}}))
    assert list(broadcasts({"update": "projects", "updates": [{"q": {"userId": 1}, "u": {}}]}))
    assert not list(broadcasts({"update": "projects", "updates": [{"q": {"userId": 1, "_id": 2}, "u": {}}]}))
    lookup = {"$lookup": {"from": "projects", "localField": "_id", "foreignField": "name", "as": "p"}}
    assert list(broadcasts({"aggregate": "users", "pipeline": [lookup]}))


@pytest.mark.parametrize(
    "command",
    [
        {"findAndModify": "projects", "query": {"_id": 1}},
        {"update": "projects", "updates": [{"q": {"_id": 1}, "u": {}, "upsert": True}]},
        {"update": "projects", "updates": [{"q": {"userId": 1}, "u": {}, "upsert": True, "multi": True}]},
        {"update": "usage", "updates": [{"q": {"userId": 1, "resourceType": "apiCalls"}, "u": {}}]},
        {"delete": "projects", "deletes": [{"q": {"userId": 1}, "limit": 1}]},
    ],
)
def test_a_command_that_a_cluster_refuses_is_found(command: Command) -> None:
    assert list(refused(command))


async def test_the_server_is_asked_whether_the_key_is_pinned(database: Database) -> None:
    watch = Watch()
    watch._claims = [
        ("projects", {"userId": {"$in": [1, 2]}, "name": "x"}, ["userId"]),
        ("sessions", {"_id": b"x"}, ["_id"]),
        ("projects", {"userId": {"$gt": 1}}, ["userId"]),
        ("projects", {"userId": 1}, ["userId", "_id"]),
    ]
    (first, second) = await watch.disproved(database.client[f"{database.name}_keys"])
    assert "'$gt': 1" in first
    assert "['userId', '_id']" in second


def test_the_list_names_modules_and_sharded_collections() -> None:
    root = Path(ximler.__file__).parent
    for module, _, collection in LISTED:
        assert (root / f"{module.replace('.', '/')}.py").is_file(), module
        assert KEYS[collection], collection


def test_the_documentation_has_the_list() -> None:
    assert table() in Path("docs/scaling.md").read_text()
