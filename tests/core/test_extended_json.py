"""JSON of values that JSON has no type for."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from bson import Binary, Code, DatetimeMS, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from ximler.core.extended_json import plain

ID = ObjectId("6b0c0d9745f0b7f2004eb437")
WRITTEN: list[tuple[Any, Any]] = [
    (Regex("^a", "i"), {"$regularExpression": {"pattern": "^a", "options": "i"}}),
    (Timestamp(1, 2), {"$timestamp": {"t": 1, "i": 2}}),
    (DBRef("users", ID), {"$ref": "users", "$id": {"$oid": str(ID)}}),
    (DBRef("users", 5, "other"), {"$ref": "users", "$id": 5, "$db": "other"}),
    (Decimal128("1.50"), {"$numberDecimal": "1.50"}),
    (MinKey(), {"$minKey": 1}),
    (MaxKey(), {"$maxKey": 1}),
    (DatetimeMS(2**60), {"$date": {"$numberLong": str(2**60)}}),
    (ID, str(ID)),
    (datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31T00:00:00Z"),
    (Binary(b"x", 0), "eA=="),
    (Int64(2**53), 2**53),
    (Code("f()"), {"$code": "f()"}),
    (Code("f()", {"a": 1}), {"$code": "f()", "$scope": {"a": 1}}),
    (slice(1), "slice(None, 1, None)"),
]


@pytest.mark.parametrize(("value", "written"), WRITTEN, ids=lambda each: type(each).__name__)
def test_values_are_written_as_extended_json_where_json_lacks_the_type(value: Any, written: Any) -> None:
    assert json.loads(msgspec.json.encode({"a": [value]}, enc_hook=plain)) == {"a": [written]}
