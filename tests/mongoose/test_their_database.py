"""A database that a Mongoose application made first: we move in, and leave everything of its as it was."""

from typing import Any

import pytest
from bson import ObjectId
from tests.mongoose.documents import COLLECTIONS, expected, seen, their_full, their_minimal
from tests.mongoose.peer import HERE, Application

from ximler import setup
from ximler.billing.seeds import SEEDS
from ximler.database import Database, seeding, sync
from ximler.schema import CATALOGUE, SPECIFIED

OURS = {c.name for c in CATALOGUE} - {c.name for c in SPECIFIED}


@pytest.fixture
async def lived_in(empty_app: Application) -> Application:
    """Indexes and documents of all ten models, one of which is not what the models say,
    and an index of its own."""
    for model in await empty_app.ask("describe"):
        await empty_app.ask("createIndexes", model=model["name"])
    for documents in (their_minimal(), their_full()):
        for model, document in documents.items():
            await empty_app.create(model, document)
    await empty_app.raw("payments", "insertOne", {"amount": "29", "theirs": True})
    await empty_app.raw("payments", "createIndex", {"amount": 1, "currency": 1})
    await empty_app.raw("theirs", "insertOne", {"any": "thing"})
    return empty_app


async def contents(database: Database, *names: str) -> dict[str, dict[Any, Any]]:
    return {name: {d["_id"]: d async for d in database.raw[name].find({})} for name in names}


async def indexes(database: Database) -> dict[str, dict[str, Any]]:
    names = set(await database.raw.list_collection_names()) - OURS
    return {name: {i["name"]: i async for i in await database.raw[name].list_indexes()} for name in names}


async def validation(database: Database) -> dict[str, tuple[bool, str | None, str | None]]:
    """By collection: whether it has a validator, and how strict it is."""
    found = {}
    async for collection in await database.raw.list_collections():
        options = collection.get("options", {})
        found[collection["name"]] = (
            bool(options.get("validator")),
            options.get("validationLevel"),
            options.get("validationAction"),
        )
    return found


async def test_initialising_leaves_documents_and_indexes_unchanged(
    lived_in: Application, empty_database: Database
) -> None:
    names = [c.name for c in SPECIFIED] + ["theirs"]
    documents, present = await contents(empty_database, *names), await indexes(empty_database)
    await setup.initialise(empty_database)
    after = await contents(empty_database, *names)
    for project in after["projects"].values():
        for added in ("searchTerms", "searchKeys"):  # by migrations
            project.pop(added, None)
    for name in names:
        assert {oid: after[name][oid] for oid in documents[name]} == documents[name]
        if name not in ("plans", "coupons"):  # where the specification's are planted
            assert len(after[name]) == len(documents[name])
    grown = await indexes(empty_database)
    for name, theirs in present.items():
        assert {index: grown[name][index] for index in theirs} == theirs


async def test_status_lists_the_differences_before_and_after(lived_in: Application, empty_database: Database) -> None:
    before = await setup.status(empty_database)
    additions = {(c.name, index.name) for c in SPECIFIED for index in c.indexes if index.ours}
    own = ("payments", "amount_1_currency_1")
    assert {(d.collection, d.name) for d in before if (d.what, d.state) == ("index", "missing")} == additions
    assert {d.collection for d in before if (d.what, d.state) == ("validator", "missing")} == {
        c.name for c in SPECIFIED
    }
    assert {d.collection for d in before if d.what == "collection"} == OURS
    assert [(d.collection, d.name) for d in before if d.state == "extra"] == [own]
    after = await setup.initialise(empty_database)
    assert [(d.collection, d.what, d.name, d.state) for d in after] == [(own[0], "index", own[1], "extra")]
    assert await setup.status(empty_database) == after


async def test_validators_warn_on_its_collections_and_are_strict_on_ours(
    lived_in: Application, empty_database: Database
) -> None:
    await setup.initialise(empty_database)
    found = await validation(empty_database)
    for collection in SPECIFIED:
        assert found[collection.name] == (True, "moderate", "warn")
    for name in OURS:
        assert found[name] == (True, "moderate", "error")
    assert found["theirs"] == (False, None, None)
    await lived_in.raw("payments", "insertOne", {"amount": "as before"})
    assert await empty_database.raw["payments"].count_documents({"amount": "as before"}) == 1


async def test_a_database_of_our_own_is_strict(database: Database) -> None:
    found = await validation(database)
    for collection in CATALOGUE:  # GridFS makes its own, in its own time
        assert found[collection.name] == (True, "moderate", "error"), collection.name


async def test_the_version_is_stamped_and_the_next_start_has_nothing_to_do(
    lived_in: Application, empty_database: Database
) -> None:
    assert not await sync.check_version(empty_database)
    await setup.initialise(empty_database)
    assert await sync.check_version(empty_database)
    stamp = await empty_database.raw["meta"].find_one({"_id": "schema"})
    assert stamp["createdHere"] is False
    await setup.initialise(empty_database)
    for collection in SPECIFIED:
        assert (await validation(empty_database))[collection.name][2] == "warn"


async def test_every_document_of_its_is_read_and_the_one_that_cannot_be_fails_no_list(
    lived_in: Application, empty_database: Database, models: dict[str, Any]
) -> None:
    await setup.initialise(empty_database)
    for model, collection in COLLECTIONS.items():
        fields = models[model]["fields"]
        theirs = {document["_id"]: document for document in await lived_in.raw(collection.name, "find", {})}
        read = await empty_database[collection].find({}, deleted=True)
        ours = {getattr(found, "object_id", None) or found.id: seen(fields, found) for found in read}
        unreadable = {oid for oid, document in theirs.items() if document.get("amount") == "29"}
        assert ours == {oid: expected(fields, d) for oid, d in theirs.items() if oid not in unreadable}
        assert len(unreadable) == (model == "Payment")


async def test_a_plan_and_a_coupon_of_its_own_are_not_overwritten(
    empty_app: Application, empty_database: Database
) -> None:
    plan = await empty_app.create("Plan", {**their_minimal()["Plan"], "id": "pro", "price": 19})
    coupon = await empty_app.create("Coupon", {**their_minimal()["Coupon"], "code": "WELCOME20", "active": False})
    await setup.initialise(empty_database)
    assert await seeding.insert(empty_database, SEEDS) == {"plans": ["free", "enterprise"], "coupons": ["STUDENT50"]}
    assert await empty_app.raw("plans", "findOne", {"id": "pro"}) == plan
    assert await empty_app.raw("coupons", "findOne", {"code": "WELCOME20"}) == coupon
    assert await empty_database.plans.count({}) == 3
    assert await empty_database.coupons.count({}) == 2


async def test_a_different_index_is_reported_and_rebuilt_only_on_request(
    empty_app: Application, empty_database: Database
) -> None:
    """The summary's own `email: 1` is not unique."""
    await empty_app.ask("script", text=(HERE / "indexes.mongosh.js").read_text())
    before = await indexes(empty_database)
    differences = await setup.initialise(empty_database)
    told = {(d.collection, d.name) for d in differences if (d.what, d.state) == ("index", "changed")}
    assert told == {("users", "email_1"), ("coupons", "code_1")}
    assert len(differences) == len(told)
    after = await indexes(empty_database)
    assert all(after[name][index] == found for name, made in before.items() for index, found in made.items())
    assert await setup.initialise(empty_database, repair=True) == []
    assert (await indexes(empty_database))["users"]["email_1"]["unique"] is True


async def test_a_unique_index_with_duplicates_is_reported_without_failing(
    empty_app: Application, empty_database: Database
) -> None:
    user = {**their_minimal()["User"], "email": "twice@example.org"}
    await empty_app.raw("users", "insertMany", [{"_id": ObjectId(), **user}, {"_id": ObjectId(), **user}])
    [difference] = await setup.initialise(empty_database)
    assert (difference.collection, difference.name, difference.state) == ("users", "email_1", "missing")
    assert await empty_database.users.count({"email": "twice@example.org"}) == 2
    await empty_app.raw("users", "deleteOne", {"email": "twice@example.org"})
    assert await setup.initialise(empty_database) == []
