"""The plan for a sharded cluster agrees with the rules of MongoDB, as far as the catalogue can break them."""

import pytest

from ximler.database import Database, sharding
from ximler.database.sync import status
from ximler.schema import CATALOGUE
from ximler.schema.project import PROJECTS

SHARDED = [each for each in CATALOGUE if each.shard_key.fields]


@pytest.mark.parametrize("collection", SHARDED, ids=lambda each: each.name)
def test_a_unique_index_of_a_sharded_collection_begins_with_its_key(collection) -> None:
    key = [name for name, _ in collection.shard_key.fields]
    for index in collection.indexes:
        assert not index.unique or [name for name, _ in index.keys][: len(key)] == key, index.name
    assert all(kind == 1 for _, kind in collection.shard_key.fields) or len(key) == 1


def test_the_plan_names_every_collection_once() -> None:
    text = sharding.commands("shop")
    assert text.startswith("// ")
    for collection in CATALOGUE:
        sharded = f'sh.shardCollection("shop.{collection.name}", ' in text
        assert sharded == bool(collection.shard_key.fields)
        assert sharded or f"//   {collection.name}: " in text
    assert 'sh.shardCollection("shop.projects", {"userId": 1, "_id": 1})' in text
    assert "users: found by id, address and token alike" in text


async def test_the_index_of_a_shard_key_is_no_difference(database: Database) -> None:
    name = await database.raw["projects"].create_index([("userId", 1), ("_id", 1)])
    try:
        assert name == sharding.key_index(PROJECTS)
        assert await status(database) == []
    finally:
        await database.raw["projects"].drop_index(name)
