"""The one write builder: what an update may say, how it is stamped, and how it is refused."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import ObjectId
from tests.database.documents import BY_NAME, DAY, complete

from ximler.core.errors import Conflict, Invalid, XimlerError
from ximler.database import Database, updates
from ximler.schema.api_key import API_KEYS
from ximler.schema.coupon import COUPONS
from ximler.schema.document import Collection
from ximler.schema.payment import PAYMENTS
from ximler.schema.plan import PLANS, PlanLimits
from ximler.schema.project import PROJECTS, Project
from ximler.schema.session import SESSIONS
from ximler.schema.usage import USAGE
from ximler.schema.user import USERS, EmailNotifications, NotificationSettings, PushNotifications

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAIVE = datetime(2026, 3, 1)  # noqa: DTZ001 (that is the point)


def built(collection: Collection[Any], update: Any) -> dict[str, dict[str, Any]]:
    """Without the stamp."""
    made = updates.build(collection, update, NOW)
    if "updatedAt" in collection.timestamps:
        assert made["$set"].pop("updatedAt") == NOW
        if not made["$set"]:
            del made["$set"]
    return made


def refusal(collection: Collection[Any], update: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        updates.build(collection, update, NOW)
    assert len(caught.value.fields) == 1
    assert len(caught.value.message) < 300
    return caught.value


def test_every_update_is_stamped_where_the_specification_has_an_updated_at() -> None:
    for collection in BY_NAME.values():
        made = updates.build(collection, {"$unset": {"metadata": ""}} if collection is USAGE else {}, NOW)
        assert made.get("$set", {}) == ({"updatedAt": NOW} if "updatedAt" in collection.timestamps else {})


def test_an_update_is_left_as_it_was_given() -> None:
    update = {"$set": {"name": " Ada ", "avatar": None}}
    updates.build(USERS, update, NOW)
    assert update == {"$set": {"name": " Ada ", "avatar": None}}


@pytest.mark.parametrize(
    ("collection", "update", "sent"),
    [
        (USERS, {"$set": {"name": "Ada"}}, {"$set": {"name": "Ada"}}),
        (USERS, {"$set": {"lastLogin": DAY}}, {"$set": {"lastLogin": DAY}}),
        (USERS, {"$set": {"name": " Ada ", "email": "ADA@x.org"}}, {"$set": {"name": "Ada", "email": "ada@x.org"}}),
        (COUPONS, {"$set": {"code": "spring"}}, {"$set": {"code": "SPRING"}}),
        (COUPONS, {"$setOnInsert": {"code": "spring"}}, {"$setOnInsert": {"code": "SPRING"}}),
        (USERS, {"$set": {"avatar": None}}, {"$unset": {"avatar": ""}}),
        (USERS, {"$set": {"avatar": None}, "$unset": {"lastLogin": 1}}, {"$unset": {"avatar": "", "lastLogin": ""}}),
        (USERS, {"$set": {"emailVerified": None}}, {"$unset": {"emailVerified": ""}}),
        (USERS, {"$setOnInsert": {"avatar": None}}, {}),
        (USERS, {"$unset": {"deletedAt": ""}}, {"$unset": {"deletedAt": ""}}),
        (
            USERS,
            {"$set": {"notificationSettings.email.billingAlerts": False, "notificationSettings.push.enabled": None}},
            {
                "$set": {"notificationSettings.email.billingAlerts": False},
                "$unset": {"notificationSettings.push.enabled": ""},
            },
        ),
        (USERS, {"$unset": {"notificationSettings.push": ""}}, {"$unset": {"notificationSettings.push": ""}}),
        (
            PLANS,
            {"$set": {"limits.projects": 5, "limits.storage": 0.5}},
            {"$set": {"limits.projects": 5, "limits.storage": 0.5}},
        ),
        (COUPONS, {"$inc": {"usedCount": 1, "maxUses": -2}}, {"$inc": {"usedCount": 1, "maxUses": -2}}),
        (PAYMENTS, {"$inc": {"amount": 0.5}, "$mul": {}}, {"$inc": {"amount": 0.5}}),
        (PAYMENTS, {"$mul": {"amount": 2}}, {"$mul": {"amount": 2}}),
        (
            PLANS,
            {"$min": {"price": 9}, "$max": {"limits.apiCalls": 9}},
            {"$min": {"price": 9}, "$max": {"limits.apiCalls": 9}},
        ),
        (USERS, {"$max": {"lastLogin": DAY}}, {"$max": {"lastLogin": DAY}}),
        (PLANS, {"$push": {"features": "x"}}, {"$push": {"features": "x"}}),
        (
            PLANS,
            {"$push": {"features": {"$each": ("x", "y"), "$position": 0, "$slice": 5}}},
            {"$push": {"features": {"$each": ["x", "y"], "$position": 0, "$slice": 5}}},
        ),
        (PLANS, {"$addToSet": {"features": {"$each": ["x"]}}}, {"$addToSet": {"features": {"$each": ["x"]}}}),
        (PLANS, {"$pull": {"features": "x"}}, {"$pull": {"features": "x"}}),
        (PLANS, {"$pullAll": {"features": ["x", ""]}}, {"$pullAll": {"features": ["x", ""]}}),
        (PLANS, {"$pop": {"features": -1}}, {"$pop": {"features": -1}}),
        (PLANS, {"$set": {"features.0": "x", "features.12": ""}}, {"$set": {"features.0": "x", "features.12": ""}}),
        (PLANS, {"$set": {"features.$": "x"}}, {"$set": {"features.$": "x"}}),
        (PLANS, {"$set": {"features.$[]": "x"}}, {"$set": {"features.$[]": "x"}}),
        (PROJECTS, {"$set": {"searchTerms": None}}, {"$unset": {"searchTerms": ""}}),
        (PROJECTS, {"$push": {"searchTerms": "x"}}, {"$push": {"searchTerms": "x"}}),
        (PROJECTS, {"$set": {"settings": None}}, {"$set": {"settings": {}}}),
        (PROJECTS, {"$set": {"settings.a.b": None}}, {"$set": {"settings.a.b": None}}),
        (PROJECTS, {"$set": {"settings.a.0.b": [1, {"c": DAY}]}}, {"$set": {"settings.a.0.b": [1, {"c": DAY}]}}),
        (PROJECTS, {"$unset": {"settings.a": 1, "canvasData": 1}}, {"$unset": {"settings.a": "", "canvasData": ""}}),
        (PROJECTS, {"$inc": {"settings.n": 0.5}}, {"$inc": {"settings.n": 0.5}}),
        (PROJECTS, {"$push": {"settings.l": {"a": 1}}}, {"$push": {"settings.l": {"a": 1}}}),
        (PROJECTS, {"$push": {"settings.l": {"$each": [{"a": 1}]}}}, {"$push": {"settings.l": {"$each": [{"a": 1}]}}}),
        (SESSIONS, {"$set": {"address": "::1"}}, {"$set": {"address": "::1"}}),
        (API_KEYS, {"$set": {"lastUsed": DAY}}, {"$set": {"lastUsed": DAY}}),
    ],
    ids=lambda value: None if isinstance(value, Collection) else str(value)[:60],
)
def test_updates_are_sent_with_setters_applied_and_none_as_unset(
    collection: Collection[Any], update: Any, sent: Any
) -> None:
    assert built(collection, update) == sent


EMAIL, PUSH = "notificationSettings.email", "notificationSettings.push"


@pytest.mark.parametrize(
    ("value", "changed", "removed"),
    [
        (
            NotificationSettings(email=EmailNotifications(billing_alerts=False)),
            {
                f"{EMAIL}.productUpdates": True,
                f"{EMAIL}.billingAlerts": False,
                f"{EMAIL}.securityAlerts": True,
                f"{PUSH}.enabled": False,
                f"{PUSH}.productUpdates": True,
            },
            set(),
        ),
        (
            {"email": {"billingAlerts": False}},
            {f"{EMAIL}.billingAlerts": False},
            {f"{EMAIL}.productUpdates", f"{EMAIL}.securityAlerts", PUSH},
        ),
        (
            {"push": PushNotifications(enabled=True), "email": None},
            {f"{PUSH}.enabled": True, f"{PUSH}.productUpdates": True},
            {EMAIL},
        ),
        ({}, {}, {EMAIL, PUSH}),
    ],
)
def test_a_sub_document_may_be_given_whole_as_struct_or_dict_and_is_sent_by_its_fields(
    value: Any, changed: dict[str, Any], removed: set[str]
) -> None:
    made = built(USERS, {"$set": {"notificationSettings": value}})
    assert made.get("$set", {}) == changed
    assert set(made.get("$unset", {})) == removed


async def test_unknown_fields_of_a_sub_document_survive_its_replacement(database: Database) -> None:
    user = await database.users.insert(complete(USERS, deleted_at=None))
    await database.raw.users.update_one({"_id": user.id}, {"$set": {f"{EMAIL}.digest": "weekly"}})
    fresh = NotificationSettings(push=PushNotifications(enabled=True))
    assert await database.users.patch({"_id": user.id}, {"$set": {"notificationSettings": fresh}})
    assert (await database.users.get(user.id)).notification_settings == fresh
    raw = await database.raw.users.find_one({"_id": user.id})
    assert raw
    assert raw["notificationSettings"]["email"]["digest"] == "weekly"


@pytest.mark.parametrize(
    ("collection", "update", "place", "reason"),
    [
        # paths that the schema does not know
        (USERS, {"$set": {"nickname": "x"}}, "nickname", "is not a field of User"),
        (USERS, {"$set": {"email_verified": True}}, "email_verified", "is not a field of User"),
        (USERS, {"$set": {"": True}}, "", "is not a field of User"),
        (USERS, {"$set": {"name.first": "x"}}, "name.first", "is not a field of User"),
        (USERS, {"$set": {"name.": "x"}}, "name.", "is not a field of User"),
        (USERS, {"$unset": {"__v": ""}}, "__v", "is not a field of User"),
        (
            USERS,
            {"$set": {"notificationSettings.sms": True}},
            "notificationSettings.sms",
            "is not a field of NotificationSettings",
        ),
        (
            USERS,
            {"$set": {"notificationSettings..push": True}},
            "notificationSettings.",
            "is not a field of NotificationSettings",
        ),
        (PLANS, {"$set": {"features.x": "x"}}, "features.x", "is not a field of Plan"),
        (PLANS, {"$set": {"features.-1": "x"}}, "features.-1", "is not a field of Plan"),
        (PLANS, {"$set": {"features.²": "x"}}, "features.²", "is not a field of Plan"),
        (PLANS, {"$set": {"features.0.x": "x"}}, "features.0.x", "is not a field of Plan"),
        (PLANS, {"$set": {"features.$[x]": "x"}}, "features.$[x]", "is not a field of Plan"),
        # decided by the database
        (PLANS, {"$set": {"_id": ObjectId("65f000000000000000000001")}}, "_id", "is decided by the database"),
        (USERS, {"$set": {"createdAt": DAY}}, "createdAt", "is decided by the database"),
        (USERS, {"$unset": {"createdAt": ""}}, "createdAt", "is decided by the database"),
        (USERS, {"$set": {"updatedAt": DAY}}, "updatedAt", "is decided by the database"),
        (USERS, {"$max": {"updatedAt": DAY}}, "updatedAt", "is decided by the database"),
        # required
        (USERS, {"$set": {"name": None}}, "name", "is required and cannot be removed"),
        (USERS, {"$setOnInsert": {"name": None}}, "name", "is required and cannot be removed"),
        (USERS, {"$set": {"name": " \n"}}, "name", "is required and must not be empty"),
        (USERS, {"$unset": {"password": ""}}, "password", "is required and cannot be removed"),
        (PLANS, {"$set": {"limits": None}}, "limits", "is required and cannot be removed"),
        (PLANS, {"$unset": {"limits.projects": ""}}, "limits.projects", "is required and cannot be removed"),
        (PLANS, {"$unset": {"features.0": ""}}, "features.0", "is required and cannot be removed"),
        (PAYMENTS, {"$set": {"userId": None}}, "userId", "is required and cannot be removed"),
        # types
        (USERS, {"$set": {"name": 5}}, "name", "Expected str, got int"),
        (USERS, {"$set": {"avatar": b"x"}}, "avatar", "got bytes"),
        (USERS, {"$set": {"avatar": "\ud800"}}, "avatar", "unpaired surrogate"),
        (USERS, {"$set": {"emailVerified": 1}}, "emailVerified", "Expected bool, got int"),
        (USERS, {"$set": {"lastLogin": "2026-03-01"}}, "lastLogin", "Expected datetime"),
        (USERS, {"$set": {"lastLogin": NAIVE}}, "lastLogin", "is a time without a time zone"),
        (
            USERS,
            {"$set": {"lastLogin": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}},
            "lastLogin",
            "is outside the years",
        ),
        (PAYMENTS, {"$set": {"userId": "65f000000000000000000001"}}, "userId", "Expected ObjectId, got str"),
        (PAYMENTS, {"$set": {"status": "paid"}}, "status", "Invalid enum value"),
        (PAYMENTS, {"$set": {"amount": "5"}}, "amount", "Expected int | float, got str"),
        (PAYMENTS, {"$set": {"amount": True}}, "amount", "got bool"),
        (PAYMENTS, {"$set": {"amount": float("nan")}}, "amount", "must be a finite number"),
        (PAYMENTS, {"$set": {"amount": 2**63}}, "amount", "does not fit in 64 bits"),
        (COUPONS, {"$set": {"usedCount": 1.5}}, "usedCount", "Expected int, got float"),
        (COUPONS, {"$min": {"usedCount": None}}, "usedCount", "$min needs a value to compare with"),
        (COUPONS, {"$max": {"validUntil": None}}, "validUntil", "$max needs a value to compare with"),
        (PLANS, {"$set": {"features": "x"}}, "features", "Expected array, got str"),
        (PLANS, {"$set": {"features": {"x"}}}, "features", "is a set"),
        (PLANS, {"$set": {"features": ["x", 5]}}, "features.1", "Expected str, got int"),
        (PLANS, {"$set": {"features": ["\ud800"]}}, "features.0", "unpaired surrogate"),
        (PLANS, {"$set": {"features.0": 5}}, "features.0", "Expected str, got int"),
        (PLANS, {"$set": {"features.0": None}}, "features.0", "is required and cannot be removed"),
        (PLANS, {"$set": {"limits": {"projects": 1, "storage": 1}}}, "limits", "missing required field apiCalls"),
        (
            PLANS,
            {"$set": {"limits": {"projects": "x", "storage": 1, "apiCalls": 1}}},
            "limits.projects",
            "Expected int",
        ),
        (
            PLANS,
            {"$set": {"limits": {"projects": 1, "storage": 1, "apiCalls": 1, "x": 1}}},
            "limits.x",
            "is not a field",
        ),
        (
            PLANS,
            {"$set": {"limits": {"projects": 1, "storage": 1, "apiCalls": 1, "$x": 1}}},
            "limits.$x",
            "is not a field",
        ),
        (PLANS, {"$set": {"limits": PlanLimits(projects=2**64, storage=1, api_calls=1)}}, "limits.projects", "64 bits"),
        (PLANS, {"$set": {"limits": 5}}, "limits", "Expected object, got int"),
        (PLANS, {"$set": {"limits": EmailNotifications()}}, "limits", "Expected"),
        (
            USERS,
            {"$set": {"notificationSettings": {"email": {"billingAlerts": "no"}}}},
            "notificationSettings.email.billingAlerts",
            "Expected bool, got str",
        ),
        (
            USERS,
            {"$set": {"notificationSettings": {"email.billingAlerts": False}}},
            "notificationSettings.email.billingAlerts",
            "is not a field of NotificationSettings",
        ),
        # numbers
        (COUPONS, {"$inc": {"usedCount": 1.5}}, "usedCount", "a whole number is needed"),
        (COUPONS, {"$inc": {"usedCount": "1"}}, "usedCount", "a number is needed"),
        (COUPONS, {"$inc": {"usedCount": True}}, "usedCount", "a number is needed"),
        (COUPONS, {"$inc": {"usedCount": None}}, "usedCount", "a number is needed"),
        (COUPONS, {"$inc": {"usedCount": "9" * 10_000}}, "usedCount", "a number is needed"),
        (COUPONS, {"$mul": {"usedCount": 1.5}}, "usedCount", "a whole number is needed"),
        (COUPONS, {"$inc": {"usedCount": 2**64}}, "usedCount", "does not fit in 64 bits"),
        (PAYMENTS, {"$inc": {"amount": float("inf")}}, "amount", "must be a finite number"),
        (PAYMENTS, {"$mul": {"amount": float("nan")}}, "amount", "must be a finite number"),
        (USERS, {"$inc": {"name": 1}}, "name", "$inc needs a number, and this field is not one"),
        (USERS, {"$inc": {"lastLogin": 1}}, "lastLogin", "$inc needs a number, and this field is not one"),
        (PLANS, {"$inc": {"limits": 1}}, "limits", "$inc needs a number, and this field is not one"),
        # lists
        (USERS, {"$push": {"name": "x"}}, "name", "$push needs a list, and this field is not one"),
        (PLANS, {"$push": {"features": 5}}, "features", "Expected str, got int"),
        (PLANS, {"$push": {"features": None}}, "features", "Expected str, got null"),
        (PLANS, {"$push": {"features": {"a": 1}}}, "features", "Expected str, got object"),
        (PLANS, {"$push": {"features": {"$each": ["a", 5]}}}, "features", "Expected str, got int"),
        (PLANS, {"$push": {"features": {"$each": "abc"}}}, "features", "Expected array, got str"),
        (PLANS, {"$push": {"features": {"$each": ["a"], "$where": 1}}}, "features", "$push knows no $where"),
        (PLANS, {"$addToSet": {"features": {"$each": ["a"], "$slice": 1}}}, "features", "$addToSet knows no $slice"),
        (PLANS, {"$pull": {"features": {"$gt": ""}}}, "features", "Expected str, got object"),
        (PLANS, {"$pullAll": {"features": "abc"}}, "features", "Expected array, got str"),
        (PLANS, {"$pop": {"features": 2}}, "features", "$pop takes 1"),
        (PLANS, {"$pop": {"features": True}}, "features", "$pop takes 1"),
        (PLANS, {"$pop": {"limits": 1}}, "limits", "$pop needs a list"),
        # Mixed
        (PROJECTS, {"$set": {"settings": {"$a": 1}}}, "settings", "must not start with '$'"),
        (PROJECTS, {"$set": {"settings.a": {"b.c": 1}}}, "settings.a", "must not contain '.'"),
        (PROJECTS, {"$set": {"settings.a": NAIVE}}, "settings.a", "is a time without a time zone"),
        (PROJECTS, {"$set": {"settings.$a": 1}}, "settings", "the key '$a' must not start with '$'"),
        (PROJECTS, {"$set": {"settings.a.$": 1}}, "settings", "the key '$' must not start with '$'"),
        (PROJECTS, {"$unset": {"settings.$[]": 1}}, "settings", "must not start with '$'"),
        (PROJECTS, {"$set": {"settings.a\0b": 1}}, "settings", "must not contain a NUL byte"),
        (PROJECTS, {"$set": {"settings.\ud800": 1}}, "settings", "unpaired surrogate"),
        (PROJECTS, {"$set": {"settings.": 1}}, "settings.", "has an empty part"),
        (PROJECTS, {"$set": {"settings..a": 1}}, "settings..a", "has an empty part"),
        (PROJECTS, {"$set": {"settings." + "a." * 97 + "a": 1}}, "settings", "is nested deeper than 98 levels"),
        (PROJECTS, {"$set": {"settings." + "a." * 95 + "a": {"b": {}}}}, None, "is nested deeper than 98 levels"),
        (PROJECTS, {"$set": {"settings." + "k" * 100_000 + ".$": 1}}, "settings", "must not start with '$'"),
        (PROJECTS, {"$push": {"settings.l": {"$each": [{"$a": 1}]}}}, "settings.l", "must not start with '$'"),
        (PROJECTS, {"$push": {"settings.l": {"$a": 1}}}, "settings.l", "must not start with '$'"),
        (PROJECTS, {"$inc": {"settings.n": "1"}}, "settings.n", "a number is needed"),
    ],
    ids=lambda value: None if isinstance(value, Collection) else ascii(value)[:70],
)
def test_invalid_updates_are_rejected_by_path(
    collection: Collection[Any], update: Any, place: str | None, reason: str
) -> None:
    problem = refusal(collection, update)
    if place is not None:
        assert list(problem.fields) == [place]
    assert reason in problem.message


@pytest.mark.parametrize("operator", ["name", "$rename", "$currentDate", "$bit", "$where", ""])
def test_an_operator_that_we_do_not_use_is_a_bug_of_ours(operator: str) -> None:
    with pytest.raises(ValueError, match="is not an update operator"):
        updates.build(USERS, {operator: {"name": "x"}}, NOW)


def test_the_cache_of_paths_is_bounded_and_ignores_unknown_paths() -> None:
    updates._known.cache_clear()
    for number in range(100):
        updates.build(PROJECTS, {"$set": {f"canvasData.{number}": 1, f"settings.a.{'x' * number}b": 1}}, NOW)
        with pytest.raises(Invalid):
            updates.build(PROJECTS, {"$set": {f"x{number}": 1}}, NOW)
    assert updates._known.cache_info().currsize == 0
    for number in range(3000):
        updates.build(PLANS, {"$set": {f"features.{number}": "x"}}, NOW)
    assert updates._known.cache_info().currsize <= 2048


# Effects on the server


async def test_every_update_operator_works(database: Database) -> None:
    plan = await database.plans.insert(complete(PLANS))

    async def after(update: updates.Update) -> Any:
        assert await database.plans.patch({"_id": plan.object_id}, update)
        return await database.plans.get(plan.object_id)

    assert (await after({"$set": {"features": ["a", "b", "c"]}})).features == ["a", "b", "c"]
    assert (await after({"$push": {"features": {"$each": ["x", "y"], "$position": 1}}})).features == list("axybc")
    assert (await after({"$pull": {"features": "x"}})).features == list("aybc")
    assert (await after({"$addToSet": {"features": "a"}})).features == list("aybc")
    assert (await after({"$pop": {"features": -1}})).features == list("ybc")
    assert (await after({"$pullAll": {"features": ["y", "c"]}})).features == ["b"]
    assert (await after({"$set": {"features.0": "z"}})).features == ["z"]
    assert (await after({"$set": {"features": None}})).features == []
    assert (await after({"$inc": {"limits.projects": 3}})).limits.projects == 10
    assert (await after({"$mul": {"price": 2}})).price == 59.98
    assert (await after({"$min": {"price": 9}})).price == 9
    assert (await after({"$max": {"price": 12.5}})).price == 12.5
    assert (await after({"$set": {"description": None, "active": None}})).description is None
    assert (await after({"$set": {"limits": PlanLimits(projects=1, storage=2, api_calls=3)}})).limits.api_calls == 3
    raw = await database.raw.plans.find_one({"_id": plan.object_id})
    assert raw
    assert None not in raw.values()
    assert not {"description", "active", "features"} & raw.keys()


async def test_a_path_into_a_mixed_value_changes_that_place_only(database: Database) -> None:
    canvas = {"nodes": [{"x": 1}, {"x": 2}], "zoom": 1, "at": DAY}
    kept = await database.projects.insert(Project(user_id=ObjectId(), name="x", canvas_data=canvas))
    assert await database.projects.patch(
        {"_id": kept.id},
        {
            "$set": {"canvasData.nodes.1.x": 5, "canvasData.theme.dark": True},
            "$unset": {"canvasData.zoom": ""},
            "$inc": {"canvasData.count": 2},
        },
    )
    read = (await database.projects.get(kept.id)).canvas_data
    assert read == {"nodes": [{"x": 1}, {"x": 5}], "at": DAY, "theme": {"dark": True}, "count": 2}


async def test_unknown_fields_and_mongoose_s_version_survive_an_update(database: Database) -> None:
    kept = await database.projects.insert(Project(user_id=ObjectId(), name="x"))
    theirs = {"__v": 3, "legacy": {"$odd": [1]}}
    await database.raw.projects.update_one({"_id": kept.id}, {"$set": {"__v": 3, "legacy": {"$literal": {}}}})
    await database.raw.projects.update_one({"_id": kept.id}, [{"$set": {"legacy": {"$literal": theirs["legacy"]}}}])
    await database.projects.patch({"_id": kept.id}, {"$set": {"name": "y", "settings": {"a": 1}}})
    raw = await database.raw.projects.find_one({"_id": kept.id})
    assert raw
    assert {name: raw[name] for name in theirs} == theirs


@pytest.mark.parametrize(
    ("update", "kind", "message"),
    [
        ({"$set": {"canvasData.n.deep": 1}}, Conflict, "of another kind"),
        ({"$inc": {"canvasData.l": 1}}, Conflict, "of another kind"),
        ({"$push": {"canvasData.n": 1}}, Conflict, "of another kind"),
        ({"$set": {"canvasData.l.99999999": 1}}, Invalid, "too far past the list's end"),
        ({"$set": {"canvasData": {}, "canvasData.n": 1}}, Invalid, "touch the same path"),
    ],
)
async def test_an_update_that_does_not_fit_the_stored_value_is_an_actionable_error(
    database: Database, update: updates.Update, kind: type[XimlerError], message: str
) -> None:
    kept = await database.projects.insert(
        Project(user_id=ObjectId(), name="x", canvas_data={"n": "something secret", "l": ["something secret"]})
    )
    with pytest.raises(kind, match=message) as caught:
        await database.projects.patch({"_id": kept.id}, update)
    assert "secret" not in caught.value.message
    assert (await database.projects.get(kept.id)).updated_at == kept.updated_at


async def test_a_path_into_a_missing_mixed_value_makes_it(database: Database) -> None:
    kept = await database.projects.insert(Project(user_id=ObjectId(), name="x"))
    await database.raw.projects.update_one({"_id": kept.id}, {"$unset": {"canvasData": ""}})
    assert await database.projects.patch({"_id": kept.id}, {"$set": {"canvasData.a.b": 1}})
    assert (await database.projects.get(kept.id)).canvas_data == {"a": {"b": 1}}
