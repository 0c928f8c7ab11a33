"""What Ximler writes is a valid document to a Mongoose application, with the same values,
and to our own validators."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.deleting import restore, soft_delete
from tests.mongoose.documents import (
    COLLECTIONS,
    DAY,
    LATER,
    MODELS,
    at,
    our_full,
    our_minimal,
    refused,
    seen,
    their_full,
    their_minimal,
)
from tests.mongoose.peer import Application

from ximler.database import Database
from ximler.schema.document import Document
from ximler.schema.plan import Plan

Models = dict[str, dict[str, Any]]
SOFTLY_DELETED = [model for model, collection in COLLECTIONS.items() if collection.soft_delete]


def id_of(document: Document) -> ObjectId:
    return document.object_id if isinstance(document, Plan) else document.id  # type: ignore[attr-defined]  # all have one


async def assert_valid_and_equal(
    app: Application, database: Database, models: Models, model: str, oid: ObjectId
) -> None:
    """Mongoose's validation has nothing to say, and hydrates what we read: values, timestamps and id."""
    ours = await database[COLLECTIONS[model]].get(oid, deleted=True)
    [examined] = await app.ask("examine", model=model, where={"_id": oid})
    assert examined["problem"] is None
    hydrated = examined["document"]
    assert hydrated["_id"] == oid
    for path, value in seen(models[model]["fields"], ours).items():
        assert at(hydrated, path) == value, path
    assert hydrated["createdAt"] == ours.created_at
    if "updatedAt" in COLLECTIONS[model].timestamps:
        assert hydrated["updatedAt"] == ours.updated_at
    else:
        assert "updatedAt" not in hydrated


@pytest.mark.parametrize("made", [our_minimal, our_full])
async def test_our_inserts_are_valid_and_equal_to_mongoose(
    made: Any, app: Application, database: Database, models: Models
) -> None:
    for model, document in made().items():
        stored = await database[COLLECTIONS[model]].insert(document)
        await assert_valid_and_equal(app, database, models, model, id_of(stored))
    assert await refused(database) == []


async def test_our_bulk_inserts_are_valid_and_equal_to_mongoose(
    app: Application, database: Database, models: Models
) -> None:
    full, minimal = our_full(), our_minimal()
    for model in MODELS:
        await database[COLLECTIONS[model]].insert_many([full[model], minimal[model]])
        for document in (full[model], minimal[model]):
            await assert_valid_and_equal(app, database, models, model, id_of(document))
    assert await refused(database) == []


# For each model, an update that touches every kind of field it has.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "User": {
        "$set": {
            "name": " Ada L. ",
            "avatar": None,
            "lastLogin": LATER,
            "notificationSettings.email.billingAlerts": False,
            "notificationSettings.push.enabled": True,
        }
    },
    "Plan": {
        "$set": {"limits.storage": 7.5, "stripePriceId": None},
        "$push": {"features": "last"},
        "$inc": {"price": 1},
    },
    "Subscription": {"$set": {"status": "CANCELLED", "endDate": LATER, "autoRenew": None}},
    "Payment": {"$set": {"status": "PAID", "paidAt": DAY, "invoiceUrl": None}, "$inc": {"amount": -0.01}},
    "Usage": {"$inc": {"amount": 5_000_000_000}, "$set": {"metadata.seen.at": DAY}},
    "Project": {"$set": {"settings": {"theme": "light"}, "canvasData.layers": []}, "$inc": {"storageSize": 2**40}},
    "ApiKey": {"$set": {"lastUsed": LATER, "revokedAt": None}, "$addToSet": {"permissions": "admin"}},
    "Notification": {"$set": {"readAt": LATER, "metadata": None}},
    "Coupon": {
        "$inc": {"usedCount": 1},
        "$set": {"maxUses": None, "code": "spring"},
        "$pull": {"applicablePlans": "pro"},
    },
    "AuditLog": {"$set": {"userId": None, "metadata.note": "erased"}},
}


@pytest.mark.parametrize("path", ["patch", "patch_many", "find_and_patch", "upsert", "upsert, inserting"])
async def test_our_updates_are_valid_and_equal_to_mongoose(
    path: str, app: Application, database: Database, models: Models
) -> None:
    for model, update in CHANGES.items():
        collection, document = database[COLLECTIONS[model]], our_full()[model]
        if COLLECTIONS[model].soft_delete:
            document.deleted_at = None  # type: ignore[attr-defined]  # it has one
        where = {"_id": id_of(document)}
        if path == "upsert, inserting":
            assert await collection.upsert(where, update, fresh=document)
        else:
            await collection.insert(document)
        match path:
            case "patch":
                assert await collection.patch(where, update)
            case "patch_many":
                assert await collection.patch_many(where, update) == 1
            case "find_and_patch":
                assert await collection.find_and_patch(where, update) is not None
            case "upsert":
                assert not await collection.upsert(where, update, fresh=document)
        await assert_valid_and_equal(app, database, models, model, id_of(document))
    assert await refused(database) == []


@pytest.mark.parametrize("model", SOFTLY_DELETED)
async def test_our_soft_deletions_are_valid_and_equal_to_mongoose(
    model: str, app: Application, database: Database, models: Models
) -> None:
    collection, document = database[COLLECTIONS[model]], our_minimal()[model]
    await collection.insert(document)
    assert await soft_delete(collection, {"_id": id_of(document)})
    await assert_valid_and_equal(app, database, models, model, id_of(document))
    assert (await app.call(model, "findOne", {"_id": id_of(document)}))["deletedAt"] is not None
    assert await restore(collection, {"_id": id_of(document)})
    await assert_valid_and_equal(app, database, models, model, id_of(document))
    assert await app.call(model, "countDocuments", {"_id": id_of(document), "deletedAt": None}) == 1


async def test_mongoose_can_change_and_save_our_documents(app: Application, database: Database) -> None:
    """Every value of theirs over every value of ours, arrays included:
    our documents have no `__v`, which it counts in."""
    for model, theirs in their_full().items():
        document = our_full()[model]
        await database[COLLECTIONS[model]].insert(document)
        saved = await app.ask("change", model=model, where={"_id": id_of(document)}, changes=theirs)
        raw = await app.raw(COLLECTIONS[model].name, "findOne", {"_id": id_of(document)})
        assert {field: saved[field] for field in theirs} == {field: raw[field] for field in theirs} == theirs
    assert await refused(database) == []


ARRAY_CALLS = {
    "push": (["push", "added"], ["one", "two", "added"]),
    "pull": (["pull", "one"], ["two"]),
    "splice": (["splice", 0, 1, "other"], ["other", "two"]),
    "set": (["set", 1, "second"], ["one", "second"]),
    "shift": (["shift"], ["two"]),
}


@pytest.mark.parametrize("call", ARRAY_CALLS)
async def test_mongoose_can_update_arrays_of_our_documents(call: str, app: Application, database: Database) -> None:
    plan = our_full()["Plan"]
    await database.plans.insert(plan)
    method, after = ARRAY_CALLS[call]
    for _ in range(2):  # the second time it has a version of Mongoose's own
        await database.plans.patch({"_id": plan.object_id}, {"$set": {"features": ["one", "two"]}})
        await app.ask("change", model="Plan", where={"_id": plan.object_id}, calls=[["features", *method]])
        assert (await database.plans.get(plan.object_id)).features == after


async def test_mongoose_finds_ours_by_every_type_of_field(app: Application, database: Database) -> None:
    user, payment, plan = our_full()["User"], our_full()["Payment"], our_full()["Plan"]
    for collection, document in ((database.users, user), (database.payments, payment), (database.plans, plan)):
        await collection.insert(document)
    for model, where in (
        ("User", {"email": user.email.upper(), "emailVerified": True}),
        (
            "User",
            {"notificationSettings.email.billingAlerts": False, "createdAt": {"$lte": DAY + timedelta(seconds=1)}},
        ),
        ("Payment", {"userId": str(payment.user_id), "amount": 5_000_000_000}),
        ("Payment", {"paidAt": DAY, "status": {"$in": ["REFUNDED"]}}),
        ("Plan", {"id": plan.id, "limits.apiCalls": {"$gt": 4_999_999_999}, "features": "two"}),
    ):
        assert await app.call(model, "countDocuments", where) == 1, where


SPACES = "\t\n\v\f\r \u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"
TEXTS = ["ÄÖÜ@Example.ORG", "İstanbul", "ΣΊΣΥΦΟΣ", "straße", "ǅ", "ﬁn", "ĳ", "Ⅷ", "K", "ꭰ", "𐐀", "ŉ"]


async def test_both_applications_set_text_to_the_same(app: Application, database: Database) -> None:
    """Trimmed, lowercased and uppercased alike, or one address could have two accounts."""
    for text in (f"{SPACES}{text}{SPACES}" for text in TEXTS):
        user, coupon = our_minimal()["User"], our_minimal()["Coupon"]
        user.name = user.email = coupon.code = text
        await database.users.insert(user)
        await database.coupons.insert(coupon)
        ours = (
            await app.raw("users", "findOneAndDelete", {}),
            await app.raw("coupons", "findOneAndDelete", {"value": 4.5}),
        )
        theirs = (
            await app.create("User", {**their_minimal()["User"], "name": text, "email": text}),
            await app.create("Coupon", {**their_minimal()["Coupon"], "code": text}),
        )
        assert (ours[0]["name"], ours[0]["email"], ours[1]["code"]) == (
            theirs[0]["name"],
            theirs[0]["email"],
            theirs[1]["code"],
        )
        await app.raw("users", "deleteMany", {})
        await app.raw("coupons", "deleteMany", {"value": 4.5})
