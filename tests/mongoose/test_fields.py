"""The map has the models' fields, with their types, defaults, enums and setters: no more, and no less."""

from typing import Any

import msgspec
import pytest
from msgspec import inspect
from tests.mongoose.documents import COLLECTIONS, MODELS

from ximler.database.codec import bare
from ximler.schema.document import Document, extras

SETTERS = {"trim": "strip", "lowercase": "lower", "uppercase": "upper"}
OURS = {
    "Project": {
        "searchTerms",
        "searchKeys",
        "tags",
        "starred",
        "canvasRevision",
        "canvasLog",
        "canvasClients",
        "storageRoom",
        "versionsSize",
        "assetsSize",
        "canvasBase",
        "canvasTail",
        "location",
    },
    "User": {"closedAt"},
    "Plan": {"trialDays"},
    "Subscription": {"periodStart", "periodEnd", "trialEnd", "pendingPlanId"},
    "Payment": {"invoiceId", "failure"},
    "Coupon": {"duration", "durationPeriods", "pending"},
    "ApiKey": {"hint", "allowedAddresses", "replacedBy"},
}  # optional, and documented in the schema


def type_of(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType() | inspect.LiteralType():
            return "String"
        case inspect.BoolType():
            return "Boolean"
        case inspect.IntType() | inspect.FloatType() | inspect.UnionType():
            return "Number"
        case inspect.DateTimeType():
            return "Date"
        case inspect.ListType():
            return "Array"
        case inspect.AnyType():
            return "Mixed"
    return "ObjectId"


def paths_of(document: type[Document], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Our Struct, told as `describe` tells a model."""
    found: dict[str, dict[str, Any]] = {}
    names = {collection.name: model for model, collection in COLLECTIONS.items()}
    for field in inspect.type_info(document).fields:
        if field.encode_name in ("_id", "createdAt", "updatedAt"):
            continue
        path, kind, marks = prefix + field.encode_name, bare(field.type), extras(document)[field.name]
        if isinstance(kind, inspect.StructType):
            found |= paths_of(kind.cls, f"{path}.")
            continue
        default = None if field.default in (msgspec.NODEFAULT, msgspec.UNSET) else field.default
        found[path] = {
            "type": type_of(kind),
            "required": field.required,
            "default": default,
            "enum": list(kind.values) if isinstance(kind, inspect.LiteralType) else None,
            "setters": [name for name, method in SETTERS.items() if method == marks.get("setter")],
            "ref": names.get(marks.get("ref")),
            "items": type_of(bare(kind.item_type)) if isinstance(kind, inspect.ListType) else None,
        }
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_map_has_the_models_fields(model: str, models: dict[str, Any]) -> None:
    declared = {
        field["path"]: {key: field[key] for key in ("type", "required", "default", "enum", "setters", "ref", "items")}
        for field in models[model]["fields"]
    }
    for field in declared.values():
        field["enum"] = field["enum"] and sorted(field["enum"])
    ours = paths_of(COLLECTIONS[model].document)
    for field in ours.values():
        field["enum"] = field["enum"] and sorted(field["enum"])
    additions = {path: ours.pop(path) for path in OURS.get(model, ())}
    assert ours == declared
    assert not [path for path, field in additions.items() if field["required"]]


def test_the_models_live_in_our_collections_with_our_timestamps(models: dict[str, Any]) -> None:
    assert {name: model["collection"] for name, model in models.items()} == {
        name: collection.name for name, collection in COLLECTIONS.items()
    }
    for name, model in models.items():
        updated = model["timestamps"] is True or model["timestamps"]["updatedAt"]
        assert COLLECTIONS[name].timestamps == (("createdAt", "updatedAt") if updated else ("createdAt",)), name
