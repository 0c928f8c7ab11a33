"""Filters are compared with the schema, as updates are: misspelt fields and values of another type match
nothing."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId
from bson.datetime_ms import DatetimeMS

from ximler.core.errors import Invalid
from ximler.database import Database, filters
from ximler.schema.billing_event import BillingEvent
from ximler.schema.document import Document
from ximler.schema.plan import Plan
from ximler.schema.project import Project
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("document", "where", "named"),
    [
        (User, {"emial": "ada@example.com"}, "emial"),
        (User, {"email": 5}, "email"),
        (User, {"email": {"$in": ["a", 5]}}, "email"),
        (User, {"email": {"$in": "a"}}, "email"),
        (User, {"email": {"$regx": "a"}}, "email"),
        (User, {"email": {"$not": {"$gtt": "a"}}}, "email"),
        (User, {"email": {"$exists": "yes"}}, "email"),
        (User, {"_id": str(ObjectId())}, "_id"),
        (User, {"createdAt": "2026-11-30"}, "createdAt"),
        (User, {"createdAt": {"$gt": 1_796_000_000}}, "createdAt"),
        (User, {"emailVerified": 1}, "emailVerified"),
        (User, {"notificationSettings.email.news": True}, "notificationSettings.email.news"),
        (User, {"$or": [{"emial": "a"}]}, "emial"),
        (User, {"$or": []}, "$or"),
        (User, {"$xor": [{}]}, "$xor"),
        (User, {"email": {"$in": ["a", {"$regex": "a"}]}}, "email"),
        (Project, {"storageSize": {"$gt": "5"}}, "storageSize"),
        (Project, {"tags": 5}, "tags"),
        (Plan, {"price": True}, "price"),
        (Project, {"tags": {"$all": [{"$elemMatch": {"$gtt": "a"}}]}}, "tags"),
        (Project, {"tags.name": "a"}, "tags.name"),
        (Plan, {"limits.projcts": 3}, "limits.projcts"),
        (Subscription, {"status": "ACTVE"}, "status"),
        (Subscription, {"status": {"$in": ["ACTIVE", "ACTVE"]}}, "status"),
    ],
)
def test_a_wrong_filter_is_refused_by_the_name_of_its_field(
    document: type[Document], where: dict[str, Any], named: str
) -> None:
    with pytest.raises(Invalid) as refused:
        filters.check(document, where)
    assert list(refused.value.fields) == [named]


def test_filters_that_mongodb_understands_are_accepted() -> None:
    filters.check(User, {})
    filters.check(User, {"_id": {"$in": [ObjectId()]}, "email": None, "name": {"$regex": "^A", "$options": "i"}})
    filters.check(User, {"$and": [{"createdAt": {"$not": {"$gt": NOW}}}, {"$expr": {"$eq": [1, 1]}}]})
    filters.check(Project, {"canvasData.elements.0.x": "of any type", "tags": {"$all": ["a"], "$size": 1}})
    filters.check(User, {"$sampleRate": 0.5, "$where": "true", "email": {"$gt": MinKey(), "$lt": MaxKey()}})
    filters.check(User, {"email": {"$in": [re.compile("a"), None]}, "_id": {"$in": [1, "one"]}})
    filters.check(User, {"_id": {"$in": [str(ObjectId())]}})  # as it was read
    filters.check(BillingEvent, {"_id": 7, "dueAt": {"$exists": True}})
    filters.check(Project, {"tags": {"$all": [{"$elemMatch": {"$gt": "a"}}]}, "createdAt": DatetimeMS(-(10**15))})
    filters.check(User, {"createdAt": {"$gt": NOW.replace(tzinfo=None)}})  # as the driver returns times
    filters.check(Plan, {"price": {"$in": [29, 29.5, Decimal128("29"), Int64(29), float("nan")]}})
    filters.check(Plan, {"price": {"$gte": 29}, "__v": {"$gte": 0}, "limits.projects": {"$ne": 3.0}, "features": ["a"]})


async def test_every_reading_and_writing_call_checks_its_filter(database: Database) -> None:
    users, wrong = database.users, {"emial": "ada@example.com"}
    for call in (
        users.find_one(wrong),
        users.find(wrong),
        users.page(wrong, first=1),
        users.count(wrong),
        users.patch(wrong, {"$set": {"name": "Ada"}}),
        users.find_and_patch(wrong, {"$set": {"name": "Ada"}}),
        users.delete(wrong),
        users.delete_many(wrong),
    ):
        with pytest.raises(Invalid, match="emial"):
            await call
