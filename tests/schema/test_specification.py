"""The catalogue held against the specification, field for field and index for index.

The tables are transcribed by hand from the ten Mongoose models and from the specification's "Database Indexes
Summary", apart from the source: no part may be missing, and additional parts must be listed as ours.
"""

from typing import Any

import msgspec
import pytest
from bson import ObjectId
from msgspec import NODEFAULT, inspect

from ximler.schema import CATALOGUE, SPECIFIED
from ximler.schema.document import AT_WRITE, Collection, extras

REQUIRED = object()
NONE = None  # optional: absent unless given

Field = tuple[str, Any]  # type, then REQUIRED or the default


def enum(*values: str) -> str:
    return "enum " + "|".join(values)


TIMESTAMPS = {"createdAt": ("Date", AT_WRITE), "updatedAt": ("Date", AT_WRITE)}
CREATED = {"createdAt": ("Date", AT_WRITE)}

FIELDS: dict[str, dict[str, Field]] = {
    "users": {
        "name": ("String trim", REQUIRED),
        "email": ("String lowercase", REQUIRED),
        "password": ("String", REQUIRED),
        "avatar": ("String", NONE),
        "emailVerified": ("Boolean", False),
        "emailVerificationToken": ("String", NONE),
        "passwordResetToken": ("String", NONE),
        "passwordResetExpires": ("Date", NONE),
        "lastLogin": ("Date", NONE),
        "stripeCustomerId": ("String", NONE),
        "notificationSettings.email.productUpdates": ("Boolean", True),
        "notificationSettings.email.billingAlerts": ("Boolean", True),
        "notificationSettings.email.securityAlerts": ("Boolean", True),
        "notificationSettings.push.enabled": ("Boolean", False),
        "notificationSettings.push.productUpdates": ("Boolean", True),
        "deletedAt": ("Date", NONE),
        **TIMESTAMPS,
    },
    "plans": {
        "id": ("String", REQUIRED),
        "name": ("String", REQUIRED),
        "description": ("String", NONE),
        "price": ("Number", REQUIRED),
        "currency": ("String", "USD"),
        "interval": (enum("MONTH", "YEAR"), REQUIRED),
        "features": ("[String]", []),
        "limits.projects": ("Number", REQUIRED),
        "limits.storage": ("Number", REQUIRED),
        "limits.apiCalls": ("Number", REQUIRED),
        "stripePriceId": ("String", NONE),
        "active": ("Boolean", True),
        **TIMESTAMPS,
    },
    "subscriptions": {
        "userId": ("ObjectId → users", REQUIRED),
        "planId": ("String", REQUIRED),
        "status": (enum("ACTIVE", "CANCELLED", "EXPIRED", "PAST_DUE"), REQUIRED),
        "startDate": ("Date", REQUIRED),
        "endDate": ("Date", NONE),
        "autoRenew": ("Boolean", True),
        "price": ("Number", REQUIRED),
        "currency": ("String", "USD"),
        "stripeSubscriptionId": ("String", NONE),
        "stripeCustomerId": ("String", NONE),
        **TIMESTAMPS,
    },
    "payments": {
        "userId": ("ObjectId → users", REQUIRED),
        "subscriptionId": ("ObjectId → subscriptions", NONE),
        "amount": ("Number", REQUIRED),
        "currency": ("String", "USD"),
        "status": (enum("PENDING", "PAID", "FAILED", "REFUNDED"), REQUIRED),
        "description": ("String", NONE),
        "stripePaymentIntentId": ("String", NONE),
        "stripeInvoiceId": ("String", NONE),
        "invoiceUrl": ("String", NONE),
        "paidAt": ("Date", NONE),
        **TIMESTAMPS,
    },
    "usage": {
        "userId": ("ObjectId → users", REQUIRED),
        "resourceType": (enum("projects", "storage", "apiCalls"), REQUIRED),
        "amount": ("Number", REQUIRED),
        "periodStart": ("Date", REQUIRED),
        "periodEnd": ("Date", REQUIRED),
        "metadata": ("Mixed", {}),
        **CREATED,
    },
    "projects": {
        "userId": ("ObjectId → users", REQUIRED),
        "name": ("String trim", REQUIRED),
        "description": ("String", NONE),
        "settings": ("Mixed", {}),
        "canvasData": ("Mixed", {}),
        "storageSize": ("Number", 0),
        "deletedAt": ("Date", NONE),
        **TIMESTAMPS,
    },
    "apikeys": {
        "userId": ("ObjectId → users", REQUIRED),
        "name": ("String", REQUIRED),
        "keyHash": ("String", REQUIRED),
        "permissions": ("[String]", []),
        "lastUsed": ("Date", NONE),
        "expiresAt": ("Date", NONE),
        "revokedAt": ("Date", NONE),
        **CREATED,
    },
    "notifications": {
        "userId": ("ObjectId → users", REQUIRED),
        "type": (enum("BILLING", "SECURITY", "PRODUCT", "SYSTEM"), REQUIRED),
        "title": ("String", REQUIRED),
        "message": ("String", REQUIRED),
        "readAt": ("Date", NONE),
        "metadata": ("Mixed", {}),
        **CREATED,
    },
    "coupons": {
        "code": ("String uppercase", REQUIRED),
        "name": ("String", REQUIRED),
        "description": ("String", NONE),
        "type": (enum("PERCENTAGE", "FIXED"), REQUIRED),
        "value": ("Number", REQUIRED),
        "currency": ("String", "USD"),
        "maxUses": ("Number", NONE),
        "usedCount": ("Number", 0),
        "validFrom": ("Date", REQUIRED),
        "validUntil": ("Date", REQUIRED),
        "applicablePlans": ("[String]", []),
        "active": ("Boolean", True),
        **TIMESTAMPS,
    },
    "auditlogs": {
        "userId": ("ObjectId → users", NONE),
        "action": ("String", REQUIRED),
        "resource": ("String", REQUIRED),
        "resourceId": ("String", NONE),
        "metadata": ("Mixed", {}),
        "ipAddress": ("String", NONE),
        "userAgent": ("String", NONE),
        **CREATED,
    },
}
OURS: dict[str, dict[str, Field]] = {
    "projects": {
        "searchTerms": ("[String]", NONE),
        "searchKeys": ("[Number]", NONE),
        "tags": ("[String]", NONE),
        "starred": ("Boolean", NONE),
        "canvasRevision": ("Number", 0),
        "canvasLog": ("Mixed", NONE),
        "canvasClients": ("Mixed", NONE),
        "storageRoom": ("Number", NONE),
        "versionsSize": ("Number", 0),
        "assetsSize": ("Number", 0),
        "canvasBase": ("Mixed", None),
        "canvasTail": ("Mixed", None),
        "location": ("Mixed", NONE),
    },
    "users": {"closedAt": ("Date", NONE)},
    "plans": {"trialDays": ("Number", NONE)},
    "subscriptions": {
        "periodStart": ("Date", NONE),
        "periodEnd": ("Date", NONE),
        "trialEnd": ("Date", NONE),
        "pendingPlanId": ("String", NONE),
    },
    "payments": {"invoiceId": ("ObjectId", NONE), "failure": ("String", NONE)},
    "coupons": {
        "duration": ("enum ONCE|REPEATING|FOREVER", NONE),
        "durationPeriods": ("Number", NONE),
        "pending": ("Mixed", {}),
    },
    "apikeys": {
        "hint": ("String", NONE),
        "allowedAddresses": ("[String]", []),
        "replacedBy": ("ObjectId → apikeys", NONE),
    },
}

# Of the models: schema.index(…), and unique: true.
MODELS = {
    "users": "email:1 | emailVerificationToken:1 | passwordResetToken:1 | deletedAt:1 | stripeCustomerId:1",
    "plans": "active:1 | stripePriceId:1 | id:1",
    "subscriptions": "userId:1 status:1 | stripeSubscriptionId:1 | status:1 | endDate:1",
    "payments": "userId:1 | subscriptionId:1 | status:1 | stripePaymentIntentId:1 | stripeInvoiceId:1 | createdAt:-1",
    "usage": "userId:1 resourceType:1 periodStart:1 | periodStart:1 periodEnd:1 | resourceType:1",
    "projects": "userId:1 deletedAt:1 | createdAt:-1 | deletedAt:1 | name:text description:text",
    "apikeys": "userId:1 | keyHash:1 | expiresAt:1 | revokedAt:1",
    "notifications": "userId:1 readAt:1 | type:1 | createdAt:-1",
    "coupons": "code:1 | active:1 | validFrom:1 validUntil:1 | applicablePlans:1",
    "auditlogs": "userId:1 | action:1 | resource:1 resourceId:1 | createdAt:-1",
}
UNIQUE = {("users", "email_1"), ("plans", "id_1"), ("coupons", "code_1")}

# Of the summary: db.….createIndex(…). It has no plans, and payments without stripeInvoiceId.
SUMMARY = {
    "users": "email:1 | emailVerificationToken:1 | passwordResetToken:1 | deletedAt:1 | stripeCustomerId:1",
    "subscriptions": "userId:1 status:1 | stripeSubscriptionId:1 | status:1 | endDate:1",
    "payments": "userId:1 | subscriptionId:1 | status:1 | stripePaymentIntentId:1 | createdAt:-1",
    "usage": "userId:1 resourceType:1 periodStart:1 | periodStart:1 periodEnd:1 | resourceType:1",
    "projects": "userId:1 deletedAt:1 | createdAt:-1 | deletedAt:1 | name:text description:text",
    "apikeys": "userId:1 | keyHash:1 | expiresAt:1 | revokedAt:1",
    "notifications": "userId:1 readAt:1 | type:1 | createdAt:-1",
    "coupons": "code:1 | active:1 | validFrom:1 validUntil:1 | applicablePlans:1",
    "auditlogs": "userId:1 | action:1 | resource:1 resourceId:1 | createdAt:-1",
}

TYPES = {
    inspect.StrType: "String",
    inspect.BoolType: "Boolean",
    inspect.IntType: "Number",
    inspect.DateTimeType: "Date",
    inspect.CustomType: "ObjectId",
    inspect.AnyType: "Mixed",
}
SETTERS = {"strip": "trim", "lower": "lowercase", "upper": "uppercase"}
by_name = {collection.name: collection for collection in SPECIFIED}


def described(document: type[msgspec.Struct], path: str = "") -> dict[str, Field]:
    """The Struct in the words of the tables above."""
    marks = extras(document)  # type: ignore[arg-type]  # a Document
    found: dict[str, Field] = {}
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        kind = field.type
        while isinstance(kind, inspect.Metadata):
            kind = kind.type
        default = REQUIRED if field.required else field.default
        if default is NODEFAULT:
            default = field.default_factory()
        if isinstance(kind, inspect.UnionType):
            parts = {type(part) for part in kind.types} - {inspect.NoneType}
            optional = len(parts) < len(kind.types)
            assert optional == (default is None), field.name
            if parts == {inspect.IntType, inspect.FloatType}:
                kind = inspect.IntType()
            else:
                (kind,) = (part for part in kind.types if not isinstance(part, inspect.NoneType))
                while isinstance(kind, inspect.Metadata):
                    kind = kind.type
        name = path + field.encode_name
        if isinstance(kind, inspect.StructType):
            inner = described(kind.cls, f"{name}.")
            assert default is REQUIRED or default == kind.cls(), f"{name}: the default is not that of its parts"
            found |= inner
            continue
        if isinstance(kind, inspect.LiteralType):
            # The values of an enum are listed in the specification's order, which inspection does not keep.
            text = enum(*kind.values)
        elif isinstance(kind, inspect.ListType):
            text = f"[{TYPES[type(kind.item_type)]}]"
        else:
            text = TYPES[type(kind)]
            if isinstance(kind, inspect.CustomType):
                assert kind.cls is ObjectId
        if setter := marks[field.name].get("setter"):
            text += f" {SETTERS[setter]}"
        if target := marks[field.name].get("ref"):
            text += f" → {target}"
        assert (text == "Mixed") == bool(marks[field.name].get("mixed")), name
        found[name] = (text, default)
    return found


def unordered(fields: dict[str, Field]) -> dict[str, tuple[Any, Any]]:
    """With an enum's values as a set."""
    return {
        name: (frozenset(text[5:].split("|")) if text.startswith("enum ") else text, default)
        for name, (text, default) in fields.items()
    }


def keys_of(indexes: str) -> set[tuple[tuple[str, Any], ...]]:
    return {
        tuple((key, direction if direction == "text" else int(direction)) for key, direction in pairs)
        for pairs in ([part.split(":") for part in index.split()] for index in indexes.split(" | ") if index)
    }


def test_the_ten_collections_are_there_under_the_names_of_the_index_summary() -> None:
    assert [c.name for c in SPECIFIED] == list(FIELDS)
    assert CATALOGUE[:10] == SPECIFIED
    assert set(SUMMARY) | {"plans"} == set(FIELDS)
    assert not any(c.private for c in SPECIFIED)
    assert all(c.private for c in CATALOGUE[10:])


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_the_type_default_and_setter_of_the_specification_and_none_is_extra(name: str) -> None:
    ours = described(by_name[name].document)
    assert ours.pop("_id")[0] == "ObjectId"
    assert unordered(ours) == unordered(FIELDS[name] | OURS.get(name, {}))


@pytest.mark.parametrize("name", FIELDS)
def test_every_index_of_the_models_and_of_the_summary_is_there_and_others_are_marked_as_ours(name: str) -> None:
    declared = {index.keys: index for index in by_name[name].indexes}
    assert len(declared) == len(by_name[name].indexes), (
        "two declarations of one key pattern: a real server refuses them"
    )
    wanted = keys_of(MODELS[name]) | keys_of(SUMMARY.get(name, ""))
    assert {keys for keys, index in declared.items() if not index.ours} == wanted
    for index in declared.values():
        assert index.unique == ((name, index.name) in UNIQUE), index.name
        assert index.ttl_seconds is None, f"{index.name}: the specification expires nothing"
        assert index.partial is None or index.ours


def test_an_index_of_ours_on_the_ten_collections_carries_no_invariant() -> None:
    """Mongoose's syncIndexes() would drop it."""
    ours = [index for collection in SPECIFIED for index in collection.indexes if index.ours]
    assert ours
    assert not any(index.unique or index.ttl_seconds is not None for index in ours)


@pytest.mark.parametrize("name", FIELDS)
def test_an_index_has_the_name_that_mongodb_and_mongoose_would_give_it(name: str) -> None:
    for index in by_name[name].indexes:
        assert index.name == "_".join(f"{key}_{direction}" for key, direction in index.keys)


@pytest.mark.parametrize("collection", SPECIFIED, ids=lambda c: c.name)
def test_a_collection_has_one_text_index_at_most(collection: Collection[Any]) -> None:
    assert sum(index.keys[0][1] == "text" for index in collection.indexes) == (collection.name == "projects")


def test_timestamps_and_soft_deletion_are_where_the_specification_has_them() -> None:
    assert {c.name for c in SPECIFIED if c.soft_delete} == {"users", "projects"}
    created_only = {c.name for c in SPECIFIED if c.timestamps == ("createdAt",)}
    assert created_only == {"usage", "apikeys", "notifications", "auditlogs"}
    assert {c.timestamps for c in SPECIFIED if c.name not in created_only} == {("createdAt", "updatedAt")}
