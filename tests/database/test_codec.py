"""Between BSON and Structs: every document comes back as it was, others' documents are read tolerantly, and
what is wrong is refused by the path of its field, with nothing stored."""

import copy
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from bson import Decimal128, Int64, ObjectId, encode
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect
from tests.database.documents import BY_NAME, DAY, any_document, complete

from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.codec import Codec, UnreadableDocument, apart, bare, codec_of, object_id_in
from ximler.database.outbox import Nothing
from ximler.schema import CATALOGUE
from ximler.schema.coupon import COUPONS, Coupon
from ximler.schema.document import Collection, Document, Stamped, extras
from ximler.schema.payment import PAYMENTS, Payment
from ximler.schema.plan import PLANS, Plan, PlanLimits
from ximler.schema.project import PROJECTS, Project
from ximler.schema.session import Session
from ximler.schema.user import USERS, NotificationSettings, User

each_of_the_ten = pytest.mark.parametrize("collection", BY_NAME.values(), ids=lambda c: c.name)
NOW = datetime(2026, 3, 1, 12, 0, 0, 5000)  # noqa: DTZ001 (naive UTC, as the codec takes it)


def fields_of(document: type[msgspec.Struct]) -> Any:
    return inspect.type_info(document).fields  # type: ignore[attr-defined]  # a Struct's info has fields


def project(**given: Any) -> Project:
    return Project(**{"user_id": ObjectId(), "name": "Bridge"} | given)


async def stored(database: Database, collection: Collection[Any], **changes: Any) -> Any:
    """A complete document as another application may have left it:
    raw values put in, `...` takes a field out."""
    raw = codec_of(collection.document).encode(complete(collection), NOW)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    await database.raw[collection.name].insert_one(raw, bypass_document_validation=True)
    return raw["_id"]


# Round trip


@pytest.mark.slow
@each_of_the_ten
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
async def test_any_document_comes_back_from_the_database_equal(
    database: Database, collection: Collection[Any], data: st.DataObject
) -> None:
    document = data.draw(any_document(collection.document))
    before = copy.deepcopy(document)
    key = {"_id": document.object_id if isinstance(document, Plan) else document.id}
    try:
        returned = await database[collection].insert(document)
        read = await database[collection].get(key, deleted=True)
    finally:
        await database[collection].delete(key)
    assert read == before
    assert returned == before
    assert repr(read) == repr(before), "an int came back as a float, or the like"


@each_of_the_ten
async def test_a_document_that_is_complete_has_every_field_in_mongodb_and_passes_the_validator(
    database: Database, collection: Collection[Any]
) -> None:
    document = complete(collection)
    await database[collection].insert(document)
    raw = await database.raw[collection.name].find_one({"createdAt": DAY})
    assert raw is not None
    assert raw.keys() == set(collection.document.__struct_encode_fields__)


@each_of_the_ten
async def test_a_document_of_required_fields_only_gets_its_defaults_and_no_nulls(
    database: Database, collection: Collection[Any]
) -> None:
    full = complete(collection)
    required = {f.name: getattr(full, f.name) for f in fields_of(collection.document) if f.required}
    raw = codec_of(collection.document).encode(collection.document(**required), NOW)
    assert None not in raw.values()
    await database.raw[collection.name].insert_one(raw)
    expected = {f.encode_name for f in fields_of(collection.document) if f.required or f.default is not None}
    assert raw.keys() == expected


def test_nothing_below_the_top_level_needs_more_than_convert_gives() -> None:
    """The generated decoder makes times aware, and Mixed values native, at the top level only."""

    def check(document: type[Document]) -> None:
        for field in fields_of(document):
            kind = bare(field.type)
            assert not isinstance(kind, inspect.DateTimeType | inspect.AnyType), f"{document.__name__}.{field.name}"
            if isinstance(kind, inspect.StructType):
                check(kind.cls)  # type: ignore[arg-type]  # a Document

    for collection in CATALOGUE:
        for field in fields_of(collection.document):
            kind = bare(field.type)
            if isinstance(kind, inspect.ListType):
                kind = bare(kind.item_type)
            if isinstance(kind, inspect.StructType):
                check(kind.cls)  # type: ignore[arg-type]  # a Document


# Times


async def test_times_are_stored_in_utc_and_whole_milliseconds_rounded_down(database: Database) -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    there = datetime(2026, 3, 1, 17, 30, 0, 123999, tzinfo=india)
    here = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
    before_1970 = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    kept = project(deleted_at=there, created_at=before_1970, settings={"at": there, "list": [there]})
    returned = await database.projects.insert(kept)
    read = await database.projects.get(kept.id, deleted=True)
    for document in (returned, read):
        assert document.deleted_at == here
        assert document.deleted_at.tzinfo is UTC
        assert document.created_at == before_1970.replace(microsecond=999000)
    assert read.settings == {"at": here, "list": [here]}


async def test_times_inside_mixed_values_come_back_aware_however_deep(database: Database) -> None:
    value = {"at": DAY, "a": [{"b": [DAY, [DAY]]}], "text": DAY.isoformat()}
    kept = await database.projects.insert(project(canvas_data=value, settings=[DAY]))
    read = await database.projects.get(kept.id)
    assert read.canvas_data == value
    assert read.canvas_data["a"][0]["b"][1][0].tzinfo is UTC
    assert read.settings == [DAY]
    assert (await database.projects.insert(project(settings=DAY))).settings == DAY


async def test_the_creation_time_is_the_write_s_unless_one_is_given(database: Database) -> None:
    document = codec_of(Project).encode(project(), NOW)
    assert document["createdAt"] == document["updatedAt"] == NOW
    assert codec_of(Project).encode(project(created_at=DAY), NOW)["createdAt"] == DAY.replace(tzinfo=None)


async def test_an_integer_beyond_32_bits_is_no_driver_type_when_it_comes_back(database: Database) -> None:
    kept = await database.projects.insert(project(settings={"a": [2**40]}, canvas_data=2**40, storage_size=2**40))
    read = await database.projects.get(kept.id)
    assert [type(v) for v in (read.settings["a"][0], read.canvas_data, read.storage_size)] == [int, int, int]
    assert msgspec.json.encode(read.settings) == b'{"a":[1099511627776]}'


# Tolerance


@each_of_the_ten
async def test_null_in_a_field_that_is_not_required_reads_as_its_default(
    database: Database, collection: Collection[Any]
) -> None:
    for field in fields_of(collection.document):
        if field.required or field.encode_name == "_id":
            continue
        key = await stored(database, collection, **{field.encode_name: None})
        read = await database[collection].get(key, deleted=True)
        value = getattr(read, field.name)
        if field.name == "created_at":
            assert value == key.generation_time
        elif field.name == "updated_at":
            assert value == read.created_at
        elif field.default_factory is not msgspec.NODEFAULT:
            assert value == field.default_factory()
        else:
            assert value == field.default
        await database[collection].delete({"_id": key})


@each_of_the_ten
async def test_a_missing_field_that_is_not_required_reads_as_its_default(
    database: Database, collection: Collection[Any]
) -> None:
    raw = codec_of(collection.document).encode(complete(collection), NOW)
    required = {f.encode_name for f in fields_of(collection.document) if f.required} | {"_id"}
    await database.raw[collection.name].insert_one({k: v for k, v in raw.items() if k in required})
    read = await database[collection].get(raw["_id"])
    fresh = collection.document(**{f.name: getattr(read, f.name) for f in fields_of(collection.document) if f.required})
    for field in fields_of(collection.document):
        if field.name not in ("created_at", "updated_at", "id", "object_id"):
            assert getattr(read, field.name) == getattr(fresh, field.name), field.name
    assert read.created_at == raw["_id"].generation_time
    assert read.created_at.tzinfo is UTC
    assert getattr(read, "updated_at", read.created_at) == read.created_at


@each_of_the_ten
async def test_without_a_required_field_a_document_cannot_be_read(
    database: Database, collection: Collection[Any]
) -> None:
    for field in fields_of(collection.document):
        if field.required:
            for change in (..., None):
                key = await stored(database, collection, **{field.encode_name: change})
                with pytest.raises(UnreadableDocument, match=field.encode_name):
                    await database[collection].get(key, deleted=True)
                await database[collection].delete({"_id": key})


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (5.0, 5),
        (Int64(5), 5),
        (Decimal128("5"), 5),
        (Decimal128("5.00"), 5),
        (5e9, 5_000_000_000),
        (Int64(5_000_000_000), 5_000_000_000),
        (-0.0, 0),
    ],
)
async def test_a_count_may_be_stored_as_any_kind_of_number(database: Database, there: Any, read: int) -> None:
    key = await stored(database, COUPONS, usedCount=there, maxUses=there, code="ONE")
    coupon = await database.coupons.get(key)
    assert (coupon.used_count, coupon.max_uses) == (read, read)
    assert type(coupon.used_count) is int
    key = await stored(database, PLANS, limits__projects=there)
    assert (await database.plans.get(key)).limits.projects == read


@pytest.mark.parametrize(
    ("there", "read"),
    [(29, 29), (29.99, 29.99), (Int64(29), 29), (Decimal128("29.99"), 29.99), (Decimal128("29"), 29), (1e300, 1e300)],
)
async def test_an_amount_may_be_stored_as_any_kind_of_number(database: Database, there: Any, read: float) -> None:
    key = await stored(database, PAYMENTS, amount=there)
    amount = (await database.payments.get(key)).amount
    assert amount == read
    assert type(amount) in (int, float)


@pytest.mark.parametrize("there", ["5", True, [5], {"n": 5}, Decimal128("NaN"), Decimal128("Infinity"), DAY])
async def test_non_numbers_are_not_read_as_numbers(database: Database, there: Any) -> None:
    for collection, field in ((PAYMENTS, "amount"), (COUPONS, "usedCount")):
        key = await stored(database, collection, **{field: there})
        with pytest.raises(UnreadableDocument, match=field):
            await database[collection].get(key)


@pytest.mark.parametrize("there", ["2026-03-01T12:00:00Z", 1772366400000, [DAY]])
async def test_non_times_are_not_read_as_times(database: Database, there: Any) -> None:
    for field in ("createdAt", "paidAt", "updatedAt"):
        key = await stored(database, PAYMENTS, **{field: there})
        with pytest.raises(UnreadableDocument, match=field):
            await database.payments.get(key)


async def test_nulls_in_a_list_are_left_out(database: Database) -> None:
    key = await stored(database, PLANS, features=[None, "a", None, "b"])
    assert (await database.plans.get(key)).features == ["a", "b"]
    key = await stored(database, COUPONS, applicablePlans=[None])
    assert (await database.coupons.get(key)).applicable_plans == []


@each_of_the_ten
async def test_unknown_fields_are_ignored_mongoose_s_own_included(
    database: Database, collection: Collection[Any]
) -> None:
    extra: dict[str, Any] = {"__v": 3, "legacy": {"$odd": 1, "a": [DAY]}, "_doc": None, "class": "x", "": 1}
    await database.raw[collection.name].insert_one(
        raw := codec_of(collection.document).encode(complete(collection), NOW) | extra, bypass_document_validation=True
    )
    assert codec_of(collection.document).encode(await database[collection].get(raw["_id"], deleted=True), NOW) == {
        k: v for k, v in raw.items() if k not in extra
    }


async def test_a_sub_document_may_be_incomplete_null_or_have_more(database: Database) -> None:
    key = await stored(
        database, USERS, notificationSettings={"email": {"billingAlerts": False, "x": 1}, "push": None, "sms": {}}
    )
    read = (await database.users.get(key, deleted=True)).notification_settings
    expected = NotificationSettings()
    expected.email.billing_alerts = False
    assert read == expected


@pytest.mark.parametrize("key", ["text", 5, {"a": 1}, b"bytes", 2.5])
async def test_an_id_that_is_no_object_id_makes_a_document_unreadable_and_the_error_names_it(
    database: Database, key: Any
) -> None:
    raw = codec_of(Payment).encode(complete(PAYMENTS), NOW) | {"_id": key}
    await database.raw.payments.insert_one(raw)
    with pytest.raises(UnreadableDocument, match=re.escape(str(key))) as caught:
        await database.payments.get({"_id": key})
    assert "_id" in caught.value.message
    assert caught.value.code == "DOCUMENT_UNREADABLE"


async def test_mixed_values_that_are_null_missing_or_empty_read_the_same(database: Database) -> None:
    for change in (None, ..., {}):
        key = await stored(database, PROJECTS, settings=change, canvasData=change)
        read = await database.projects.get(key, deleted=True)
        assert read.settings == read.canvas_data == {}


@pytest.mark.parametrize("value", [0, "", False, [], 5, "x", 2.5, ["a"], True, ObjectId(), b"x"])
async def test_a_mixed_value_need_not_be_an_object(database: Database, value: Any) -> None:
    kept = await database.projects.insert(project(settings=value))
    assert (await database.projects.get(kept.id)).settings == value


async def test_a_time_outside_the_calendar_and_broken_text_do_not_make_the_driver_fail(database: Database) -> None:
    """JavaScript's years reach 275760, and text that was cut in the middle of a character is not UTF-8."""
    raw = codec_of(Payment).encode(complete(PAYMENTS, description="MARK"), NOW)
    far = encode(raw).replace(
        encode({"paidAt": raw["paidAt"]})[4:-1], b"\x09paidAt\0" + (8_640_000_000_000_000).to_bytes(8, "little")
    )
    cut = encode(raw | {"_id": ObjectId()}).replace(b"MARK", b"MA\xc3K")
    assert far != encode(raw)
    await database.raw.payments.insert_many([RawBSONDocument(far), RawBSONDocument(cut)])
    first, second = await database.payments.find({}, sort=[("paidAt", -1)])
    assert first.paid_at
    assert first.paid_at.year == 9999
    assert second.description == "MA\ufffdK"


async def test_an_unreadable_document_is_named_without_its_content(database: Database) -> None:
    key = await stored(database, USERS, name=5, password="$argon2id$secret")
    with pytest.raises(UnreadableDocument) as caught:
        await database.users.get(key, deleted=True)
    assert str(key) in caught.value.message
    assert "name" in caught.value.message
    assert "argon2id" not in caught.value.message


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*Payment.__struct_encode_fields__, "__v", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.datetimes()
        | st.builds(ObjectId)
        | st.sampled_from(["0", "-1.5", "1E+6144", "1E-6176", "NaN", "-Infinity", "9223372036854775808"]).map(
            Decimal128
        )
        | st.lists(st.integers() | st.none(), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
)
def test_any_stored_document_is_read_or_reported_as_unreadable(changes: dict[str, Any]) -> None:
    raw = codec_of(Payment).encode(complete(PAYMENTS), NOW) | changes
    try:
        read = codec_of(Payment).decode(raw)
    except UnreadableDocument:
        return
    assert read.created_at.tzinfo is UTC
    assert type(read.amount) in (int, float)


# Strictness


WRONG: dict[type, list[Any]] = {
    inspect.StrType: [5, None, b"x", ["x"], {"a": 1}, True, DAY],
    inspect.BoolType: [1, "true", None],
    inspect.IntType: ["5", 1.5, True, Decimal(1), None, 2**63, -(2**63) - 1, 10**5000],
    inspect.UnionType: ["5", True, Decimal(1), None, float("nan"), float("inf"), float("-inf"), 2**63],
    inspect.DateTimeType: [
        "2026-03-01T12:00:00Z",
        1772366400000,
        datetime(2026, 3, 1),  # noqa: DTZ001 (that is the point)
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        DAY.date(),
    ],
    inspect.CustomType: ["65f000000000000000000001", b"x" * 12, 5],
    inspect.LiteralType: ["active", "", 5, None],
    inspect.ListType: ["text", 5, {"a": 1}, None, {"a"}],
    inspect.StructType: [{}, "x", 5, None],
    inspect.AnyType: [{"$a": 1}, {"a.b": 1}, {1: 1}, {"a": {"\0": 1}}, {"a"}, uuid4(), Decimal(1), "\ud800", 2**64],
}


@pytest.mark.slow
@each_of_the_ten
async def test_each_field_of_a_wrong_type_is_refused_by_name_and_nothing_is_stored(
    database: Database, collection: Collection[Any]
) -> None:
    before = await database.raw[collection.name].count_documents({})
    tried = 0
    for field in fields_of(collection.document):
        kind = bare(field.type)
        optional = not field.required and field.default is None
        wrong = WRONG[type(kind)]
        if isinstance(kind, inspect.StrType) and field.required:
            wrong = [*wrong, ""]
        if field.default is None or isinstance(kind, inspect.AnyType):
            wrong = [value for value in wrong if value is not None]
        for value in wrong:
            if optional and value is None:
                continue
            with pytest.raises(Invalid) as caught:
                await database[collection].insert(complete(collection, **{field.name: value}))
            (place,) = caught.value.fields
            assert place.split(".")[0] == field.encode_name, f"{value!r}: {caught.value.message}"
            assert caught.value.message.startswith(field.encode_name)
            assert len(caught.value.message) < 300
            tried += 1
    assert tried > 20
    assert await database.raw[collection.name].count_documents({}) == before


@pytest.mark.parametrize(
    ("collection", "given", "place"),
    [
        (PLANS, {"limits": PlanLimits(projects="x", storage=1, api_calls=1)}, "limits.projects"),  # type: ignore[arg-type]  # wrong
        (PLANS, {"limits": PlanLimits(projects=2**70, storage=1, api_calls=1)}, "limits.projects"),
        (PLANS, {"limits": PlanLimits(projects=1, storage=float("nan"), api_calls=1)}, "limits.storage"),
        (PLANS, {"features": ["a", 5]}, "features.1"),
        (PLANS, {"features": ["a", None]}, "features.1"),
        (PLANS, {"features": ["a", "\ud800"]}, "features.1"),
        (USERS, {"name": "\ud800"}, "name"),
        (USERS, {"name": "   "}, "name"),
        (PROJECTS, {"canvas_data": {"a": [{}, {"b": {"$c": 1}}]}}, "canvasData.a.1.b"),
        (PROJECTS, {"settings": {"at": [datetime(2026, 3, 1)]}}, "settings.at.0"),  # noqa: DTZ001 (that is the point)
    ],
)
async def test_nested_errors_are_reported_with_their_path(
    database: Database, collection: Collection[Any], given: dict[str, Any], place: str
) -> None:
    with pytest.raises(Invalid) as caught:
        await database[collection].insert(complete(collection, **given))
    assert list(caught.value.fields) == [place]


async def test_a_wrong_sub_field_is_refused_by_its_path(database: Database) -> None:
    user = complete(USERS)
    user.notification_settings.email.billing_alerts = "yes"
    with pytest.raises(Invalid) as caught:
        await database.users.insert(user)
    assert list(caught.value.fields) == ["notificationSettings.email.billingAlerts"]


async def test_one_invalid_document_rejects_the_whole_insert(database: Database) -> None:
    for wrong in (project(name=5), project(name="\ud800"), project(storage_size=2**64), project(settings={"$a": 1})):
        with pytest.raises(Invalid) as caught:
            await database.projects.insert_many([project(), project(), wrong])
        assert caught.value.fields
        assert await database.raw.projects.count_documents({}) == 0


def test_a_document_of_another_class_is_refused() -> None:
    with pytest.raises(Invalid, match="Expected Project, got Payment"):
        codec_of(Project).encode(complete(PAYMENTS), NOW)  # type: ignore[arg-type]  # that is the point


def test_bytes_are_not_read_from_text() -> None:
    with pytest.raises(Invalid, match="_id: Expected bytes, got str"):
        codec_of(Session).encode(Session(id="aGVsbG8=", user_id=ObjectId(), expires_at=DAY), NOW)  # type: ignore[arg-type]  # that is the point


def test_setters_apply_on_write() -> None:
    raw = codec_of(User).encode(User(name="  Ada\n", email="Ada@Example.COM", password=" p "), NOW)
    assert (raw["name"], raw["email"], raw["password"]) == ("Ada", "ada@example.com", " p ")
    assert codec_of(Coupon).encode(complete(COUPONS, code="Straße 5"), NOW)["code"] == "STRASSE 5"


def test_encoding_leaves_the_document_as_it_was() -> None:
    for collection in BY_NAME.values():
        document = complete(collection)
        before = copy.deepcopy(document)
        codec_of(collection.document).encode(document, NOW)
        assert document == before


# The generated code


def test_names_that_look_like_code_are_only_names() -> None:
    hostile = "a'] = 1; raise SystemExit('"

    class Odd(Stamped, kw_only=True):
        field: str = msgspec.field(name=hostile)
        at: datetime | None = msgspec.field(name=hostile + "2", default=None)

    codec = Codec(Odd)
    raw = codec.encode(Odd(field="x", at=DAY), NOW)
    assert raw[hostile] == "x"
    assert codec.decode(raw).at == DAY
    with pytest.raises(Invalid) as caught:
        codec.encode(Odd(field=""), NOW)
    assert list(caught.value.fields) == [hostile]


def test_stored_text_does_not_reach_the_generated_code() -> None:
    """The code is made once a class, before any document is seen, and of the schema's names only."""
    for collection in CATALOGUE:
        codec = codec_of(collection.document)
        assert codec_of(collection.document) is codec
        known = set(collection.document.__struct_encode_fields__) | set(collection.document.__struct_fields__)
        paths = {name for name in known if name in extras(collection.document)} | known
        for function in (codec.decode, codec.encode):
            code = function.__code__
            assert code.co_filename in (
                f"<decoder of {collection.document.__name__}>",
                f"<encoder of {collection.document.__name__}>",
            )
            texts = {constant for constant in code.co_consts if isinstance(constant, str) and constant}
            assert texts <= paths | {"depth"}


def test_a_setter_that_does_not_exist_is_noticed_at_once() -> None:
    class Odd(Stamped, kw_only=True):
        name: msgspec.UnsetType | Any = None

    from typing import Annotated

    class Wrong(Stamped, kw_only=True):
        name: Annotated[str, msgspec.Meta(extra={"setter": "__class__"})]

    assert Codec(Odd)
    with pytest.raises(TypeError, match="unknown setter '__class__'"):
        Codec(Wrong)


@pytest.mark.slow
@given(texts=st.lists(st.text(max_size=300), max_size=9))
def test_a_stream_is_taken_apart_into_its_documents(texts: list[str]) -> None:
    documents = [encode({"a": text}) for text in texts]
    assert list(apart(b"".join(documents))) == documents


@pytest.mark.parametrize("other", ["x" * 11, 7, None, bytes(12), {"_id": ObjectId()}])
def test_an_object_id_is_read_where_the_document_begins_with_it(other: Any) -> None:
    oid = ObjectId()
    assert object_id_in(encode({"_id": oid, "a": 1})) == oid.binary
    assert object_id_in(encode({"_id": other, "a": 1})) is None
    assert object_id_in(encode({"a": 1})) is None
    assert object_id_in(encode({"a": {"_id": oid}})) is None


def test_a_document_without_fields_is_encoded_and_decoded() -> None:
    """The payload of scheduled jobs."""
    assert codec_of(Nothing).encode(Nothing(), DAY) == {}
    assert codec_of(Nothing).decode({}) == Nothing()
