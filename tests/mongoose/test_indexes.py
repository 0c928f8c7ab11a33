"""Every index that a Mongoose application declares is in place, under the name it would give."""

import re
from typing import Any

import pytest
from tests.mongoose.peer import HERE, Application

from ximler import setup
from ximler.database import Database
from ximler.schema import SPECIFIED

# Declared twice by the models: by `unique: true`, and as a plain index, which no server makes beside the
# first.
DOUBLE = {("User", "email"), ("Plan", "id"), ("Coupon", "code")}
KEY_CONFLICT = 86
PRINTED = re.compile(r"db\.(\w+)\.createIndex\(\{ (.+) \}\);")


def key_of(found: dict[str, Any]) -> dict[str, Any]:
    """An index's key as it was declared (MongoDB keeps a text index's fields in `weights`)."""
    return dict.fromkeys(found["weights"], "text") if "weights" in found else dict(found["key"])


def name_of(key: dict[str, Any]) -> str:
    return "_".join(f"{field}_{direction}" for field, direction in key.items())


def printed() -> list[tuple[str, dict[str, Any]]]:
    """(collection, key) of the specification's summary."""
    found = []
    for collection, fields in PRINTED.findall((HERE / "indexes.mongosh.js").read_text()):
        pairs = [pair.split(": ") for pair in fields.split(", ")]
        found.append((collection, {name: "text" if way == '"text"' else int(way) for name, way in pairs}))
    return found


async def indexes(database: Database, collection: str) -> dict[str, dict[str, Any]]:
    return {found["name"]: found async for found in await database.raw[collection].list_indexes()}


async def refused(app: Application) -> list[tuple[str, list[Any], int]]:
    """What `createIndexes` of the ten models could not make: (model, key, code)."""
    return [
        (model["name"], result["key"], result["code"])
        for model in await app.ask("describe")
        for result in await app.ask("createIndexes", model=model["name"])
        if result["code"] is not None
    ]


async def test_each_index_of_the_models_is_there_under_the_name_that_mongoose_gives(
    app: Application, database: Database
) -> None:
    for model in await app.ask("describe"):
        present = await indexes(database, model["collection"])
        for declared in model["indexes"]:
            key = dict(declared["key"])
            assert key_of(present[name_of(key)]) == key
            if declared["unique"]:
                assert present[name_of(key)]["unique"] is True


async def test_each_index_of_the_specifications_summary_is_there(database: Database) -> None:
    summary = printed()
    assert len(summary) == 36
    for collection, key in summary:
        assert key_of((await indexes(database, collection))[name_of(key)]) == key


async def test_the_summary_runs_as_printed_but_for_the_two_fields_that_are_unique(
    app: Application, database: Database
) -> None:
    text = (HERE / "indexes.mongosh.js").read_text()
    results = await app.ask("script", text=text)
    assert len(results) == len(printed())
    assert [(r["collection"], r["argument"], r["code"]) for r in results if r["code"] is not None] == [
        ("users", {"email": 1}, KEY_CONFLICT),
        ("coupons", {"code": 1}, KEY_CONFLICT),
    ]
    assert await setup.status(database) == []


async def test_create_indexes_fails_on_the_double_declarations_only_as_it_does_without_us(
    app: Application, database: Database, empty_app: Application, empty_database: Database
) -> None:
    on_ours, on_an_empty_one = await refused(app), await refused(empty_app)
    assert {(model, key[0][0]) for model, key, _ in on_ours} == DOUBLE
    assert {code for _, _, code in on_ours} == {KEY_CONFLICT}
    assert len(on_ours) == len(DOUBLE)
    assert on_ours == on_an_empty_one
    assert await setup.status(database) == []


async def test_an_application_starts_on_our_database_as_on_an_empty_one(
    app: Application, database: Database, empty_app: Application
) -> None:
    """With Mongoose's own defaults, autoCreate and autoIndex."""
    started = await app.ask("start")
    assert started == await empty_app.ask("start")
    assert {model: code for model, code in started.items() if code} == dict.fromkeys(
        (model for model, _ in DOUBLE), KEY_CONFLICT
    )
    assert await setup.status(database) == []


async def test_sync_indexes_drops_our_additions_only_and_status_and_initialise_know_it(
    empty_app: Application, empty_database: Database
) -> None:
    database = empty_database
    assert await setup.initialise(database) == []
    before = {c.name: await indexes(database, c.name) for c in SPECIFIED}
    additions = {(c.name, index.name) for c in SPECIFIED for index in c.indexes if index.ours}

    dropped = set()
    for model in await empty_app.ask("describe"):
        outcome = await empty_app.ask("syncIndexes", model=model["name"])
        dropped |= {(model["collection"], name) for name in outcome["dropped"]}
        assert {r["code"] for r in outcome["results"]} <= {None, KEY_CONFLICT}

    assert dropped == additions
    lost = await setup.status(database)
    assert {(found.collection, found.name) for found in lost} == additions
    assert {(found.what, found.state, found.remedy) for found in lost} == {("index", "missing", "ximler db init")}
    assert await setup.initialise(database) == []
    assert {c.name: await indexes(database, c.name) for c in SPECIFIED} == before


@pytest.mark.parametrize("first", ["mongoose", "ximler"])
async def test_both_applications_create_the_same_indexes_in_either_order(
    first: str, empty_app: Application, empty_database: Database, database: Database
) -> None:
    if first == "mongoose":
        await refused(empty_app)
        await setup.initialise(empty_database)
    else:
        await setup.initialise(empty_database)
        await refused(empty_app)
    for collection in SPECIFIED:
        theirs = await indexes(empty_database, collection.name)
        ours = await indexes(database, collection.name)
        for found in theirs.values():
            found.pop("background", None)  # Mongoose asks for it; servers since 4.2 keep the word and ignore it
        assert theirs == ours


def test_our_additions_carry_no_invariant() -> None:
    """A `syncIndexes` may drop them at any time."""
    assert not [i for c in SPECIFIED for i in c.indexes if i.ours and (i.unique or i.ttl_seconds is not None)]
