"""The catalogue as a whole: what holds for every collection, the specification's and ours."""

from importlib.util import find_spec
from typing import Any

import pytest
from bson import ObjectId

from ximler.schema import CATALOGUE, SPECIFIED
from ximler.schema.document import Collection, extras

every_collection = pytest.mark.parametrize("collection", CATALOGUE, ids=lambda c: c.name)


def test_no_two_collections_share_a_name_or_a_document() -> None:
    assert len({c.name for c in CATALOGUE}) == len(CATALOGUE)
    assert len({c.document for c in CATALOGUE}) == len(CATALOGUE)


@every_collection
def test_a_collection_has_purpose_owner_and_a_reason_for_each_index(collection: Collection[Any]) -> None:
    assert collection.purpose.endswith(".")
    assert find_spec(f"ximler.{collection.owner}"), collection.owner
    assert collection.shard_key.why
    assert all(index.why for index in collection.indexes)


@every_collection
def test_indexes_and_shard_keys_are_of_fields_that_exist(collection: Collection[Any]) -> None:
    names = set(collection.document.__struct_encode_fields__)
    for index in collection.indexes:
        assert {key.split(".")[0] for key, _ in index.keys} <= names, index.name
    assert {field for field, _ in collection.shard_key.fields} <= names


@every_collection
def test_a_unique_index_holds_on_a_sharded_cluster(collection: Collection[Any]) -> None:
    """It must start with the shard key, or the collection stay whole on one shard."""
    fields = collection.shard_key.fields
    for index in collection.indexes:
        if index.unique:
            assert index.keys[: len(fields)] == fields, index.name


@every_collection
def test_a_ranged_shard_key_has_an_index_that_starts_with_its_first_field(collection: Collection[Any]) -> None:
    fields = collection.shard_key.fields
    if fields and fields[0][1] == 1 and fields[0][0] != "_id":
        assert any(index.keys[0] == fields[0] for index in collection.indexes)


@every_collection
def test_names_in_mongodb_are_camel_case(collection: Collection[Any]) -> None:
    for name in collection.document.__struct_encode_fields__:
        assert name == "_id" or (name.isalnum() and name[0].islower()), name


@every_collection
def test_a_reference_points_to_a_collection_of_the_map(collection: Collection[Any]) -> None:
    targets = {marks["ref"] for marks in extras(collection.document).values() if "ref" in marks}
    assert targets <= {c.name for c in SPECIFIED}


@pytest.mark.parametrize("collection", SPECIFIED, ids=lambda c: c.name)
def test_two_documents_share_neither_an_id_nor_a_default(collection: Collection[Any]) -> None:
    from msgspec import inspect

    required = [f for f in inspect.type_info(collection.document).fields if f.required]  # type: ignore[attr-defined]  # a Struct's
    given = dict.fromkeys((f.name for f in required), "x")
    one, other = collection.document(**given), collection.document(**given)
    for name in one.__struct_fields__:
        value = getattr(one, name)
        if isinstance(value, ObjectId):
            assert value != getattr(other, name)
        elif isinstance(value, dict | list) or hasattr(value, "__struct_fields__"):
            assert value is not getattr(other, name), name
