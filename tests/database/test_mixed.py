"""Mixed values: storable values are stored unchanged, others rejected with their path."""

import re
import time
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from hypothesis import given, settings
from tests.database.documents import DAY, json_values, mixed_values

from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.mixed import MAX_CONTAINERS, MAX_DEPTH, MAX_MEMORY, MAX_VALUES, check, native
from ximler.schema.project import Project

SHORT = 300


def nested(levels: int, kind: type = dict) -> Any:
    value: Any = kind()
    for _ in range(levels - 1):
        value = {"a": value} if kind is dict else [value]
    return value


def refusal(value: Any, path: str = "canvasData") -> Invalid:
    with pytest.raises(Invalid) as caught:
        check(value, path, depth=2)
    assert len(caught.value.message) < SHORT
    caught.value.message.encode()
    (place,) = caught.value.fields
    place.encode()
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_values_of_too_many_parts_are_refused_before_they_are_walked(depth: int) -> None:
    many: Any = [0] * MAX_VALUES
    for _ in range(depth):
        many = {"a": many}
    started = time.process_time()
    assert f"{MAX_MEMORY:,}" in refusal(many).message
    assert time.process_time() - started < 0.2
    check([0] * 100_000, "canvasData")


@pytest.mark.slow
def test_lists_and_objects_count_as_the_memory_that_they_take() -> None:
    started = time.process_time()
    assert f"{MAX_MEMORY:,}" in refusal([[]] * (MAX_CONTAINERS + 1)).message
    assert f"{MAX_MEMORY:,}" in refusal([[{}] * 1000] * (MAX_CONTAINERS // 1000 + 1)).message
    assert time.process_time() - started < 2
    check([[0.5, 0.5]] * 500_000, "canvasData")


@pytest.mark.slow
@settings(deadline=None)
@given(json_values | mixed_values)
def test_all_json_values_can_be_stored(value: Any) -> None:
    check(value, "settings", depth=2)
    bson.encode({"settings": value})


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        ({"$set": 1}, "canvasData", "the key '$set' must not start with '$'"),
        ({"a": [{"$where": 1}]}, "canvasData.a.0", "the key '$where' must not start with '$'"),
        ({"": {"$": 1}}, "canvasData.", "the key '$' must not start with '$'"),
        ({"a.b": 1}, "canvasData", "the key 'a.b' must not contain '.'"),
        ({"a": {".": 1}}, "canvasData.a", "the key '.' must not contain '.'"),
        ({"a\0b": 1}, "canvasData", "must not contain a NUL byte"),
        ({"a": {1: 2}}, "canvasData.a", "the key 1 must be text"),
        ({None: 2}, "canvasData", "the key None must be text"),
        ({b"a": 2}, "canvasData", "the key b'a' must be text"),
        ({("a",): 2}, "canvasData", "must be text"),
        ({"\ud800": 1}, "canvasData", "unpaired surrogate at character 0"),
        ({"a": "x\udfff"}, "canvasData.a", "unpaired surrogate at character 1"),
        ("\ud800", "canvasData", "unpaired surrogate"),
        ({"n": 2**63}, "canvasData.n", "does not fit in 64 bits"),
        ([0, [-(2**63) - 1]], "canvasData.1.0", "does not fit in 64 bits"),
        (10**5000, "canvasData", "does not fit in 64 bits"),
        ({"s": {"a"}}, "canvasData.s", "is a set, which cannot be stored"),
        ({"d": Decimal("1.5")}, "canvasData.d", "is a Decimal, which cannot be stored"),
        ({"u": UUID(int=5)}, "canvasData.u", "is a UUID, which cannot be stored"),
        ([Exception()], "canvasData.0", "is a Exception, which cannot be stored"),
        ({"t": DAY.date()}, "canvasData.t", "is a date, which cannot be stored"),
        ({"t": datetime(2026, 3, 1)}, "canvasData.t", "is a time without a time zone"),  # noqa: DTZ001 (that is the point)
        (
            {"t": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
            "canvasData.t",
            "is outside the years 1 to 9999",
        ),
    ],
    ids=lambda value: ascii(value)[:30] if not isinstance(value, int) else "huge",
)
def test_unstorable_values_are_rejected_by_path(value: Any, place: str, reason: str) -> None:
    problem = refusal(value)
    assert list(problem.fields) == [place]
    assert reason in problem.fields[place]


def test_a_dollar_or_dot_in_a_value_is_only_text() -> None:
    check({"price": "$5.00", "a$": 1, "b": ["$a.b", "\0", "…", "\U0010ffff"]}, "settings")


def test_the_edges_of_64_bits_fit() -> None:
    check([2**63 - 1, -(2**63), Int64(5), True, 1.7976931348623157e308], "settings")


async def test_values_of_bson_s_own_types_survive(database: Database) -> None:
    """Another application may have stored them, and a copy of its document must be possible."""
    value = {
        "id": ObjectId(),
        "bytes": b"\0\xff",
        "binary": Binary(b"x", 0x80),
        "decimal": Decimal128("1.10"),
        "long": Int64(5),
        "time": DAY,
        "regex": Regex("^a", "i"),
        "stamp": Timestamp(1, 2),
        "least": MinKey(),
        "most": MaxKey(),
        "nan": float("inf"),
    }
    kept = await database.projects.insert(Project(user_id=ObjectId(), name="x", settings=value))
    assert (await database.projects.get(kept.id)).settings == value


async def test_a_tuple_is_stored_as_a_list(database: Database) -> None:
    kept = await database.projects.insert(Project(user_id=ObjectId(), name="x", settings={"a": (1, (2,))}))
    assert (await database.projects.get(kept.id)).settings == {"a": [1, [2]]}


@pytest.mark.parametrize("kind", [dict, list])
async def test_values_are_kept_down_to_the_last_level_and_refused_below_it(database: Database, kind: type) -> None:
    """A document is level 1, so 97 levels of a value in it make 98."""
    kept = await database.projects.insert(
        Project(user_id=ObjectId(), name="x", canvas_data=nested(MAX_DEPTH - 1, kind))
    )
    assert (await database.projects.get(kept.id)).canvas_data == nested(MAX_DEPTH - 1, kind)
    for levels in (MAX_DEPTH, MAX_DEPTH + 1, 10_000):
        value = nested(levels, kind)
        problem = refusal(value)
        assert problem.fields == {"canvasData": "is nested deeper than 98 levels"}
        with pytest.raises(Invalid, match="canvasData: is nested deeper"):
            await database.projects.insert(Project(user_id=ObjectId(), name="x", canvas_data=value))
        with pytest.raises(Invalid, match="canvasData: is nested deeper"):
            await database.projects.patch({"_id": kept.id}, {"$set": {"canvasData": value}})
    assert await database.projects.count({}) == 1


async def test_values_in_a_list_of_operations_count_their_levels_too(database: Database) -> None:
    kept = await database.projects.insert(Project(user_id=ObjectId(), name="x", canvas_data={"a": []}))
    assert await database.projects.patch({"_id": kept.id}, {"$push": {"canvasData.a": nested(MAX_DEPTH - 3)}})
    with pytest.raises(Invalid, match="nested deeper"):
        await database.projects.patch({"_id": kept.id}, {"$push": {"canvasData.a": nested(MAX_DEPTH - 2)}})


@pytest.mark.parametrize(
    "value",
    [
        {"k" * 100_000: {"$a": 1}},
        {"$" + "k" * 100_000: 1},
        {b"k" * 100_000: 1},
        {(1,) * 100_000: 1},
        {"\ud800" * 100_000: 1},
        {"é" * 100_000: {"a.b": 1}},
        {"a": "x" * 100_000 + "\ud800"},
        10**4000,
    ],
    ids=range(8),
)
def test_messages_about_long_input_stay_short(value: Any) -> None:
    refusal(value)


def test_a_path_that_is_cut_still_shows_where_it_begins_and_ends() -> None:
    (place,) = refusal({"start": {"k" * 500: {"end": {"$x": 1}}}}).fields
    assert re.fullmatch(r"canvasData\.start\.k+….*\.end", place)


def test_wide_values_under_long_keys_are_checked_without_spelling_out_every_path() -> None:
    """A megabyte of JSON: 90 levels of keys of 10,000 characters, with 50,000 values under them."""
    value: Any = list(range(50_000))
    for _ in range(90):
        value = {"k" * 10_000: value}
    tracemalloc.start()
    began = time.process_time()
    check(value, "canvasData", depth=2)
    taken = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert taken < 5


@pytest.mark.slow
def test_as_many_values_as_there_may_be_are_checked_in_reasonable_time() -> None:
    value = {"points": list(range(100_000)), "names": {str(n): "x" for n in range(50_000)}, "nodes": [{}] * 99_997}
    began = time.process_time()
    check(value, "canvasData", depth=2)
    assert time.process_time() - began < 1


def test_driver_types_become_python_types() -> None:
    naive = DAY.replace(tzinfo=None)
    value = {"a": [naive, {"b": naive}], "n": Int64(2**40), "x": b"x", "s": "x", "f": 1.5, "z": None}
    seen = native(value)
    assert seen is value
    assert seen == {"a": [DAY, {"b": DAY}], "n": 2**40, "x": b"x", "s": "x", "f": 1.5, "z": None}
    assert type(seen["n"]) is int
    assert seen["a"][0].tzinfo is UTC
    for scalar in (5, "x", None, 2.5, True, b"x"):
        assert native(scalar) == scalar
    assert native(naive) == DAY
    assert native(DAY) is DAY


def test_a_value_of_ten_thousand_levels_is_read() -> None:
    """MongoDB would not store it, but reading must not depend on that."""
    assert native(nested(10_000)) is not None
