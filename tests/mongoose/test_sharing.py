"""Two applications on one document: neither loses what only the other knows,
or what the other writes meanwhile."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.deleting import restore, soft_delete
from tests.mongoose.documents import COLLECTIONS, DAY, our_minimal, refused, their_full, their_minimal
from tests.mongoose.peer import Application

from ximler.core.errors import Conflict
from ximler.database import Database
from ximler.database.repair import remove_nulls
from ximler.schema.project import Project
from ximler.schema.user import EmailNotifications, NotificationSettings

# An update of ours of a text field that each model has.
TEXT = {
    "User": "password", "Plan": "name", "Subscription": "planId", "Payment": "description", "Usage": "metadata.note",
    "Project": "description", "ApiKey": "name", "Notification": "title", "Coupon": "name", "AuditLog": "resourceId",
}  # fmt: skip
THEIRS = {"theirs": {"deep": [1, {"kept": True}]}, "alsoTheirs": None}


async def theirs(app: Application, model: str, document: dict[str, Any]) -> dict[str, Any]:
    """Stored by Mongoose with fields that we do not know, at several depths; as it is in the database."""
    strange = {**document, **THEIRS, "createdAt": DAY, "updatedAt": DAY}
    for name, value in document.items():
        if isinstance(value, dict):
            strange[name] = {**value, "theirs": 1}
    saved = await app.ask("save", model=model, document=strange, strict=False, options={"timestamps": False})
    return await app.raw(COLLECTIONS[model].name, "findOne", {"_id": saved["_id"]})


async def update(database: Database, path: str, model: str, before: dict[str, Any]) -> None:
    collection, where = database[COLLECTIONS[model]], {"_id": before["_id"]}
    change = {"$set": {TEXT[model]: "ours"}}
    match path:
        case "patch":
            assert await collection.patch(where, change)
        case "patch_many":
            assert await collection.patch_many(where, change) == 1
        case "upsert":
            assert not await collection.upsert(where, change, fresh=our_minimal()[model])
        case "find_and_patch":
            assert await collection.find_and_patch(where, change) is not None


@pytest.mark.parametrize("path", ["patch", "patch_many", "upsert", "find_and_patch"])
async def test_our_update_changes_its_field_and_the_time_and_nothing_else(
    path: str, app: Application, database: Database
) -> None:
    for model, full in their_full().items():
        before = await theirs(app, model, {name: value for name, value in full.items() if name != "deletedAt"})
        assert before["__v"] == 0
        await update(database, path, model, before)
        after = await app.raw(COLLECTIONS[model].name, "findOne", {"_id": before["_id"]})
        field, _, inner = TEXT[model].partition(".")
        expected = {**before, field: {**before[field], inner: "ours"} if inner else "ours"}
        if "updatedAt" in COLLECTIONS[model].timestamps:
            assert after["updatedAt"] > DAY
            expected["updatedAt"] = after["updatedAt"]
        assert after == expected, model


@pytest.mark.parametrize("model", ["User", "Project"])
async def test_deleting_softly_and_restoring_leaves_everything_else(
    model: str, app: Application, database: Database
) -> None:
    before = await theirs(app, model, their_minimal()[model])
    collection, where = database[COLLECTIONS[model]], {"_id": before["_id"]}
    assert await soft_delete(collection, where)
    deleted = await app.raw(COLLECTIONS[model].name, "findOne", where)
    assert abs(deleted["deletedAt"] - deleted["updatedAt"]) < timedelta(seconds=5)
    assert deleted["updatedAt"] > DAY
    assert await restore(collection, where)
    after = await app.raw(COLLECTIONS[model].name, "findOne", where)
    assert after == {**before, "updatedAt": after["updatedAt"]}
    assert after["updatedAt"] >= deleted["updatedAt"]


@pytest.mark.parametrize("path", ["patch", "patch_many", "upsert", "find_and_patch"])
async def test_setting_a_group_of_fields_whole_keeps_those_that_only_they_know(
    path: str, app: Application, database: Database
) -> None:
    user = their_minimal()["User"] | {
        "notificationSettings": {"sms": {"enabled": True}, "email": {"digest": "weekly"}, "theirs": 1}
    }
    oid = (await app.ask("save", model="User", document=user, strict=False))["_id"]
    ours = NotificationSettings(email=EmailNotifications(billing_alerts=False))
    change, where = {"$set": {"notificationSettings": ours}}, {"_id": oid}
    match path:
        case "upsert":
            await database.users.upsert(where, change, fresh=our_minimal()["User"])
        case _:
            await getattr(database.users, path)(where, change)
    stored = (await app.raw("users", "findOne", where))["notificationSettings"]
    assert (stored["sms"], stored["theirs"], stored["email"]["digest"]) == ({"enabled": True}, 1, "weekly")
    assert (await database.users.get(oid)).notification_settings == ours


NO_ALERTS = {"$set": {"notificationSettings.email.billingAlerts": False}}
ALERTS_OFF = NotificationSettings(email=EmailNotifications(billing_alerts=False))
# Updates of ours that go through, or count on from, what they have set to null:
# it reads as the default, so it must behave so.
THROUGH_NULL: list[tuple[str, str, dict[str, Any], str, Any]] = [
    ("User", "notificationSettings", NO_ALERTS, "notification_settings", ALERTS_OFF),
    ("User", "notificationSettings.email", NO_ALERTS, "notification_settings", ALERTS_OFF),
    (
        "User",
        "notificationSettings",
        {"$set": {"notificationSettings": ALERTS_OFF}},
        "notification_settings",
        ALERTS_OFF,
    ),
    ("Plan", "features", {"$push": {"features": "new"}}, "features", ["new"]),
    ("Plan", "features", {"$addToSet": {"features": "new"}}, "features", ["new"]),
    ("Plan", "features", {"$pull": {"features": "new"}}, "features", []),
    ("Project", "settings", {"$set": {"settings.grid.size": 8}}, "settings", {"grid": {"size": 8}}),
    ("Project", "canvasData", {"$push": {"canvasData.layers": 1}}, "canvas_data", {"layers": [1]}),
    ("Project", "storageSize", {"$inc": {"storageSize": 3}}, "storage_size", 3),
    ("Coupon", "usedCount", {"$inc": {"usedCount": 1}}, "used_count", 1),
    ("Usage", "metadata", {"$set": {"metadata.a": None}, "$inc": {"metadata.n": 2}}, "metadata", {"a": None, "n": 2}),
]


async def test_a_null_of_theirs_is_a_conflict_until_it_is_repaired(app: Application, database: Database) -> None:
    made = []
    for model, null, change, _, _ in THROUGH_NULL:
        collection = database[COLLECTIONS[model]]
        oid = (await app.create(model, their_minimal()[model]))["_id"]
        await app.call(model, "updateOne", {"_id": oid}, {"$set": {null: None}})
        with pytest.raises(Conflict, match="ximler db repair"):
            await collection.patch({"_id": oid}, change)
        made.append(oid)
    found = await remove_nulls(database, dry_run=True)
    assert found["plans.features"] == 3
    assert found == await remove_nulls(database)
    assert await remove_nulls(database) == {}
    for oid, (model, null, change, attribute, value) in zip(made, THROUGH_NULL, strict=True):
        assert await database[COLLECTIONS[model]].patch({"_id": oid}, change)
        assert getattr(await database[COLLECTIONS[model]].get(oid), attribute) == value, (null, change)
    assert await refused(database) == []


async def test_a_value_of_theirs_that_cannot_take_a_change_is_a_conflict_and_stays(
    app: Application, database: Database
) -> None:
    project = (await app.create("Project", {**their_minimal()["Project"], "settings": "dark"}))["_id"]
    for change in ({"$set": {"settings.theme": "light"}}, {"$inc": {"settings": 1}}, {"$push": {"settings": 1}}):
        with pytest.raises(Conflict):
            await database.projects.patch({"_id": project}, change)
    assert (await database.projects.get(project)).settings == "dark"


async def test_a_time_of_theirs_is_kept_and_ours_moves_on(app: Application, database: Database) -> None:
    user = await app.create("User", their_minimal()["User"])
    database.clock.offset_ms += 5000
    await database.users.patch({"_id": user["_id"]}, {"$set": {"avatar": "ours"}})
    patched = await app.call("User", "findById", user["_id"])
    assert patched["createdAt"] == user["createdAt"]
    assert patched["updatedAt"] - user["updatedAt"] > timedelta(seconds=4)
    database.clock.offset_ms -= 5000
    changed = await app.ask("change", model="User", where={"_id": user["_id"]}, changes={"avatar": "theirs"})
    ours = await database.users.get(user["_id"])
    assert (ours.created_at, ours.updated_at, ours.avatar) == (user["createdAt"], changed["updatedAt"], "theirs")


async def test_writes_from_both_sides_to_different_fields_lose_nothing(app: Application, database: Database) -> None:
    """Mongoose reads, changes and saves; we patch. Each save sends only what it changed."""
    user = our_minimal()["User"]
    await database.users.insert(user)
    where, rounds = {"_id": user.id}, 40

    async def ours(number: int) -> None:
        settings = {"notificationSettings.email.billingAlerts": number % 2 == 0, "stripeCustomerId": f"cus_{number}"}
        assert await database.users.patch(where, {"$set": settings})

    async def saving(number: int) -> None:
        changes = {"avatar": f"a{number}", "notificationSettings.push.enabled": number % 2 == 0}
        await app.ask("change", model="User", where=where, changes=changes)

    async def updating(number: int) -> None:
        await app.call("User", "updateOne", where, {"$set": {"name": f"n{number}"}})

    async def one_after_another(write: Any) -> None:
        for number in range(rounds):
            await write(number)

    await asyncio.gather(*(one_after_another(write) for write in (ours, saving, updating)))
    last = rounds - 1
    found = await database.users.get(user.id)
    assert (found.stripe_customer_id, found.avatar, found.name) == (f"cus_{last}", f"a{last}", f"n{last}")
    assert found.notification_settings.email.billing_alerts is found.notification_settings.push.enabled is False
    assert (found.email, found.created_at) == (user.email, (await app.call("User", "findById", user.id))["createdAt"])


async def test_counts_and_list_entries_from_both_sides_add_up(app: Application, database: Database) -> None:
    coupon = (await app.create("Coupon", their_minimal()["Coupon"]))["_id"]
    where, each = {"_id": coupon}, 40
    plans = [f"{side}-{number}" for side in ("ours", "theirs") for number in range(each)]

    async def ours(number: int) -> None:
        await database.coupons.patch(
            where, {"$inc": {"usedCount": 1}, "$addToSet": {"applicablePlans": f"ours-{number}"}}
        )

    async def theirs(number: int) -> None:
        change = {"$inc": {"usedCount": 1}, "$addToSet": {"applicablePlans": f"theirs-{number}"}}
        await app.call("Coupon", "updateOne", where, change)

    await asyncio.gather(*(side(number) for number in range(each) for side in (ours, theirs)))
    found = await database.coupons.get(coupon)
    assert found.used_count == 2 * each
    assert sorted(found.applicable_plans) == sorted(plans)


async def test_an_address_or_code_taken_by_one_side_is_taken_for_the_other(
    app: Application, database: Database
) -> None:
    from tests.mongoose.peer import MongooseError

    from ximler.database.failures import DocumentExists

    user, coupon = our_minimal()["User"], our_minimal()["Coupon"]
    await app.create("User", {"name": "x", "email": user.email.upper(), "password": "x"})
    with pytest.raises(DocumentExists) as taken:
        await database.users.insert(user)
    assert taken.value.fields == {"email": "is already taken"}
    await database.coupons.insert(coupon)
    with pytest.raises(MongooseError) as refusal:
        await app.create("Coupon", {**their_minimal()["Coupon"], "code": coupon.code.lower()})
    assert refusal.value.code == 11000


async def test_racing_inserts_of_one_address_leave_one_account(app: Application, database: Database) -> None:
    email = f"{ObjectId()}@example.org"

    async def ours() -> None:
        user = our_minimal()["User"]
        user.email = email.upper()
        await database.users.insert(user)

    theirs = {"name": "x", "email": email.title(), "password": "x"}
    results = await asyncio.gather(
        *(ours() for _ in range(10)), *(app.create("User", theirs) for _ in range(10)), return_exceptions=True
    )
    assert len([result for result in results if not isinstance(result, Exception)]) == 1
    assert await database.users.count({"email": email}) == 1


async def test_documents_of_both_sides_list_together(app: Application, database: Database) -> None:
    """One page over both, in the order of their making."""
    user, names = ObjectId(), [f"{number}" for number in range(6)]
    for number, name in enumerate(names):
        at = DAY + timedelta(milliseconds=number)
        if number % 2:
            await database.projects.insert(Project(user_id=user, name=name, created_at=at))
        else:
            theirs = {**their_minimal()["Project"], "userId": user, "name": name, "createdAt": at}
            await app.create("Project", theirs)
    page = await database.projects.page({"userId": user})
    assert [project.name for project in page.items] == names[::-1]
    listed = await app.call("Project", "find", {"userId": user}, None, {"sort": {"createdAt": -1}})
    assert [project["name"] for project in listed] == names[::-1]
