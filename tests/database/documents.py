"""Documents to test with: a complete one of each of the ten,
and hypothesis strategies made from the Structs themselves."""

from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from hypothesis import strategies as st
from msgspec import inspect

from ximler.database.codec import bare
from ximler.schema import SPECIFIED
from ximler.schema.audit_log import AuditLog
from ximler.schema.coupon import COUPONS, Coupon
from ximler.schema.document import Collection, Document, extras
from ximler.schema.project import Project
from ximler.schema.user import User

__all__ = [
    "BY_NAME",
    "DAY",
    "any_document",
    "complete",
    "coupon",
    "entry",
    "json_values",
    "mixed_values",
    "moments",
    "project",
    "user",
]

BY_NAME: dict[str, Collection[Any]] = {collection.name: collection for collection in SPECIFIED}
DAY = datetime(2026, 3, 4, 5, 6, 7, 891000, tzinfo=UTC)


def complete(collection: Collection[Any], **given: Any) -> Any:
    """A document with a value in every field, optional ones too."""
    return collection.document(**_values(collection.document) | given)


def project(name: str = "Bridge", **given: Any) -> Project:
    return Project(**{"user_id": ObjectId(), "name": name} | given)


def coupon(code: str = "SPRING", **given: Any) -> Coupon:
    return complete(COUPONS, **{"code": code} | given)  # type: ignore[no-any-return]  # a Coupon


def entry(**given: Any) -> AuditLog:
    return AuditLog(**{"action": "user.sign_in", "resource": "user"} | given)


def user(email: str, **given: Any) -> User:
    return User(**{"name": "Ada", "email": email, "password": "x"} | given)


def _values(document: type[Document]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    marks = extras(document)
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        match bare(field.type):
            case inspect.StrType():
                value: Any = {"upper": "UPPER", "lower": "lower@example.com"}.get(
                    marks[field.name].get("setter", ""), f"some {field.encode_name}"
                )
            case inspect.BoolType():
                value = not field.default
            case inspect.IntType():
                value = 7
            case inspect.UnionType():
                value = 29.99
            case inspect.DateTimeType():
                value = DAY
            case inspect.CustomType():
                value = ObjectId()
            case inspect.BytesType():
                value = b"some bytes"
            case inspect.LiteralType() as literal:
                value = literal.values[-1]
            case inspect.ListType(item_type=inspect.IntType()):
                value = [1, 2]
            case inspect.ListType(item_type=inspect.CustomType()):
                value = [ObjectId(), ObjectId()]
            case inspect.ListType(item_type=inspect.StructType() as struct):
                value = [struct.cls(**_values(struct.cls))]
            case inspect.ListType():
                value = ["one", "two"]
            case inspect.AnyType():
                value = {"a": {"b": [1, 2.5, None, "x", DAY]}}
            case inspect.StructType() as struct:
                value = struct.cls(**_values(struct.cls))
            case other:
                raise AssertionError(other)
        values[field.name] = value
    return values


# Strategies

moments = st.datetimes(timezones=st.just(UTC)).map(
    lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000, fold=0)
)
_integers = st.integers(-(2**63), 2**63 - 1)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_ids = st.binary(min_size=12, max_size=12).map(ObjectId)
_keys = st.text(max_size=8).filter(lambda key: not key.startswith("$") and "." not in key and "\0" not in key)


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
        max_leaves=8,
    )


json_values = _nested(st.none() | st.booleans() | _integers | _floats | st.text(max_size=12))
mixed_values = _nested(
    st.none() | st.booleans() | _integers | _floats | st.text(max_size=12) | moments | st.binary(max_size=8) | _ids
).filter(lambda value: value is not None)  # which reads as {}


def any_document(document: type[Document]) -> st.SearchStrategy[Any]:
    """Any document of this class that may be stored."""
    marks = extras(document)
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        strategy = _strategy(bare(field.type), field.required, marks[field.name].get("setter"))
        optional = not field.required and field.default is None
        fields[field.name] = st.none() | strategy if optional else strategy
    return st.fixed_dictionaries(fields).map(lambda values: document(**values))


def _strategy(kind: inspect.Type, required: bool, setter: str | None) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StrType():
            texts = st.text(max_size=20)
            if setter:
                texts = texts.map(lambda text: getattr(text, setter)())
            return texts.filter(bool) if required else texts
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            return _integers
        case inspect.UnionType():
            return _integers | _floats
        case inspect.DateTimeType():
            return moments
        case inspect.CustomType():
            return _ids
        case inspect.LiteralType():
            return st.sampled_from(sorted(kind.values))
        case inspect.ListType():
            return st.lists(_strategy(bare(kind.item_type), required=False, setter=None), max_size=3)
        case inspect.AnyType():
            return mixed_values
        case inspect.StructType():
            return any_document(kind.cls)  # type: ignore[arg-type]  # sub-documents are Documents
    raise AssertionError(kind)
