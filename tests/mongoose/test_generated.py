"""Documents as a Mongoose application may write them, generated from the models' own account of their fields:
whatever mixture of values, nulls, missing fields and number types, our validators let them pass and our
codecs read them.
"""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import CodecOptions, Decimal128, Int64, ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.mongoose.documents import COLLECTIONS, MODELS, Field, expected, placed, refused, seen
from tests.mongoose.peer import Application

from ximler.core.clock import from_ms, to_ms
from ximler.database import Database

# Where a count of ours reads a Number, which may be no whole one.
COUNTS = {"limits.projects", "limits.apiCalls", "storageSize", "maxUses", "usedCount"}
UNIQUE = {"User": "email", "Plan": "id", "Coupon": "code"}
OPTIONAL_GROUPS = {"User": ("notificationSettings.email", "notificationSettings.push", "notificationSettings")}
MISSING = object()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
dates = st.integers(to_ms(datetime.min.replace(tzinfo=UTC)), to_ms(datetime.max.replace(tzinfo=UTC))).map(from_ms)
ids = st.binary(min_size=12, max_size=12).map(ObjectId)
doubles = st.floats(allow_nan=False)
whole = st.integers(-(2**53), 2**53)
numbers = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    whole.map(float),
    doubles,
    whole.map(lambda number: Decimal128(str(number))),
    st.sampled_from([0.0, -0.0, 5_000_000_000.0, 0.5, float("inf")]),
)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$"), max_size=8)
mixed = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**31), 2**31 - 1), doubles, texts, dates, ids, st.binary(max_size=8)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
unknown = st.dictionaries(st.sampled_from(["__v", "theirs", "_class", "objectId", "created_at", "Ünbekannt"]), mixed)


def values(field: Field) -> st.SearchStrategy[Any]:
    match field["type"]:
        case "String":
            if field["enum"]:
                return st.sampled_from(field["enum"])
            return texts.map(lambda text: f"{text}x") if field["required"] else texts
        case "Number":
            return numbers
        case "Boolean":
            return st.booleans()
        case "Date":
            return dates
        case "ObjectId":
            return ids
        case "Array":
            return st.lists(st.one_of(st.none(), texts), max_size=4)
    return mixed


@st.composite
def documents(draw: st.DrawFn, model: str, fields: list[Field]) -> dict[str, Any]:
    chosen = {}
    for field in fields:
        absent = [] if field["required"] else [st.just(MISSING), st.none()]
        chosen[field["path"]] = draw(st.one_of(values(field), *absent))
    if model in UNIQUE:
        chosen[UNIQUE[model]] = f"{chosen[UNIQUE[model]]}{ObjectId()}"
    document = draw(unknown) | placed({path: value for path, value in chosen.items() if value is not MISSING})
    for group in OPTIONAL_GROUPS.get(model, ()):
        if draw(st.integers(0, 4)) == 0:
            document = without(document, group) | ({} if "." in group or draw(st.booleans()) else {group: None})
    for name in COLLECTIONS[model].timestamps:
        if (moment := draw(st.one_of(st.just(MISSING), st.none(), dates))) is not MISSING:
            document[name] = moment
    return {"_id": ObjectId(), **document}


def without(document: dict[str, Any], path: str) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    if rest and isinstance(document.get(head), dict):
        return {**document, head: without(document[head], rest)}
    return {name: value for name, value in document.items() if name != head}


def as_we_read(fields: list[Field], document: dict[str, Any]) -> dict[str, Any]:
    """`expected`, and numbers as numbers, counts as whole ones, lists without nulls."""
    kinds = {field["path"]: field["type"] for field in fields}
    return {path: _as_we_read(path, kinds[path], value) for path, value in expected(fields, document).items()}


def _as_we_read(path: str, kind: str, value: Any) -> Any:
    if kind == "Array":
        return [item for item in value if item is not None]
    if kind == "Number" and value is not None:
        number = int(value.to_decimal()) if isinstance(value, Decimal128) else value
        return int(min(max(number, -(2**63)), 2**63 - 1)) if path in COUNTS else number
    return value


async def assert_read(
    database: Database, model: str, fields: list[Field], stored: dict[ObjectId, dict[str, Any]]
) -> None:
    collection, where = database[COLLECTIONS[model]], {"_id": {"$in": list(stored)}}
    found = {
        getattr(document, "object_id", None) or document.id: document
        for document in await collection.find(where, deleted=True)
    }
    assert {oid: seen(fields, document) for oid, document in found.items()} == {
        oid: as_we_read(fields, document) for oid, document in stored.items()
    }
    for oid, document in stored.items():
        assert found[oid].created_at == (document.get("createdAt") or oid.generation_time)
    assert len((await collection.page(where, first=100, deleted=True)).items) == len(stored)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_documents_of_mongoose_pass_our_validator_and_are_read(
    model: str, data: st.DataObject, database: Database, models: dict[str, Any]
) -> None:
    fields = models[model]["fields"]
    drawn = data.draw(st.lists(documents(model, fields), min_size=1, max_size=4))
    await database.raw[COLLECTIONS[model].name].insert_many(drawn)
    await assert_read(database, model, fields, {document["_id"]: document for document in drawn})


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_updates_by_mongoose_pass_our_validator_and_are_read(
    model: str, data: st.DataObject, app: Application, database: Database, models: dict[str, Any]
) -> None:
    """The same through Mongoose, which casts, trims, fills in and leaves out;
    expected is what it then has stored."""
    fields = models[model]["fields"]
    drawn = data.draw(st.lists(documents(model, fields), min_size=1, max_size=4))
    options = {"timestamps": data.draw(st.booleans()), "strict": data.draw(st.booleans())}
    drawn = [{name: value for name, value in document.items() if name != "__v"} for document in drawn]
    await app.call(model, "insertMany", drawn, options)
    raw = database.raw[COLLECTIONS[model].name].with_options(CodecOptions(tz_aware=True, tzinfo=UTC))
    stored = await raw.find({"_id": {"$in": [document["_id"] for document in drawn]}}).to_list()
    assert len(stored) == len(drawn)
    await assert_read(database, model, fields, {document["_id"]: document for document in stored})
    assert await refused(database) == []
