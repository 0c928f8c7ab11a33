"""What a Mongoose application writes, by whichever of its ways,
passes our validators and is read by us in full."""

from datetime import timedelta
from typing import Any

import pytest
from bson import Binary, DatetimeMS, Decimal128, ObjectId, Regex
from tests.mongoose.documents import (
    COLLECTIONS,
    DAY,
    LATER,
    NESTED,
    at,
    expected,
    placed,
    refused,
    seen,
    their_full,
    their_minimal,
)
from tests.mongoose.peer import HERE, Application, MongooseError

from ximler import setup
from ximler.core.clock import EPOCH
from ximler.database import Database

Models = dict[str, dict[str, Any]]
WAYS = (
    "create", "insertMany", "save", "save without timestamps", "updateOne, upserting", "findOneAndUpdate, upserting",
    "bulkWrite", "bulkWrite, upserting", "the driver",
)  # fmt: skip


async def write(app: Application, way: str, model: str, document: dict[str, Any]) -> ObjectId:
    """Store the document, by this way of a Mongoose application; returns its id."""
    found = {"_id": ObjectId()}
    insert = {"insertOne": {"document": {**found, **document}}}
    upsert = {"updateOne": {"filter": found, "update": {"$set": document}, "upsert": True}}
    match way:
        case "create":
            await app.create(model, {**found, **document})
        case "insertMany":
            await app.call(model, "insertMany", [{**found, **document}])
        case "save":
            await app.ask("save", model=model, document={**found, **document})
        case "save without timestamps":
            await app.ask("save", model=model, document={**found, **document}, options={"timestamps": False})
        case "updateOne, upserting":
            await app.call(model, "updateOne", found, {"$set": document}, {"upsert": True})
        case "findOneAndUpdate, upserting":
            await app.call(model, "findOneAndUpdate", found, {"$set": document}, {"upsert": True})
        case "bulkWrite":
            await app.call(model, "bulkWrite", [insert])
        case "bulkWrite, upserting":
            await app.call(model, "bulkWrite", [upsert])
        case "the driver":
            await app.raw(COLLECTIONS[model].name, "insertMany", [{**found, **document}])
    return found["_id"]


async def assert_read(database: Database, models: Models, model: str, oid: ObjectId, document: dict[str, Any]) -> None:
    """Get, find and page see the document's values, and the models' defaults where it has none."""
    fields, collection = models[model]["fields"], database[COLLECTIONS[model]]
    one = await collection.get(oid, deleted=True)
    assert seen(fields, one) == expected(fields, document)
    assert await collection.find({"_id": oid}, deleted=True) == [one]
    assert (await collection.page({"_id": oid}, deleted=True)).items == [one]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", ["full", "minimal"])
async def test_a_document_is_accepted_and_read_whichever_way_it_was_written(
    size: str, way: str, app: Application, database: Database, models: Models
) -> None:
    for model, document in (their_full() if size == "full" else their_minimal()).items():
        await assert_read(database, models, model, await write(app, way, model, document), document)


async def test_nulls_wherever_mongoose_takes_them_are_accepted_and_read_as_the_default(
    app: Application, database: Database, models: Models
) -> None:
    for model, minimal in their_minimal().items():
        nulls = {field["path"]: None for field in models[model]["fields"] if not field["required"]}
        inserted = await app.create(model, {**their_minimal()[model], **placed(nulls)})
        assert [path for path in nulls if at(inserted, path) is not None] == []
        await assert_read(database, models, model, inserted["_id"], inserted)
        updated = (await app.create(model, minimal))["_id"]
        await app.call(model, "updateOne", {"_id": updated}, {"$set": nulls})
        await assert_read(database, models, model, updated, minimal)


@pytest.mark.parametrize("path", ["notificationSettings", "notificationSettings.email"])
async def test_a_null_in_place_of_nested_fields_is_accepted_and_read_as_their_defaults(
    path: str, app: Application, database: Database, models: Models
) -> None:
    minimal = their_minimal()["User"]
    oid = (await app.create("User", minimal))["_id"]
    await app.call("User", "updateOne", {"_id": oid}, {"$set": {path: None}})
    await assert_read(database, models, "User", oid, minimal)


async def test_a_document_without_timestamps_takes_them_from_its_id(app: Application, database: Database) -> None:
    for model, document in their_minimal().items():
        oid = ObjectId.from_datetime(DAY)
        await app.raw(COLLECTIONS[model].name, "insertOne", {"_id": oid, **document})
        found = await database[COLLECTIONS[model]].get(oid)
        assert found.created_at == oid.generation_time
        assert getattr(found, "updated_at", found.created_at) == found.created_at


async def test_an_empty_object_reads_the_same_left_out_or_kept(app: Application, database: Database) -> None:
    """`save` leaves empty objects out (`minimize`), `updateOne` keeps them."""
    left_out = (await app.create("Project", {**their_minimal()["Project"], "settings": {}, "canvasData": {}}))["_id"]
    kept = (await app.create("Project", their_minimal()["Project"]))["_id"]
    await app.call("Project", "updateOne", {"_id": kept}, {"$set": {"settings": {}, "canvasData": {}}})
    stored = [await database.projects.raw.find_one({"_id": oid}) for oid in (left_out, kept)]
    assert ["settings" in document for document in stored] == [False, True]
    read = [await database.projects.get(oid) for oid in (left_out, kept)]
    assert [(project.settings, project.canvas_data) for project in read] == [({}, {}), ({}, {})]


MIXED = {
    "text": "dark",
    "empty text": "",
    "number": 12,
    "fraction": 0.5,
    "zero": 0,
    "false": False,
    "array": [1, "two", [None, {"three": 3.5}], 5_000_000_000.0],
    "empty array": [],
    "object": NESTED,
    "date": DAY,
    "ObjectId": ObjectId("65e000000000000000000001"),
    "bytes": b"\x00\xff",
    "UUID": Binary(b"0123456789abcdef", 4),
    "Decimal128": Decimal128("1.10"),
    "regular expression": Regex("^a", "i"),
}


async def test_a_mixed_field_keeps_any_value(app: Application, database: Database) -> None:
    for kind, value in MIXED.items():
        given = {"settings": value, "canvasData": {"in": value}}
        project = await app.create("Project", {**their_minimal()["Project"], **given})
        found = await database.projects.get(project["_id"])
        assert (found.settings, found.canvas_data) == (value, {"in": value}), kind


NUMBERS = {
    # what was written: what a count reads
    5_000_000_000: 5_000_000_000,
    2**53 - 1: 2**53 - 1,
    -1: -1,
    2.5: 2,
    -0.5: 0,
    float("inf"): 2**63 - 1,
    float("-inf"): -(2**63),
    1e300: 2**63 - 1,
}


async def test_a_count_of_any_number_type_is_read(app: Application, database: Database) -> None:
    """Mongoose's Number takes fractions and Infinity; a count of ours is cut to a whole number of 64 bits."""
    for number, count in NUMBERS.items():
        coupon = await app.create("Coupon", {**their_minimal()["Coupon"], "maxUses": number, "usedCount": number})
        found = await database.coupons.get(coupon["_id"])
        assert (found.max_uses, found.used_count) == (count, count)


async def test_an_amount_is_read_as_it_is(app: Application, database: Database) -> None:
    for amount in (5_000_000_000, 29.99, 0.1 + 0.2, -0.0, float("inf"), 1e300):
        payment = await app.create("Payment", {**their_minimal()["Payment"], "amount": amount})
        assert (await database.payments.get(payment["_id"])).amount == amount


@pytest.mark.parametrize("moment", [8_640_000_000_000_000, -8_640_000_000_000_000])
async def test_a_date_that_python_does_not_know_is_read_as_the_nearest_it_knows(
    moment: int, app: Application, database: Database
) -> None:
    """JavaScript counts to the year 275,760: "never ends". One such document must not fail a list."""
    user = ObjectId()
    for end in (DatetimeMS(moment), LATER):
        await app.create("Subscription", {**their_minimal()["Subscription"], "userId": user, "endDate": end})
    endless, ending = await database.subscriptions.find({"userId": user}, sort=[("_id", 1)])
    assert ending.end_date == LATER
    assert endless.end_date.year == (9999 if moment > 0 else 1)
    nested = await app.create("Project", {**their_minimal()["Project"], "settings": {"until": DatetimeMS(moment)}})
    assert (await database.projects.get(nested["_id"])).settings["until"] == endless.end_date


async def test_unknown_fields_pass_and_do_not_disturb_reading(
    app: Application, database: Database, models: Models
) -> None:
    for model, document in their_minimal().items():
        strange = {**document, "theirs": {"deep": [1, {"x": None}]}, "objectId": "a name of ours", "created_at": 1}
        saved = await app.ask("save", model=model, document=strange, strict=False)
        assert saved["theirs"] == strange["theirs"]
        await assert_read(database, models, model, saved["_id"], document)


async def test_the_specifications_plans_and_coupons_can_be_inserted_as_printed(
    empty_app: Application, empty_database: Database, models: Models
) -> None:

    await setup.initialise(empty_database)
    for collection in ("plans", "coupons"):
        await empty_database.raw[collection].delete_many({})  # the seeds, which are the same
    results = await empty_app.ask("script", text=(HERE / "sample-data.mongosh.js").read_text())
    assert [(r["collection"], len(r["argument"]), r["code"]) for r in results] == [
        ("plans", 3, None),
        ("coupons", 2, None),
    ]
    for model, result in zip(("Plan", "Coupon"), results, strict=True):
        for document in result["argument"]:
            await assert_read(empty_database, models, model, document["_id"], document)


async def test_the_seeds_are_the_specifications_plans_and_coupons(
    app: Application, database: Database, empty_app: Application, empty_database: Database, models: Models
) -> None:
    printed = await empty_app.ask("script", text=(HERE / "sample-data.mongosh.js").read_text())
    for model, key, result in zip(("Plan", "Coupon"), ("id", "code"), printed, strict=True):
        fields = models[model]["fields"]
        ours = {getattr(found, key): seen(fields, found) for found in await database[COLLECTIONS[model]].find({})}
        theirs = {document[key]: expected(fields, document) for document in result["argument"]}
        for moment in ("validFrom", "validUntil") if model == "Coupon" else ():
            for values in (*ours.values(), *theirs.values()):
                values[moment] = values[moment] > EPOCH
        assert ours == theirs
    for coupon in await database.coupons.find({}):
        assert coupon.valid_until - coupon.valid_from == timedelta(days=365)


WRONG = [
    ("User", {"email": 7}),
    ("User", {"emailVerified": "yes"}),
    ("User", {"notificationSettings": {"email": {"billingAlerts": "no"}}}),
    ("Plan", {"interval": "WEEK"}),
    ("Plan", {"limits": {"projects": 3, "storage": "1"}}),
    ("Plan", {"features": [1]}),
    ("Subscription", {"userId": "65e000000000000000000001"}),
    ("Payment", {"amount": "29"}),
    ("Usage", {"periodStart": "2026-01-01"}),
    ("Project", {"name": None}),
    ("ApiKey", {"permissions": "read"}),
    ("Notification", {"type": None}),
    ("Coupon", {"validUntil": 5}),
    ("AuditLog", {"action": None}),
]


async def test_the_server_rejects_writes_that_bypass_the_model(app: Application, database: Database) -> None:
    for model, changes in WRONG:
        with pytest.raises(MongooseError) as refusal:
            await app.raw(COLLECTIONS[model].name, "insertOne", {**their_minimal()[model], **changes})
        assert refusal.value.code == 121, changes
    assert await refused(database) == []


async def test_each_field_that_the_models_require_is_required_by_the_server(
    app: Application, database: Database, models: Models
) -> None:
    for model, described in models.items():
        required = [field["path"] for field in described["fields"] if field["required"]]
        for missing in required:
            document = placed({path: at(their_minimal()[model], path) for path in required if path != missing})
            with pytest.raises(MongooseError) as refusal:
                await app.raw(COLLECTIONS[model].name, "insertOne", document)
            assert refusal.value.code == 121, (model, missing)
