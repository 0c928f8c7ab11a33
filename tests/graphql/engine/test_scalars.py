from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.graphql.engine import Engine, Resolvers, build
from ximler.graphql.engine.scalars import SCALARS, format_datetime

SDL = """
extend type Query {
  at(value: DateTime!): DateTime!
  long(value: Long!): Long!
  json(value: JSON): JSON
  id(value: ID!): ID!
  color(value: Color!): Color!
  out(what: String!): Mixed!
}
enum Color { RED apiCalls }
type Mixed { at: DateTime long: Long int: Int float: Float id: ID color: Color string: String json: JSON }
"""


class ObjectIdLike:
    def __str__(self) -> str:
        return "65b0c0ffee65b0c0ffee65b0"


class Int64(int): ...


OUT: dict[str, Any] = {}
SEEN: list[Any] = []


@pytest.fixture(scope="module")
def scalars() -> Engine:
    resolvers = Resolvers()
    for name in ("at", "long", "json", "id", "color"):

        @resolvers.query(name)
        async def echo(ctx: Any, value: Any = None) -> Any:
            SEEN.append(value)
            return value

    @resolvers.query("out")
    async def out(ctx: Any, what: str) -> Any:
        return {what: OUT[what]}

    return Engine(build([SDL], [resolvers]))


async def ask(engine: Engine, field: str, type_: str, value: Any) -> Any:
    response = await engine.execute(f"query($v: {type_}) {{ {field}(value: $v) }}", None, variables={"v": value})
    return response["data"][field] if "errors" not in response else response["errors"][0]["message"]


@pytest.mark.parametrize(
    ("given_", "written"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:00.1239Z", "2026-01-31T12:00:00.123Z"),
        ("2026-01-31T12:00:00.123456789Z", "2026-01-31T12:00:00.123Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
    ],
)
async def test_instants_are_read_with_any_offset_and_written_in_utc(scalars: Engine, given_: str, written: str) -> None:
    assert await ask(scalars, "at", "DateTime!", given_) == written
    assert SEEN[-1].tzinfo is UTC
    response = await scalars.execute(f'{{ at(value: "{given_}") }}', None)
    assert response == {"data": {"at": written}}


@pytest.mark.parametrize(
    "wrong",
    [
        "2026-01-31", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z", "2026-02-30T12:00:00Z", "2026-01-31T24:00:00Z",
        "2026-01-31T12:00:60Z", "20260131T120000Z", "2026-W05-6T12:00:00Z", "2026-01-31T12:00:00+0200", "", "now",
        "0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-10:00", "２026-01-31T12:00:00Z", "x" * 10_000, 1769860800,
        True, ["2026-01-31T12:00:00Z"], {},
    ],
)  # fmt: skip
async def test_a_datetime_outside_rfc_3339_is_rejected_by_name(scalars: Engine, wrong: Any) -> None:
    message = await ask(scalars, "at", "DateTime!", wrong)
    assert message.startswith("Variable '$v' has invalid value: DateTime cannot represent")
    assert len(message) < 300


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_survives_writing_and_reading(instant: datetime) -> None:
    milliseconds = instant.replace(microsecond=instant.microsecond // 1000 * 1000)
    assert SCALARS["DateTime"].coerce_input_value(format_datetime(instant)) == milliseconds


def test_a_naive_datetime_is_a_bug() -> None:
    with pytest.raises(TypeError, match="aware"):
        format_datetime(datetime(2026, 1, 1))  # noqa: DTZ001  # the point


@given(st.datetimes(timezones=st.just(UTC)), st.sampled_from([0, 7, 999, 1000, 123000, 999999]))
def test_an_instant_is_written_as_isoformat_writes_it(instant: datetime, microsecond: int) -> None:
    for value in (instant, instant.replace(microsecond=microsecond)):
        assert format_datetime(value) == value.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


@pytest.mark.parametrize("number", [0, -1, 5_000_000_000, 2**53 - 1, -(2**53) + 1])
async def test_long_has_the_range_of_exact_javascript_integers(scalars: Engine, number: int) -> None:
    assert await ask(scalars, "long", "Long!", number) == number
    for literal in (number, f"{number}.0"):
        assert await scalars.execute(f"{{ long(value: {literal}) }}", None) == {"data": {"long": number}}


@pytest.mark.parametrize("wrong", [2**53, -(2**53), 1.5, "5", True, None, 10**400, {"a": 1}])
async def test_long_refuses_the_rest(scalars: Engine, wrong: Any) -> None:
    assert "Variable '$v'" in await ask(scalars, "long", "Long!", wrong)


@pytest.mark.parametrize("literal", ["9007199254740992", "9" * 4301, "1.5", '"5"', "true", "[1]"])
async def test_long_refuses_literals_as_well(scalars: Engine, literal: str) -> None:
    [error] = (await scalars.execute(f"{{ long(value: {literal}) }}", None))["errors"]
    assert error["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    assert len(error["message"]) <= 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.slow
@given(JSON)
async def test_json_passes_through_variables(scalars: Engine, value: Any) -> None:
    assert await ask(scalars, "json", "JSON", value) == value


@pytest.mark.slow
async def test_json_literals_are_read_as_they_are_spelt(scalars: Engine) -> None:
    query = 'query($v: JSON) { json(value: {a: [1, -2.5e3, "x", true, null], camelKey: {$: 1}, b: $v}) }'
    query = query.replace("{$: 1}", "{inner_key: 1}")
    response = await scalars.execute(query, None, variables={"v": {"z": [1]}})
    assert response["data"]["json"] == {
        "a": [1, -2500.0, "x", True, None],
        "camelKey": {"inner_key": 1},
        "b": {"z": [1]},
    }


@pytest.mark.parametrize("literal", ["1e999", "9" * 5000, "RED", "{a: {b: RED}}"])
async def test_json_literals_that_json_does_not_know_are_refused(scalars: Engine, literal: str) -> None:
    [error] = (await scalars.execute(f"{{ json(value: {literal}) }}", None))["errors"]
    assert error["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_ids_are_text_on_the_way_in(scalars: Engine) -> None:
    assert await ask(scalars, "id", "ID!", "65b0c0ffee65b0c0ffee65b0") == "65b0c0ffee65b0c0ffee65b0"
    assert await ask(scalars, "id", "ID!", 7) == "7"
    assert "Variable '$v'" in await ask(scalars, "id", "ID!", 1.5)


async def test_enum_values_are_their_names(scalars: Engine) -> None:
    assert await ask(scalars, "color", "Color!", "apiCalls") == "apiCalls"
    assert SEEN[-1] == "apiCalls"
    message = await ask(scalars, "color", "Color!", "GREEN")
    assert "Variable '$v' has invalid value: Value 'GREEN' does not exist in 'Color' enum." in message


@pytest.mark.parametrize(
    ("field", "value", "written"),
    [
        ("id", ObjectIdLike(), "65b0c0ffee65b0c0ffee65b0"),
        ("at", datetime(2026, 1, 31, 12, 0, 0, 5999, UTC), "2026-01-31T12:00:00.005Z"),
        ("at", datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2))), "2026-01-31T10:00:00.000Z"),
        ("long", 5e9, 5_000_000_000),
        ("long", Int64(5), 5),
        ("int", 5.0, 5),
        ("int", Int64(5), 5),
        ("float", 3, 3.0),
        ("float", Int64(5), 5.0),
        ("color", "RED", "RED"),
        ("string", "x", "x"),
    ],
)
async def test_database_types_are_serialised(scalars: Engine, field: str, value: Any, written: Any) -> None:
    OUT[field] = value
    response = await scalars.execute(f'{{ out(what: "{field}") {{ {field} }} }}', None)
    assert response == {"data": {"out": {field: written}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [("int", 2**31), ("long", 2**53), ("at", "2026"), ("color", "BLUE"), ("int", "secret"), ("float", [1])],
)
async def test_a_result_that_does_not_fit_its_type_is_an_internal_error(
    scalars: Engine, field: str, value: Any
) -> None:
    OUT[field] = value
    response = await scalars.execute(f'{{ out(what: "{field}") {{ {field} }} }}', None)
    [error] = response["errors"]
    assert error["message"] == "Internal server error"
    assert error["extensions"]["code"] == "INTERNAL"
    assert error["path"] == ["out", field]
    assert response["data"] == {"out": {field: None}}
