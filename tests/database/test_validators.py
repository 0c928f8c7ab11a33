"""What the server itself accepts and refuses, by raw inserts, against the specification's own table of
fields.
"""

from datetime import datetime
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex
from pymongo.errors import BulkWriteError, OperationFailure, WriteError
from tests.database.documents import BY_NAME, DAY, complete
from tests.schema.test_specification import FIELDS, OURS, REQUIRED

from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.validators import validator
from ximler.schema import CATALOGUE
from ximler.schema.document import Collection, extras

each_of_the_ten = pytest.mark.parametrize("name", FIELDS)
NOW = datetime(2026, 3, 1)  # noqa: DTZ001 (naive UTC, as the codec takes it)

SAMPLES: dict[str, Any] = {
    "string": "text",
    "int": 5,
    "long": Int64(5),
    "double": 5.5,
    "decimal": Decimal128("5.5"),
    "bool": True,
    "date": DAY,
    "objectId": ObjectId(),
    "array": [],
    "object": {"a": 1},
    "binData": Binary(b"x"),
    "regex": Regex("x"),
}
ACCEPTED = {
    "String": {"string"},
    "Number": {"int", "long", "double", "decimal"},
    "Boolean": {"bool"},
    "Date": {"date"},
    "ObjectId": {"objectId"},
    "[String]": {"array"},
    "[Number]": {"array"},
    "Mixed": set(SAMPLES),
}


def raw_of(name: str) -> dict[str, Any]:
    collection = BY_NAME[name]
    return codec_of(collection.document).encode(complete(collection), NOW)


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at the path; `...` takes it out."""
    head, _, rest = path.partition(".")
    copy = dict(raw)
    if rest:
        copy[head] = changed(raw[head], rest, value)
    elif value is ...:
        del copy[head]
    else:
        copy[head] = value
    return copy


Case = tuple[str, dict[str, Any], bool]  # description, document, whether the server should accept it


async def check(database: Database, name: str, cases: list[Case]) -> None:
    """Insert them all, and compare."""
    raws = [raw | {"_id": ObjectId()} for _, raw, _ in cases]
    refused: set[int] = set()
    try:
        await database.raw[name].insert_many(raws, ordered=False)
    except BulkWriteError as error:
        failures = error.details["writeErrors"]
        refused = {failure["index"] for failure in failures if failure["code"] == 121}
        # The validator comes first: a value that is taken has passed it.
        others = {failure["code"] for failure in failures} - {121, 11000}
        if others:
            raise
    await database.raw[name].delete_many({"_id": {"$in": [raw["_id"] for raw in raws]}})
    wrongly = [
        f"{what} {'accepted' if not fine else 'refused'}"
        for n, (what, _, fine) in enumerate(cases)
        if (n not in refused) != fine
    ]
    assert wrongly == []


def kind_of(text: str) -> str:
    return "enum" if text.startswith("enum ") else text.split(" ")[0]


def all_fields(name: str) -> dict[str, Any]:
    return FIELDS[name] | OURS.get(name, {})


@each_of_the_ten
async def test_each_field_takes_its_own_type_and_no_other(database: Database, name: str) -> None:
    raw = raw_of(name)
    cases: list[Case] = [("complete", raw, True)]
    for path, (text, _) in all_fields(name).items():
        accepted = ACCEPTED.get(kind_of(text), set())
        cases += [(f"{path}: {kind}", changed(raw, path, value), kind in accepted) for kind, value in SAMPLES.items()]
    await check(database, name, cases)


@each_of_the_ten
async def test_required_fields_are_enforced_and_others_may_be_missing_or_null(database: Database, name: str) -> None:
    raw = raw_of(name)
    required = {path.split(".")[0] for path, (_, default) in FIELDS[name].items() if default is REQUIRED}
    cases: list[Case] = [("required fields only", {field: raw[field] for field in required}, True)]
    for path, (text, default) in all_fields(name).items():
        optional = default is not REQUIRED
        cases.append((f"{path} missing", changed(raw, path, ...), optional))
        cases.append((f"{path} null", changed(raw, path, None), optional or text == "Mixed"))
    await check(database, name, cases)


@each_of_the_ten
async def test_an_enum_takes_its_values_and_no_others(database: Database, name: str) -> None:
    raw = raw_of(name)
    cases: list[Case] = []
    for path, (text, _) in FIELDS[name].items():
        if kind_of(text) == "enum":
            values = text.removeprefix("enum ").split("|")
            cases += [(f"{path}: {value}", changed(raw, path, value), True) for value in values]
            wrong = ("", values[0].swapcase(), f"{values[0]} ", "OTHER")
            cases += [(f"{path}: {value!r}", changed(raw, path, value), False) for value in wrong]
    await check(database, name, [("complete", raw, True), *cases])


@each_of_the_ten
async def test_a_list_takes_texts_and_nulls(database: Database, name: str) -> None:
    raw = raw_of(name)
    lists: list[tuple[Any, bool]] = [
        ([], True),
        (["a", ""], True),
        ([None, "a"], True),
        ([5], False),
        (["a", []], False),
    ]
    cases = [
        (f"{path}: {items}", changed(raw, path, items), fine)
        for path, (text, _) in all_fields(name).items()
        if text == "[String]"
        for items, fine in lists
    ]
    await check(database, name, [("complete", raw, True), *cases])


@each_of_the_ten
async def test_other_applications_may_keep_their_own_fields_and_their_own_kind_of_id(
    database: Database, name: str
) -> None:
    extra = {"__v": 0, "legacy": {"$odd": [1]}, "searchTerms2": 5}
    await check(database, name, [("unknown fields", raw_of(name) | extra, True)])
    for key in ("their own", 5, {"a": 1}):
        await database.raw[name].insert_one(raw_of(name) | {"_id": key})
        await database.raw[name].delete_one({"_id": key})


async def test_a_sub_document_may_be_null_where_it_is_not_required(database: Database) -> None:
    users, plans = raw_of("users"), raw_of("plans")
    paths = ("notificationSettings", "notificationSettings.email", "notificationSettings.push")
    values: list[tuple[Any, bool]] = [
        (None, True),
        ({}, True),
        ({"digest": "weekly"}, True),
        ([], False),
        ("on", False),
    ]
    await check(database, "users", [(f"{p}: {v}", changed(users, p, v), fine) for p in paths for v, fine in values])
    await check(
        database, "plans", [(f"limits: {v}", changed(plans, "limits", v), False) for v in (None, {}, ..., [], 5)]
    )


async def test_updates_are_validated_by_the_same_rules(database: Database) -> None:
    raw = raw_of("projects")
    await database.raw.projects.insert_one(raw)
    for wrong in ({"$set": {"name": 5}}, {"$unset": {"userId": ""}}, {"$set": {"searchTerms.0": 5}}):
        with pytest.raises(WriteError):
            await database.raw.projects.update_one({"_id": raw["_id"]}, wrong)
        with pytest.raises(OperationFailure):
            await database.raw.projects.find_one_and_update({"_id": raw["_id"]}, wrong)
    await database.raw.projects.update_one({"_id": raw["_id"]}, {"$set": {"description": None, "x": 1}})


async def test_an_invalid_stored_document_can_still_be_changed(database: Database) -> None:
    """The level is `moderate`: what another application left there does not lock it."""
    raw = raw_of("projects") | {"storageSize": "many"}
    await database.raw.projects.insert_one(raw, bypass_document_validation=True)
    assert await database.projects.patch({"_id": raw["_id"]}, {"$set": {"name": "x"}}, deleted=True)


def mixed_fields(collection: Collection[Any]) -> set[str]:
    """Which may hold anything: no rule."""
    document = collection.document
    names = dict(zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True))
    return {names[attribute] for attribute, marks in extras(document).items() if marks.get("mixed")}


@pytest.mark.parametrize("collection", CATALOGUE, ids=lambda c: c.name)
def test_a_validator_names_every_field_but_the_id(collection: Collection[Any]) -> None:
    schema = validator(collection)["$jsonSchema"]
    fields = set(collection.document.__struct_encode_fields__) - {"_id"}
    mixed = mixed_fields(collection)
    assert schema["properties"].keys() == fields - mixed
    assert schema["title"] == collection.name
    assert "additionalProperties" not in schema
    assert not {"createdAt", "updatedAt", "_id"} & set(schema.get("required", ()))


@pytest.mark.parametrize("collection", CATALOGUE[10:], ids=lambda c: c.name)
async def test_private_collections_are_validated_by_their_structs(
    database: Database, collection: Collection[Any]
) -> None:
    raw = codec_of(collection.document).encode(complete(collection), NOW)
    await database.raw[collection.name].insert_one(raw)
    await database.raw[collection.name].delete_one({"_id": raw["_id"]})
    for field in set(raw) - {"_id"} - mixed_fields(collection):
        with pytest.raises(WriteError):
            await database.raw[collection.name].insert_one(raw | {field: Regex("x")})
