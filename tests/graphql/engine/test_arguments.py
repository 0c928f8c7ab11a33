from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import msgspec
import pytest

from ximler.graphql.engine import Engine, Resolvers, SchemaError, build

SDL = """
extend type Query {
  one(input: ProjectInput): Int
  many(inputs: [ProjectInput!]!): Int
  plain(input: ProjectInput, from: Int, sortBy: String = "name"): Int
  batch: Thing
}
type Thing { size(input: ProjectInput): Int }
input ProjectInput {
  fullName: String!
  maxItems: Int = 3
  note: String
  startsAt: DateTime
  interval: Interval
  settings: JSON
  children: [ProjectInput!]
}
enum Interval { MONTH YEAR }
"""


class Interval(Enum):
    MONTH = "MONTH"
    YEAR = "YEAR"


class Project(msgspec.Struct, rename="camel"):
    full_name: Annotated[str, msgspec.Meta(max_length=10)]
    max_items: int = 0
    note: str | msgspec.UnsetType | None = msgspec.UNSET
    starts_at: datetime | None = None
    interval: Interval | None = None
    settings: Any = None
    children: "list[Project]" = []


class Snake(msgspec.Struct):
    full_name: str
    max_items: int = 0
    note: str | None = None
    starts_at: datetime | None = None
    interval: str | None = None
    settings: Any = None
    children: "list[Snake] | None" = None


SEEN: list[Any] = []


@pytest.fixture(scope="module")
def typed() -> Engine:
    resolvers = Resolvers()

    @resolvers.query("one")
    async def one(ctx: Any, input: Project | None = None) -> None:  # noqa: A002  # the argument's own name
        SEEN.append(input)

    @resolvers.query("many")
    async def many(ctx: Any, inputs: list[Snake]) -> None:
        SEEN.append(inputs)

    @resolvers.query("plain")
    async def plain(ctx: Any, input: Any = "absent", from_: int = -1, sort_by: str = "never") -> None:  # noqa: A002  # the argument's own name
        SEEN.append((input, from_, sort_by))

    @resolvers.query("batch")
    async def batch(ctx: Any) -> Any:
        return {}

    @resolvers.field("Thing", "size")
    async def size(ctx: Any, parents: list[Any], input: Project | None = None) -> list[Any]:  # noqa: A002  # the argument's own name
        SEEN.append(input)
        return [1 for _ in parents]

    return Engine(build([SDL], [resolvers]))


async def seen(engine: Engine, query: str, **variables: Any) -> Any:
    response = await engine.execute(query, None, variables=variables)
    assert "errors" not in response, response
    return SEEN.pop()


async def test_input_objects_are_dicts_with_snake_case_keys(typed: Engine) -> None:
    query = "query($input: ProjectInput) { plain(input: $input) }"
    value = {"fullName": "A", "settings": {"camelKey": 1}, "children": [{"fullName": "B", "maxItems": 1}]}
    assert (await seen(typed, query, input=value))[0] == {
        "full_name": "A",
        "max_items": 3,
        "settings": {"camelKey": 1},
        "children": [{"full_name": "B", "max_items": 1}],
    }
    literal = '{ plain(input: {fullName: "A", children: {fullName: "B"}}) }'
    assert (await seen(typed, literal))[0]["children"] == [{"full_name": "B", "max_items": 3}]


async def test_absent_and_null_arguments_differ(typed: Engine) -> None:
    assert await seen(typed, "{ plain }") == ("absent", -1, "name")
    assert await seen(typed, "{ plain(input: null, from: null, sortBy: null) }") == (None, None, None)
    query = "query($input: ProjectInput, $from: Int) { plain(input: $input, from: $from) }"
    assert await seen(typed, query) == ("absent", -1, "name")
    assert await seen(typed, query, input=None, **{"from": None}) == (None, None, "name")
    value = (await seen(typed, query, input={"fullName": "A", "note": None}))[0]
    assert value == {"full_name": "A", "max_items": 3, "note": None}


async def test_a_struct_annotation_asks_for_that_struct(typed: Engine) -> None:
    query = "query($input: ProjectInput) { one(input: $input) }"
    value = {
        "fullName": "A",
        "startsAt": "2026-01-31T12:00:00Z",
        "interval": "YEAR",
        "settings": {"full_name": 1, "fullName": 2},
        "children": [{"fullName": "B", "note": None}],
    }
    assert await seen(typed, query, input=value) == Project(
        "A",
        3,
        starts_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
        interval=Interval.YEAR,
        settings={"full_name": 1, "fullName": 2},
        children=[Project("B", 3, note=None)],
    )
    assert await seen(typed, query) is None
    assert await seen(typed, query, input=None) is None


async def test_lists_of_structs_and_structs_with_python_names_work_too(typed: Engine) -> None:
    assert await seen(typed, '{ many(inputs: [{fullName: "A", children: [{fullName: "B"}]}]) }') == [
        Snake("A", 3, children=[Snake("B", 3)])
    ]


async def test_batch_resolvers_take_structs(typed: Engine) -> None:
    assert await seen(typed, '{ batch { size(input: {fullName: "A"}) } }') == Project("A", 3)


async def test_a_structs_constraints_are_the_clients_error_with_the_path(typed: Engine) -> None:
    query = '{ one(input: {fullName: "A", children: [{fullName: "far too long"}]}) }'
    response = await typed.execute(query, None)
    [error] = response["errors"]
    assert error["message"] == "input.children[0].fullName: Expected `str` of length <= 10"
    assert error["extensions"] == {
        "code": "INVALID",
        "kind": "INVALID",
        "fields": {"input.children[0].fullName": "Expected `str` of length <= 10"},
    }
    assert error["path"] == ["one"]


def test_a_struct_must_have_the_inputs_fields() -> None:
    class Small(msgspec.Struct):
        full_name: str

    resolvers = Resolvers()

    @resolvers.query("one")
    async def one(ctx: Any, input: Any = None) -> None: ...  # noqa: A002  # the argument's own name

    one.__annotations__["input"] = Small
    with pytest.raises(SchemaError, match=r"Small has no field `note` for ProjectInput\.note"):
        build(["extend type Query { one(input: ProjectInput): Int } input ProjectInput { note: Int }"], [resolvers])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"input": {"fullName": 1}}, "Variable '$input' has invalid value at .fullName: String cannot represent"),
        ({"input": {}}, "Variable '$input' has invalid value: Expected value of type 'ProjectInput' to include"),
        (
            {"input": {"fullName": "A", "children": [{"fullName": "B", "startsAt": "soon"}]}},
            "Variable '$input' has invalid value at .children[0].startsAt: DateTime cannot represent 'soon'",
        ),
        ({"input": {"fullName": "A", "colour": 1}}, "Variable '$input' has invalid value: Expected value of type"),
        (
            {"input": "text"},
            "Variable '$input' has invalid value: Expected value of type 'ProjectInput' to be an object",
        ),
    ],
)
async def test_wrong_variables_are_named_with_their_path(
    typed: Engine, variables: dict[str, Any], message: str
) -> None:
    query = "query($input: ProjectInput) { one(input: $input) }"
    response = await typed.execute(query, None, variables=variables)
    assert "data" not in response
    assert response["errors"][0]["message"].startswith(message)
    assert response["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_null_for_an_argument_that_may_not_be_null_is_the_clients_error(typed: Engine) -> None:
    # Valid, as the variable has a default; only its value shows that it does not fit.
    query = "query($inputs: [ProjectInput!] = []) { many(inputs: $inputs) }"
    response = await typed.execute(query, None, variables={"inputs": None})
    [error] = response["errors"]
    assert "inputs" in error["message"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
